"""Time, places on the screen and reliability of single annotators, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from talltree.annotation.annotators import (
    Positions,
    Seconds,
    fast_limit,
    position_bias,
    reliabilities,
    seconds_taken,
)
from talltree.data.preferences import Judgement


def judged(who: str, texts: str = "xyz", **answer: Any) -> Judgement:
    return Judgement(prompt="p", candidates=tuple(texts), annotator=who, **answer)


def test_quartiles_by_hand() -> None:
    judgements = [judged("A", best=0, seconds=seconds) for seconds in (5, 1, 3, 2, 4)]
    assert seconds_taken([*judgements, judged("A", best=0)]) == Seconds(5, 2, 3, 4)
    assert fast_limit(judgements) == 1
    assert seconds_taken([judged("A", best=0)]) is None
    assert fast_limit([]) is None


def test_places_and_their_test_by_hand() -> None:
    """Best at places 1, 2, 3 10, 20 and 30 times: chi2 = (100 + 0 + 100) / 20 = 10, p = exp(-5)."""
    orders = [((0, 1, 2), 10), ((1, 0, 2), 20), ((1, 2, 0), 30)]  # candidate 0 stands first, second, third
    judgements = [judged("A", best=0, worst=1, order=order) for order, times in orders for _ in range(times)]
    (found,) = position_bias(judgements)
    assert found == Positions(3, (10, 20, 30), (50, 10, 0), pytest.approx(10), pytest.approx(math.exp(-5)))


def test_places_need_an_order_and_a_choice() -> None:
    rows = [
        judged("A", best=0),
        judged("A", tie=True, order=(0, 1, 2)),
        judged("A", ratings=(1, 2, 3), order=(0, 1, 2)),
    ]
    assert position_bias(rows) == []
    (found,) = position_bias([judged("A", best=1, order=(1, 0, 2))])
    assert (found.best, found.p) == ((1, 0, 0), None)  # one choice is too few for a test


def test_reliability_leaves_ones_own_judgements_out() -> None:
    """The others of A score x 1, y 0, z -1; A says z best and x worst: wrong on every pair."""
    rows = [judged(who, best=0, worst=2) for who in "BCD"] + [judged("A", best=2, worst=0)]
    a, b, *_ = reliabilities(rows, None)
    assert (a.annotator, a.agreed, a.compared, a.low) == ("A", 0.0, 1, None)
    # For B the others are A, C and D: x 1/3, y 0, z -1/3, with which B agrees on every pair.
    assert (b.annotator, b.agreed) == ("B", 1.0)


def test_reliability_counts_equal_scores_half_and_unknown_ones_not() -> None:
    rows = [judged("A", "xy", best=0), judged("A", "vw", best=0), judged("B", "xy", tie=True)]
    a, b = reliabilities(rows, None)
    assert (a.agreed, a.compared) == (0.5, 1)
    assert (b.agreed, b.compared) == (None, 0)


def test_rating_correlation_by_hand() -> None:
    """Own ratings 1 2 3 against the others' means 1, 5, 3: ranks 1 2 3 and 1 3 2, rho = 1 - 6 * 2 / 24."""
    rows = [judged("A", ratings=(1, 2, 3)), judged("B", ratings=(1, 5, 2)), judged("C", ratings=(1, 5, 4))]
    a = reliabilities(rows, None)[0]
    assert a.correlation == pytest.approx(0.5)


def test_fast_and_random_annotators_are_flagged() -> None:
    careful = [judged(who, best=0, worst=2, seconds=9) for who in "AB" for _ in range(40)]
    clicker = [judged("C", best=i % 3, worst=(i + 1) % 3, seconds=1) for i in range(40)]
    a, _, c = reliabilities([*careful, *clicker], 3)
    assert a.flags == ()
    assert (a.fast, c.fast, c.median_seconds) == (0, 40, 1)
    assert c.flags == ("40 of 40 answers in under 3.0 s", "agreement that chance could give")


def test_the_nameless_have_no_reliability() -> None:
    assert reliabilities([judged("", best=0)], None) == []
