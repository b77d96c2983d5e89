"""Tuple designs: known balanced ones are found, bounds hold for all small ones, bad input is refused."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import combinations

import pytest

from talltree.annotation.designs import Drawn, Spread, balanced, design, spread
from talltree.errors import DataError


def pair_counts(n: int, tuples: list[tuple[int, ...]]) -> list[int]:
    counts = Counter(pair for each in tuples for pair in combinations(sorted(each), 2))
    return [counts[pair] for pair in combinations(range(n), 2)]


@pytest.mark.parametrize(
    ("n", "k", "count", "times"),
    [
        (7, 3, 7, 1),  # the Fano plane
        (9, 3, 12, 1),  # the affine plane of order 3
        (13, 4, 13, 1),  # the projective plane of order 3
        (6, 3, 10, 2),
        (8, 4, 14, 3),
        (5, 4, 5, 3),  # complete: all sets of 4
        (6, 2, 15, 1),  # complete: everybody against everybody
    ],
)
def test_balanced_incomplete_block_designs_are_found(n: int, k: int, count: int, times: int) -> None:
    """Here r (k - 1) = lambda (n - 1) holds for these, so every pair can come equally often, and must."""
    tuples = balanced(n, k, count, random.Random(0))
    assert len({frozenset(each) for each in tuples}) == count
    assert pair_counts(n, tuples) == [times] * math.comb(n, 2)


def test_every_small_design_is_even() -> None:
    """Item counts differ by at most 1, pairs by at most 2 (1 where k is 2); no set twice, no item twice."""
    for n in range(1, 8):
        for k in range(1, min(n, 4) + 1):
            for count in range(1, math.comb(n, k) + 1):
                tuples = balanced(n, k, count, random.Random(count))
                items = Counter(item for each in tuples for item in each)
                assert max(items.values()) - min(items[i] for i in range(n)) <= 1, (n, k, count)
                assert all(len(set(each)) == k for each in tuples)
                assert len({frozenset(each) for each in tuples}) == count
                if n > 1:
                    pairs = pair_counts(n, tuples)
                    assert max(pairs) - min(pairs) <= (1 if k == 2 else 2), (n, k, count)


def test_a_larger_design_is_even_and_puts_pairs_together_at_most_once() -> None:
    tuples = balanced(100, 4, 200, random.Random(0))
    assert Counter(Counter(item for each in tuples for item in each).values()) == {8: 100}
    assert max(pair_counts(100, tuples)) == 1


def test_more_tuples_than_there_are_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="there are only 4"):
        balanced(4, 3, 5, random.Random(0))


ITEMS = {prompt: [f"{prompt}{i}" for i in range(6)] for prompt in ("A", "B", "")}


def test_candidates_of_a_tuple_share_one_prompt_and_the_spread_is_what_is_counted() -> None:
    drawn = design(ITEMS, 4, 2, seed=3)
    assert Counter(each.prompt for each in drawn) == {"A": 3, "B": 3, "": 3}
    assert all(0 <= item < 6 for each in drawn for item in each.items)
    # 3 tuples of 4 over 6 items: each twice; 18 pairs over the 15 that there are: once or twice.
    assert spread(drawn, ITEMS) == Spread(tuples=9, items=18, per_item=(2, 2), per_pair=(1, 2))


def test_the_spread_by_hand() -> None:
    drawn = [Drawn("A", (0, 1)), Drawn("A", (1, 0)), Drawn("A", (1, 2))]
    assert spread(drawn, {"A": ["x", "y", "z"]}) == Spread(3, 3, (1, 3), (0, 2))


def test_pairs_ratings_and_prompts_with_just_enough_items() -> None:
    assert sorted(design({"": ["a", "b"]}, 1, 1, 0)) == [Drawn("", (0,)), Drawn("", (1,))]
    (only,) = design({"p": ["a", "b"]}, 2, 5, 0)  # one pair exists, however often it is asked for
    assert sorted(only.items) == [0, 1]
    assert spread(design({"p": list("abcdef")}, 2, 5, 0), {"p": list("abcdef")}).per_pair == (1, 1)


def test_the_same_seed_gives_the_same_design_and_another_one_another() -> None:
    assert design(ITEMS, 3, 2, 5) == design(ITEMS, 3, 2, 5) != design(ITEMS, 3, 2, 6)
    alone = [each for each in design(ITEMS, 3, 2, 5) if each.prompt == "A"]
    # A prompt's tuples do not depend on the other prompts.
    assert sorted(design({"A": ITEMS["A"]}, 3, 2, 5)) == sorted(alone)


def test_the_place_inside_a_tuple_says_nothing_about_the_item() -> None:
    drawn = design({"": [str(i) for i in range(50)]}, 4, 8, 0)
    by_place = [[each.items[place] for each in drawn] for place in range(4)]
    means = [sum(items) / len(items) for items in by_place]
    # Uniform over 0..49: mean 24.5, deviation 14.4 / sqrt(100) = 1.44; four of them within 3.5 of these.
    assert all(abs(mean - 24.5) < 5 for mean in means)


@pytest.mark.parametrize(
    ("items", "k", "appearances", "message"),
    [
        ({}, 4, 1, "there is nothing to judge: no prompt has an item"),
        ({"p": ["a"]}, 2, 1, "prompt 'p' has only 1 candidate; a tuple of 2 needs at least 2 with the same"),
        ({"p": ["a", "b", "c"]}, 4, 1, "prompt 'p' has 3 candidates; a tuple of 4 needs at least 4"),
        ({"": ["a", "b", "c"]}, 4, 1, "the design has 3 candidates; a tuple of 4 needs at least 4"),
        ({"p": ["a", "b", "a"]}, 2, 1, "prompt 'p' has the candidate 'a' more than once; keep one of them"),
        ({"p": ["a", "b"]}, 0, 1, "tuples of 0 with 1 appearances an item cannot be made; give 1 or more"),
        ({"p": ["a", "b"]}, 2, 0, "tuples of 2 with 0 appearances an item cannot be made; give 1 or more"),
    ],
)
def test_what_cannot_be_designed_is_refused(
    items: dict[str, list[str]], k: int, appearances: int, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        design(items, k, appearances, 0)
    assert message in str(caught.value)
