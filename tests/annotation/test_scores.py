"""Counts, ratings and strengths against values worked by hand and an optimiser of our own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq, minimize

from talltree.annotation.scores import (
    Count,
    Item,
    best_worst_counts,
    bradley_terry,
    ends,
    groups,
    mean_ratings,
    plackett_luce,
    simple_scores,
)
from talltree.data.preferences import Judgement


def judged(texts: str, prompt: str = "p", **answer: Any) -> Judgement:
    return Judgement(prompt=prompt, candidates=tuple(texts), **answer)


def by_text(scores: dict[Item, Any]) -> dict[str, Any]:
    return {item.text: value for item, value in scores.items()}


def test_best_minus_worst_by_hand() -> None:
    judgements = [
        judged("abcd", best=0, worst=3),
        judged("abcd", best=0, worst=1),
        judged("dabe", best=3, worst=0),
    ]
    counts = by_text(best_worst_counts(judgements))
    assert counts == {
        "a": Count(3, 2, 0), "b": Count(3, 0, 1), "c": Count(2, 0, 0), "d": Count(3, 0, 2),
        "e": Count(1, 1, 0),
    }  # fmt: skip
    assert [counts[text].score for text in "abcde"] == [2 / 3, -1 / 3, 0, -2 / 3, 1]


def test_the_same_text_after_another_prompt_is_another_item() -> None:
    counts = best_worst_counts([judged("ab", "p", best=0), judged("ab", "q", best=1)])
    assert counts[Item("p", "a")] == Count(1, 1, 0)
    assert counts[Item("q", "a")] == Count(1, 0, 1)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"best": 1, "worst": 2}, (1, 2)),
        ({"best": 1}, (1, None)),
        ({"worst": 1}, (None, 1)),
        ({"ranking": (2, 0, 1)}, (2, 1)),
        ({"ranking": (2, 0)}, (2, 1)),  # the only one unnamed is last
        ({"ranking": (2,)}, (2, None)),
        ({"ratings": (1, 3, 2)}, (1, 0)),
        ({"ratings": (3, 3, 2)}, (None, 2)),
        ({"tie": True}, (None, None)),
    ],
)
def test_ends(answer: dict[str, Any], expected: tuple[int | None, int | None]) -> None:
    assert ends(judged("abc", **answer)) == expected


def test_of_two_the_other_one_is_known() -> None:
    assert (
        ends(judged("ab", best=1))
        == ends(judged("ab", worst=0))
        == ends(judged("ab", ranking=(1,)))
        == (1, 0)
    )
    assert ends(judged("ab", tie=True)) == (None, None)


def test_mean_ratings_by_hand() -> None:
    judgements = [judged("ab", ratings=(1, 4)), judged("a", ratings=(2,)), judged("ab", ratings=(3, 5))]
    assert by_text(mean_ratings(judgements)) == {"a": 2.0, "b": 4.5}
    assert by_text(simple_scores(judgements)) == {"a": 2.0, "b": 4.5}
    assert by_text(simple_scores([judged("ab", best=0)])) == {"a": 1.0, "b": -1.0}


# --- strengths ---------------------------------------------------------------------------------------------


def test_bradley_terry_of_two_items_is_the_log_odds() -> None:
    judgements = [judged("ab", best=0)] * 30 + [judged("ab", best=1)] * 10
    found = by_text(bradley_terry(judgements, 1e-9))
    assert found["a"] - found["b"] == pytest.approx(math.log(3), abs=1e-6)
    assert found["a"] + found["b"] == pytest.approx(0, abs=1e-9)


def test_the_penalty_is_the_one_that_is_stated() -> None:
    """One that always wins, n times: the difference d solves n / (1 + e^d) = regularisation * d."""
    n, regularisation = 5, 0.1
    expected = brentq(lambda d: n / (1 + math.exp(d)) - regularisation * d, 0, 50)
    found = by_text(bradley_terry([judged("ab", best=0)] * n, regularisation))
    assert found["a"] - found["b"] == pytest.approx(expected, abs=1e-5)


def optimum(size: int, loss: Callable[[Any], float], regularisation: float) -> np.ndarray:
    """Strengths by another method than the library's: Powell's, which takes no gradient."""
    options = {"xtol": 1e-9, "ftol": 1e-14, "maxiter": 100_000}
    penalised = lambda s: loss(s) + regularisation * float(np.sum(s**2))  # noqa: E731
    return np.asarray(minimize(penalised, np.zeros(size), method="Powell", options=options).x)


def test_bradley_terry_of_best_and_worst_against_another_optimiser() -> None:
    judgements = [
        judged("abcd", best=0, worst=3),
        judged("abcd", best=1, worst=0),
        judged("abcd", best=0, worst=2),
    ]
    won = ["ab ac ad bd cd", "ba bc bd ca da", "ab ac ad bc dc"]
    pairs = [("abcd".index(pair[0]), "abcd".index(pair[1])) for row in won for pair in row.split()]
    expected = optimum(4, lambda s: sum(math.log1p(math.exp(s[j] - s[i])) for i, j in pairs), 0.05)
    found = by_text(bradley_terry(judgements, 0.05))
    assert [found[text] for text in "abcd"] == pytest.approx(expected.tolist(), abs=2e-4)


def choice_loss(choices: Sequence[tuple[int, tuple[int, ...]]]) -> Callable[[Any], float]:
    def loss(s: Any) -> float:
        return sum(math.log(sum(math.exp(s[j]) for j in (i, *over))) - s[i] for i, over in choices)

    return loss


@pytest.mark.parametrize(
    ("answers", "choices"),
    [
        ([{"best": 0}, {"best": 1}, {"best": 0}], [(0, (1, 2, 3)), (1, (0, 2, 3)), (0, (1, 2, 3))]),
        (
            [{"ranking": (2, 0, 1, 3)}, {"ranking": (0, 3)}],
            [(2, (0, 1, 3)), (0, (1, 3)), (1, (3,)), (0, (1, 2, 3)), (3, (1, 2))],
        ),
        ([{"best": 0, "worst": 3}], [(0, (1, 2, 3)), (1, (3,)), (2, (3,))]),
        ([{"ratings": (5, 5, 1, 1)}], [(0, (2, 3)), (1, (2, 3))]),
    ],
)
def test_plackett_luce_against_another_optimiser(
    answers: list[dict[str, Any]], choices: list[tuple[int, tuple[int, ...]]]
) -> None:
    expected = optimum(4, choice_loss(choices), 0.1)
    found = by_text(plackett_luce([judged("abcd", **answer) for answer in answers], 0.1))
    assert [found[text] for text in "abcd"] == pytest.approx(expected.tolist(), abs=2e-4)


def test_on_pairs_the_two_models_are_the_same() -> None:
    judgements = [judged("ab", best=0), judged("bc", best=0), judged("ca", best=0), judged("ab", best=0)]
    one, other = bradley_terry(judgements, 0.02), plackett_luce(judgements, 0.02)
    assert one == pytest.approx(other, abs=1e-5)


def test_groups_and_items_never_compared() -> None:
    judgements = [
        judged("ab", best=0), judged("bc", best=0), judged("xy", best=0), judged("xz", tie=True),
        judged("n", ratings=(3,)), judged("ab", "q", best=0),
    ]  # fmt: skip
    found = [{item.prompt + item.text for item in group} for group in groups(judgements)]
    assert found[0] == {"pa", "pb", "pc"}
    assert sorted(map(sorted, found[1:])) == [["pn"], ["px", "py"], ["pz"], ["qa", "qb"]]
    strengths = bradley_terry(judgements, 0.01)
    assert Item("p", "z") not in strengths
    assert Item("p", "n") not in strengths
    # Each group's mean is 0.
    assert math.fsum(strengths[Item("p", text)] for text in "abc") == pytest.approx(0, abs=1e-6)
    assert strengths[Item("q", "a")] == pytest.approx(-strengths[Item("q", "b")], abs=1e-6)


def test_without_comparisons_there_are_no_strengths() -> None:
    assert (
        bradley_terry([judged("ab", tie=True)], 0.01)
        == plackett_luce([judged("a", ratings=(1,))], 0.01)
        == {}
    )
