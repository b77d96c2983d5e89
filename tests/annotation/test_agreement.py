"""Alpha, split halves and self-agreement against published figures, enumeration and hand work."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest

from talltree.annotation.agreement import (
    choice_agreement,
    first_judgements,
    rating_agreement,
    self_agreement,
    split_half,
    wilson,
)
from talltree.annotation.scores import simple_scores
from talltree.data.preferences import Judgement


def judged(who: str, prompt: str, texts: str = "xy", **answer: Any) -> Judgement:
    return Judgement(prompt=prompt, candidates=tuple(texts), annotator=who, **answer)


# --- Krippendorff's alpha ----------------------------------------------------------------------------------

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": four observers, twelve units.
OBSERVERS = {
    "A": "1 2 3 3 2 1 4 1 2 . . .",
    "B": "1 2 3 3 2 2 4 1 2 5 . 3",
    "C": ". 3 3 3 2 3 4 2 2 5 1 .",
    "D": "1 2 3 3 2 4 4 1 2 5 1 .",
}


@pytest.mark.parametrize(("level", "expected"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_ratings_is_the_published_one(level: Any, expected: float) -> None:
    judgements = [
        judged(who, f"unit {unit}", "x", ratings=(int(value),))
        for who, row in OBSERVERS.items()
        for unit, value in enumerate(row.split())
        if value != "."
    ]
    found = rating_agreement(judgements, level, 200, 0)
    assert found is not None
    assert round(found.alpha, 3) == expected
    assert (found.units, found.judgements) == (11, 40)  # the unit that one observer saw does not count
    assert found.low < found.alpha < found.high


def test_alpha_of_choices_by_hand() -> None:
    """A picks x x x y, B picks x x y y: observed disagreement 2/8, expected 2 * 5 * 3 / (8 * 7) = 30/56."""
    choices = {"A": "xxxy", "B": "xxyy"}
    judgements = [
        judged(who, f"tuple {unit}", best="xy".index(text))
        for who, row in choices.items()
        for unit, text in enumerate(row)
    ]
    found = choice_agreement(judgements, 200, 0)
    assert found is not None
    assert found.alpha == pytest.approx(1 - (2 / 8) / (30 / 56), abs=1e-12)
    assert found.agreed == 0.75
    # The order in which candidates are listed changes nothing: pairs files name the winner first.
    turned = [
        judged(j.annotator, j.prompt, j.candidates[j.best] + j.candidates[1 - j.best], best=0)
        for j in judgements
        if j.best is not None
    ]
    assert choice_agreement(turned, 200, 0) == found


def test_a_tie_is_a_value_of_its_own() -> None:
    """A: x y tie, B: x tie tie: observed 2/6; values x 2, y 1, tie 3: expected (2*1 + 2*3 + 1*3) * 2 / 30."""
    rows = [("A", "1", 0), ("A", "2", 1), ("A", "3", None), ("B", "1", 0), ("B", "2", None), ("B", "3", None)]
    found = choice_agreement([judged(w, u, best=b, tie=b is None) for w, u, b in rows], 100, 0)
    assert found is not None
    assert found.alpha == pytest.approx(1 - (2 / 6) / (22 / 30), abs=1e-12)
    assert found.agreed == pytest.approx(2 / 3)


def test_alpha_is_not_defined_without_overlap_or_without_variety() -> None:
    assert choice_agreement([judged("A", "1", best=0), judged("B", "2", best=1)], 100, 0) is None
    assert choice_agreement([judged("A", "1", best=0), judged("B", "1", best=0)], 100, 0) is None
    assert rating_agreement([judged("A", "1", best=0)], "ordinal", 100, 0) is None
    # One person twice is no overlap; two nameless ones are.
    twice = [judged("A", "1", best=0), judged("A", "1", best=1)]
    assert choice_agreement(twice, 100, 0) is None
    nameless = [judged("", "1", best=0), judged("", "1", best=1)]
    assert choice_agreement(nameless, 100, 0) is not None


def test_only_the_first_judgement_of_a_repeated_tuple_counts() -> None:
    rows = [
        judged("A", "1", best=0),
        judged("B", "1", best=1),
        judged("A", "1", best=1),
        judged("A", "2", best=1),
    ]
    assert first_judgements(rows) == [rows[0], rows[1], rows[3]]


# --- split halves ------------------------------------------------------------------------------------------


def test_split_half_against_all_halvings() -> None:
    """Five tuples of two answers: the 2^5 halvings give the mean that random ones must come near to."""
    choices = [("ab", 0, 0), ("bc", 0, 1), ("cd", 1, 1), ("da", 0, 1), ("ac", 0, 0)]
    judgements = [
        judged(who, "p", texts, best=best)
        for texts, *bests in choices
        for who, best in zip("AB", bests, strict=True)
    ]
    found = []
    for picks in product((0, 1), repeat=5):
        halves = [[judgements[2 * row + (pick ^ half)] for row, pick in enumerate(picks)] for half in (0, 1)]
        one, other = (simple_scores(half) for half in halves)
        both = [item for item in one if item in other]
        columns = [[scores[item] for item in both] for scores in (one, other)]
        if all(len(set(column)) > 1 for column in columns):
            found.append(np.corrcoef(*columns)[0, 1])
    estimate = split_half(judgements, 600, 0)
    assert estimate is not None
    # A mean of 600: five standard errors.
    assert estimate.pearson == pytest.approx(np.mean(found), abs=5 * np.std(found) / math.sqrt(600))
    assert estimate.spearman_brown == 2 * estimate.pearson / (1 + estimate.pearson)
    assert estimate.items == 4


def test_two_people_who_always_agree_have_reliability_one() -> None:
    judgements = [judged(who, "p", texts, best=0) for texts in ("ab", "bc", "ca", "da") for who in "AB"]
    found = split_half(judgements, 20, 0)
    assert found is not None
    assert (found.pearson, found.low, found.spearman, found.spearman_brown) == pytest.approx((1, 1, 1, 1))


def test_split_half_of_ratings_deals_a_unit_evenly() -> None:
    """Four people give each item the same four ratings in turn, so each half has two of them."""
    judgements = [judged(who, f"item {item}", "x", ratings=(item,)) for item in range(1, 6) for who in "ABCD"]
    found = split_half(judgements, 10, 0)
    assert found is not None
    assert (found.pearson, found.items) == (pytest.approx(1), 5)


def test_split_half_is_not_defined_for_too_little() -> None:
    assert split_half([], 10, 0) is None
    assert split_half([judged("A", "1", best=0)], 10, 0) is None


# --- self-agreement ----------------------------------------------------------------------------------------


def test_self_agreement_by_hand() -> None:
    rows = [
        judged("A", "1", "wxyz", best=0, worst=3), judged("A", "1", "wxyz", best=0, worst=3),
        judged("A", "2", "wxyz", best=0, worst=3), judged("A", "2", "wxyz", best=0, worst=2),
        judged("B", "1", "wxyz", best=1, worst=3), judged("B", "2", "wxyz", best=1, worst=3),
        judged("B", "2", "wxyz", best=3, worst=1), judged("", "1", "wxyz", best=0, worst=1),
    ]  # fmt: skip
    found = self_agreement(rows)
    assert found is not None
    assert (found.repeats, found.same, found.same_best, found.same_worst) == (3, 1 / 3, 2 / 3, 1 / 3)
    assert found.chance == pytest.approx(1 / 12)
    assert found.rating_change is None


def test_self_agreement_of_ratings_and_pairs() -> None:
    rated = [judged("A", "1", "xy", ratings=(1, 4)), judged("A", "1", "yx", ratings=(5, 1))]
    found = self_agreement(rated)
    assert found is not None
    assert (found.same, found.rating_change, found.chance) == (0, 0.5, None)
    chosen = [judged("A", "1", "xy", best=0), judged("A", "1", "yx", best=1)]  # x both times
    found = self_agreement(chosen)
    assert found is not None
    assert (found.same, found.chance) == (1, 0.5)
    assert self_agreement([judged("A", "1", best=0)]) is None


def test_wilson_is_the_textbook_interval() -> None:
    """8 of 10: centre (p + z^2/2n) / (1 + z^2/n), half-width z sqrt(p q / n + z^2 / 4n^2) / (1 + z^2/n)."""
    z, n, p = 1.959963984540054, 10, 0.8
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert wilson(8, 10) == pytest.approx((centre - half, centre + half), abs=1e-9)
