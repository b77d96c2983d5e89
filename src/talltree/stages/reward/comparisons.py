"""Judgements as comparisons: what each settles, its candidates in one order, and the table of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from talltree.data.preferences import Judgement, pairs
from talltree.errors import DataError
from talltree.maths.preferences import MOST_STATES, Pairs, heights

UNUSED = ("ties", "rated_alone", "without_best", "too_long")
"""Why a judgement is no comparison: nothing preferred, one rating alone, no best for softmax, length."""


class Comparison(NamedTuple):
    """One judgement that settles something.

    texts: its candidates as rows of the table of texts, from the top of the order to the bottom, so that
    judgements of one kind settle the same pairs. above: those pairs, as places in `texts`.
    """

    judgement: Judgement
    texts: tuple[int, ...]
    above: tuple[tuple[int, int], ...]
    cluster: int

    @property
    def margin(self) -> float:
        """Strength of the preference, 0 where none is stated."""
        return self.judgement.margin or 0.0


class Texts:
    """Prompt and completion of every text once, in the order of their first mention."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.completions: list[str] = []
        self._rows: dict[tuple[str, str], int] = {}

    def row(self, prompt: str, completion: str) -> int:
        """The text's row, a new one if it is new."""
        if (prompt, completion) not in self._rows:
            self._rows[prompt, completion] = len(self.prompts)
            self.prompts.append(prompt)
            self.completions.append(completion)
        return self._rows[prompt, completion]


def usable(judgements: Sequence[Judgement], loss: str) -> tuple[list[int], dict[str, int]]:
    """The places of the judgements that the loss can learn from, and how many are left out, by reason."""
    left_out = dict.fromkeys(UNUSED, 0)
    kept = []
    for place, judgement in enumerate(judgements):
        found = pairs(judgement)
        if len(judgement.candidates) < 2:
            left_out["rated_alone"] += 1
        elif not found:
            left_out["ties"] += 1
        elif loss == "softmax" and not has_best(found, len(judgement.candidates)):
            left_out["without_best"] += 1
        else:
            kept.append(place)
    return kept, left_out


def has_best(above: Pairs, candidates: int) -> bool:
    """Whether one candidate is above all others."""
    winners = [high for high, _ in above]
    return any(winners.count(each) == candidates - 1 for each in set(winners))


def comparison(judgement: Judgement, texts: Texts, cluster: int) -> Comparison:
    """The judgement as a comparison; its texts enter the table."""
    found = pairs(judgement)
    height = heights(found, len(judgement.candidates))
    order = sorted(range(len(judgement.candidates)), key=lambda index: (-height[index], index))
    place = {index: number for number, index in enumerate(order)}
    rows = tuple(texts.row(judgement.prompt, judgement.candidates[index]) for index in order)
    return Comparison(
        judgement, rows, tuple(sorted((place[high], place[low]) for high, low in found)), cluster
    )


def check_countable(comparisons: Sequence[Comparison]) -> None:
    """Raises DataError for an order that the Plackett-Luce likelihood has too many ways to complete."""
    for above, candidates in {(each.above, len(each.texts)): None for each in comparisons}:
        if states(above, candidates) > MOST_STATES:
            raise DataError(
                f"a judgement of {candidates} candidates leaves so many of them open that its Plackett-Luce "
                "likelihood takes too many steps; use --loss bradley_terry"
            )


def states(above: Pairs, candidates: int) -> int:
    """Sets of candidates left that the likelihood passes through, counted up to MOST_STATES + 1."""
    seen: set[frozenset[int]] = set()
    waiting = [frozenset(range(candidates))]
    while waiting and len(seen) <= MOST_STATES:
        left = waiting.pop()
        inside = [pair for pair in above if pair[0] in left and pair[1] in left]
        if inside and left not in seen:
            seen.add(left)
            waiting += [left - {first} for first in left - {low for _, low in inside}]
    return len(seen)
