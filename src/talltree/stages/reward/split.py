"""Train and held-out judgements that share no prompt and no candidate text, or at least no candidate text."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from talltree.data.preferences import Judgement, pairs
from talltree.errors import DataError

NEAR = 3
"""A split by whole groups may hold out this many times more or less than asked for before items are split."""


class Split(NamedTuple):
    """The two sides, what the held-out ones are clustered by, and how it was done.

    clusters: for each held-out judgement the number of its cluster; those of one cluster are not independent.
    counts: judgements left out or reduced because they would have stood on both sides. by_texts: held-out
    judgements of different clusters share candidates all the same, so that these are what an interval draws.
    """

    train: list[Judgement]
    held_out: list[Judgement]
    clusters: list[int]
    rule: str
    counts: dict[str, int]
    by_texts: bool = False


def split(judgements: Sequence[Judgement], share: float, seed: int, rule: str = "auto") -> Split:
    """Holds out about `share` of the judgements.

    "prompt": judgements that share a prompt, a tuple or a candidate text stay together. "items": those that
    share a tuple or a candidate text do. Whole groups are held out, in the order of a hash of seed and group,
    as long as they do not exceed the share. Where no such set of groups comes within a factor of NEAR of the
    share (one prompt; a design in which every item meets every other), "auto" goes on from prompt to items,
    and items to single items: each candidate text is on one side by its hash, judgements are reduced to their
    candidates of a side, and what then settles no pair is left out and counted. Raises DataError where a side
    remains empty.
    """
    for kind in ("prompt", "items") if rule == "auto" else (rule,):
        groups = components(judgements, _keys(kind))
        chosen = _chosen(groups, share, seed, judgements)
        if chosen is not None:
            train = [j for j, group in zip(judgements, groups, strict=True) if group not in chosen]
            kept = [(j, group) for j, group in zip(judgements, groups, strict=True) if group in chosen]
            return Split(train, [j for j, _ in kept], [group for _, group in kept], kind, {})
    if rule == "prompt":
        raise DataError(
            f"all {len(judgements)} judgements hang together by prompts, tuples and candidates, so none can "
            "be held out by prompt; use --split_by items, or --validation_name with other judgements"
        )
    return _by_single_items(judgements, share, seed)


def given(train: Sequence[Judgement], held_out: Sequence[Judgement], rule: str = "auto") -> Split:
    """The user's own split: training judgements with a held-out candidate or prompt are left out and counted.

    "items" keeps those that share a prompt alone; "auto" does where every prompt is held out, as with one
    prompt for all. Raises DataError where "prompt" leaves nothing.
    """
    taken = {text for judgement in held_out for text in judgement.candidates}
    prompts = {judgement.prompt for judgement in held_out}
    apart = [judgement for judgement in train if not taken.intersection(judgement.candidates)]
    new = [judgement for judgement in apart if judgement.prompt not in prompts]
    counts = {"shared_candidates": len(train) - len(apart)}
    if rule == "items" or (rule == "auto" and not new):
        counts["same_prompt_kept"] = len(apart) - len(new)
        groups = components(held_out, _keys("items"))
        return Split(apart, list(held_out), groups, "given, by items", counts, by_texts=len(set(groups)) < 2)
    if apart and not new:
        raise DataError(
            f"all {len(apart)} training judgements have prompts of validation_name, so none is left with "
            "--split_by prompt; use --split_by items, or judgements of other prompts"
        )
    counts["shared_prompt"] = len(apart) - len(new)
    return Split(new, list(held_out), components(held_out, _keys("prompt")), "given, by prompt", counts)


def components(judgements: Sequence[Judgement], keys: Callable[[Judgement], Iterable[Any]]) -> list[int]:
    """For each judgement the number of the first one that it is connected with through shared keys."""
    parent = list(range(len(judgements)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    first: dict[Any, int] = {}
    for number, judgement in enumerate(judgements):
        for key in keys(judgement):
            one, other = root(first.setdefault(key, number)), root(number)
            parent[max(one, other)] = min(one, other)
    return [root(number) for number in range(len(judgements))]


def nested_order(judgements: Sequence[Judgement], seed: int) -> list[Judgement]:
    """The judgements in an order of which every beginning is a random subset; equal for equal judgements."""
    keyed = [
        (_hash(seed, f"{number}\0{each.prompt}\0{chr(0).join(each.candidates)}"), number, each)
        for number, each in enumerate(judgements)
    ]
    return [each for _, _, each in sorted(keyed, key=lambda entry: entry[:2])]


def restricted(judgement: Judgement, kept: Sequence[int]) -> Judgement | None:
    """What the judgement says about some of its candidates; None where it settles no pair of them."""
    place = {index: number for number, index in enumerate(kept)}
    ranking = None
    if judgement.ranking is not None:
        ranking = tuple(place[index] for index in judgement.ranking if index in place) or None
    is_ranked = judgement.ranking is not None
    best = None if is_ranked or judgement.best is None else place.get(judgement.best)
    worst = None if is_ranked or judgement.worst is None else place.get(judgement.worst)
    ratings = None
    if judgement.ratings is not None:
        ratings = tuple(judgement.ratings[index] for index in kept)
    if len(kept) < 2 or judgement.tie or all(each is None for each in (ranking, best, worst, ratings)):
        return None
    found = dataclasses.replace(
        judgement,
        candidates=tuple(judgement.candidates[index] for index in kept),
        ranking=ranking,
        best=best,
        worst=worst,
        ratings=ratings,
        tuple_id="",
        order=None,
    )
    return found if pairs(found) else None


def _keys(kind: str) -> Callable[[Judgement], Iterable[Any]]:
    def keys(judgement: Judgement) -> Iterable[Any]:
        if kind == "prompt":
            yield "prompt", judgement.prompt
        if judgement.tuple_id:
            yield "tuple", judgement.tuple_id
        for text in judgement.candidates:
            yield "candidate", text

    return keys


def _chosen(
    groups: Sequence[int], share: float, seed: int, judgements: Sequence[Judgement]
) -> set[int] | None:
    sizes: dict[int, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    target = share * len(groups)
    order = sorted(
        sizes, key=lambda group: _hash(seed, judgements[group].prompt + judgements[group].candidates[0])
    )
    chosen: set[int] = set()
    held = 0
    for group in order:
        if held + sizes[group] <= max(target, 1):
            chosen.add(group)
            held += sizes[group]
    if not chosen and len(sizes) > 1:
        smallest = min(order, key=sizes.__getitem__)
        chosen, held = {smallest}, sizes[smallest]
    is_near = target / NEAR <= held <= max(NEAR * target, 1) and held < len(groups)
    return chosen if is_near else None


def _by_single_items(judgements: Sequence[Judgement], share: float, seed: int) -> Split:
    # With a share q of the items held out, q^2 of the pairs are held out and (1 - q)^2 are left to train.
    odds = math.sqrt(share / (1 - share))
    held_items = odds / (1 + odds)
    train: list[Judgement] = []
    held_out: list[Judgement] = []
    straddling = lost = pairs_lost = 0
    for judgement in judgements:
        is_held = [_hash(seed, text) < held_items for text in judgement.candidates]
        sides = [[i for i, held in enumerate(is_held) if held is side] for side in (False, True)]
        if not any(is_held) or all(is_held):
            (held_out if all(is_held) else train).append(judgement)
            continue
        straddling += 1
        one, other = (restricted(judgement, side) for side in sides)
        if one is not None:
            train.append(one)
        if other is not None:
            held_out.append(other)
        lost += one is None and other is None
        left = sum(len(pairs(each)) for each in (one, other) if each is not None)
        pairs_lost += len(pairs(judgement)) - left
    return Split(
        train,
        held_out,
        components(held_out, lambda each: [frozenset(each.candidates)]),
        "single items",
        {"straddling": straddling, "straddling_left_out": lost, "straddling_pairs_lost": pairs_lost},
        by_texts=True,
    )


def _hash(seed: int, text: str) -> float:
    """From 0 to 1, by seed and text."""
    digest = hashlib.sha256(f"{seed}\0{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
