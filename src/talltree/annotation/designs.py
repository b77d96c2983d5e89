"""Designs: which items are judged together, so that items and pairs of items appear equally often.

Pure and seeded: the same arguments give the same design on every machine. Who judges a tuple, when, and where
its candidates stand on the screen is dealt by the store.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from talltree.errors import DataError

CANDIDATES = 64
"""How many of the least shown items are compared for the next place of a tuple."""
STARTS = 8
PATIENCE = 40
"""Exchanges a tuple that may be tried without making pairs more even before the search stops."""


class Drawn(NamedTuple):
    """A tuple of a design: its prompt and indices into that prompt's items; their order says nothing."""

    prompt: str
    items: tuple[int, ...]


class Spread(NamedTuple):
    """How evenly items and pairs of items with one prompt appear, as (fewest, most) tuples."""

    tuples: int
    items: int
    per_item: tuple[int, int]
    per_pair: tuple[int, int]


def design(items: Mapping[str, Sequence[str]], k: int, appearances: int, seed: int) -> list[Drawn]:
    """Tuples of k items with the same prompt ("" where there are none), each item in `appearances` of them.

    Of a prompt's n items ceil(n * appearances / k) tuples are drawn, or all C(n, k) where these are fewer, no
    two of the same items. Within a prompt the counts of items differ by at most 1, and the counts of pairs as
    little as a search by swaps can reach (`spread` reports them): by at most 2 for up to 7 items and k up to
    4. k = 2 makes pairs and k = 1 single items to rate. The tuples come in random order. Raises DataError for
    a prompt with fewer than k items, equal ones, or none at all.
    """
    if k < 1 or appearances < 1:
        raise DataError(
            f"tuples of {k} with {appearances} appearances an item cannot be made; give 1 or more"
        )
    if not items:
        raise DataError("there is nothing to judge: no prompt has an item")
    drawn: list[Drawn] = []
    for prompt, texts in items.items():
        _check(prompt, texts, k)
        rng = _random("design", seed, prompt)
        count = min(math.ceil(len(texts) * appearances / k), math.comb(len(texts), k))
        drawn += [Drawn(prompt, chosen) for chosen in balanced(len(texts), k, count, rng)]
    _random("tuples", seed).shuffle(drawn)
    return drawn


def balanced(n: int, k: int, count: int, rng: random.Random) -> list[tuple[int, ...]]:
    """`count` different sets of k out of n items, as tuples in random order inside.

    Counts of items differ by at most 1. The sum of squared pair counts is brought down by exchanging items
    between tuples, which changes no item's count; the best of several starts is kept. Raises ValueError if
    there are not so many sets.
    """
    possible = math.comb(n, k)
    if count > possible:
        raise ValueError(f"{count} different tuples of {k} out of {n} items: there are only {possible}")
    if 2 * count > possible:
        # What is left out of a complete design is as even as what is kept, and the smaller one is easier.
        left_out = {frozenset(chosen) for chosen in balanced(n, k, possible - count, rng)}
        chosen = [each for each in combinations(range(n), k) if frozenset(each) not in left_out]
    else:
        chosen = _searched(n, k, count, rng)
    rng.shuffle(chosen)
    return [tuple(rng.sample(each, k)) for each in chosen]


def spread(drawn: Sequence[Drawn], items: Mapping[str, Sequence[str]]) -> Spread:
    """Fewest and most tuples that an item, and a pair of items of one prompt, appears in, over the design."""
    shown = Counter((each.prompt, item) for each in drawn for item in each.items)
    pairs = Counter((each.prompt, pair) for each in drawn for pair in combinations(sorted(each.items), 2))
    every_item = [shown[prompt, item] for prompt, texts in items.items() for item in range(len(texts))]
    possible = sum(math.comb(len(texts), 2) for texts in items.values())
    fewest = min(pairs.values(), default=0) if len(pairs) == possible else 0
    return Spread(
        len(drawn),
        len(every_item),
        (min(every_item, default=0), max(every_item, default=0)),
        (fewest, max(pairs.values(), default=0)),
    )


# The search


def _searched(n: int, k: int, count: int, rng: random.Random) -> list[tuple[int, ...]]:
    if count == 0:
        return []
    starts = STARTS if count * k <= 200 else 1
    best: list[tuple[int, ...]] = []
    best_cost = math.inf
    floor = _least_cost(n, k, count)
    for _ in range(starts):
        tuples, pairs = _greedy(n, k, count, rng)
        cost = _improved(tuples, pairs, floor, rng)
        if cost < best_cost:
            best, best_cost = [tuple(sorted(each)) for each in tuples], cost
        if best_cost <= floor:
            break
    return best


def _least_cost(n: int, k: int, count: int) -> int:
    """The sum of squared pair counts if they differed by at most 1."""
    slots, pairs = count * math.comb(k, 2), math.comb(n, 2)
    if pairs == 0:
        return 0
    low, rest = divmod(slots, pairs)
    return (pairs - rest) * low**2 + rest * (low + 1) ** 2


def _greedy(n: int, k: int, count: int, rng: random.Random) -> tuple[list[set[int]], list[Counter[int]]]:
    """Tuples filled with the least shown items, of these the ones least often together; equal sets mended."""
    shown = [0] * n
    pairs: list[Counter[int]] = [Counter() for _ in range(n)]
    tuples = [_next_tuple(shown, pairs, k, rng) for _ in range(count)]
    _mend(tuples, pairs, rng)
    return tuples, pairs


def _next_tuple(shown: list[int], pairs: list[Counter[int]], k: int, rng: random.Random) -> set[int]:
    low = min(shown)
    least = [item for item, count in enumerate(shown) if count == low]
    chosen: set[int] = set()
    if len(least) <= k:
        chosen.update(least)
        least = [item for item, count in enumerate(shown) if count > low]
    while len(chosen) < k:
        few = rng.sample(least, min(CANDIDATES, len(least)))
        item = min(
            few, key=lambda each: sum(pairs[each][other] ** 2 * 2 + pairs[each][other] for other in chosen)
        )
        chosen.add(item)
        least.remove(item)
    for item in chosen:
        shown[item] += 1
    _count(pairs, chosen, 1)
    return chosen


def _count(pairs: list[Counter[int]], chosen: Iterable[int], by: int) -> None:
    for one, other in combinations(chosen, 2):
        pairs[one][other] += by
        pairs[other][one] += by


def _mend(tuples: list[set[int]], pairs: list[Counter[int]], rng: random.Random) -> None:
    """Exchanges items between tuples until no two are equal; item counts stay."""
    kept: Counter[frozenset[int]] = Counter(map(frozenset, tuples))
    while len(kept) < len(tuples):
        double = next(place for place, each in enumerate(tuples) if kept[frozenset(each)] > 1)
        other = rng.randrange(len(tuples))
        if (swap := _swap(tuples[double], tuples[other], rng)) is not None:
            _exchange(tuples, double, other, swap, pairs, kept)


def _improved(tuples: list[set[int]], pairs: list[Counter[int]], floor: int, rng: random.Random) -> int:
    """Random exchanges between two tuples, kept where pairs become no less even; the cost reached."""
    kept: Counter[frozenset[int]] = Counter(map(frozenset, tuples))
    cost = sum(count**2 for row in pairs for count in row.values()) // 2
    in_vain = 0
    while cost > floor and in_vain < PATIENCE * len(tuples):
        in_vain += 1
        one, other = rng.randrange(len(tuples)), rng.randrange(len(tuples))
        swap = _swap(tuples[one], tuples[other], rng)
        if swap is None:
            continue
        change = _change(tuples[one], tuples[other], swap, pairs)
        made = [frozenset(tuples[one] ^ set(swap)), frozenset(tuples[other] ^ set(swap))]
        if change <= 0 and not any(kept[each] for each in made):
            _exchange(tuples, one, other, swap, pairs, kept)
            cost += change
            in_vain = in_vain if change == 0 else 0
    return cost


def _swap(one: set[int], other: set[int], rng: random.Random) -> tuple[int, int] | None:
    mine, theirs = sorted(one - other), sorted(other - one)
    return (rng.choice(mine), rng.choice(theirs)) if mine else None


def _change(one: set[int], other: set[int], swap: tuple[int, int], pairs: list[Counter[int]]) -> int:
    """What the exchange adds to the sum of squared pair counts."""
    mine, theirs = swap
    change = 0
    # A partner that both tuples have keeps its counts.
    for partner in one - other - {mine}:
        change += 2 * (pairs[theirs][partner] - pairs[mine][partner]) + 2
    for partner in other - one - {theirs}:
        change += 2 * (pairs[mine][partner] - pairs[theirs][partner]) + 2
    return change


def _exchange(
    tuples: list[set[int]],
    one: int,
    other: int,
    swap: tuple[int, int],
    pairs: list[Counter[int]],
    kept: Counter[frozenset[int]],
) -> None:
    for place in (one, other):
        before = frozenset(tuples[place])
        kept[before] -= 1
        if not kept[before]:
            del kept[before]
        _count(pairs, before, -1)
        tuples[place] = tuples[place] ^ set(swap)
        _count(pairs, tuples[place], 1)
        kept[frozenset(tuples[place])] += 1


def _check(prompt: str, texts: Sequence[str], k: int) -> None:
    where = f"prompt {prompt[:60]!r}" if prompt else "the design"
    if len(texts) < k:
        many = "only 1 candidate" if len(texts) == 1 else f"{len(texts)} candidates"
        raise DataError(f"{where} has {many}; a tuple of {k} needs at least {k} with the same prompt")
    if len(set(texts)) < len(texts):
        twice = next(text for text, times in Counter(texts).items() if times > 1)
        raise DataError(f"{where} has the candidate {twice[:60]!r} more than once; keep one of them")


def _random(*parts: object) -> random.Random:
    """A generator for these parts alone, the same in every process."""
    return random.Random(hashlib.sha256(repr(parts).encode()).digest())
