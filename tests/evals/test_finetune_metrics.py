"""Measures worked by hand, and intervals against what the binomial says and by enumeration."""

import itertools

import numpy as np
import pytest

from talltree.evals.classification_metrics import (
    MEASURES,
    accuracy,
    confusion,
    exact_match,
    f1,
    macro_f1,
    matthews,
    summarise,
)


def generator():
    return np.random.default_rng(0)


def rows(labels, predictions, groups=None, blocks=None):
    return [
        {"label": label, "prediction": prediction, "group": group, "block": block}
        for label, prediction, group, block in zip(
            labels, predictions, groups or range(len(labels)), blocks or itertools.repeat(0), strict=False
        )
    ]


# tp 4, fn 2, fp 1, tn 3
LABELS = [1] * 6 + [0] * 4
PREDICTIONS = [1, 1, 1, 1, 0, 0] + [1, 0, 0, 0]


def test_binary_measures_by_hand() -> None:
    counts = confusion(LABELS, PREDICTIONS, 2)
    assert counts.tolist() == [[3, 1], [2, 4]]
    assert accuracy(counts) == pytest.approx(7 / 10)
    assert f1(counts) == pytest.approx(8 / 11)  # 2 * 4 / (2 * 4 + 1 + 2)
    # (4 * 3 - 1 * 2) / sqrt(5 * 6 * 4 * 5) = 10 / sqrt(600)
    assert matthews(counts) == pytest.approx(0.4082482904638631)
    # F1 of class 0: 2 * 3 / (2 * 3 + 2 + 1) = 6/9
    assert macro_f1(counts) == pytest.approx((8 / 11 + 2 / 3) / 2)


def test_three_classes_by_hand() -> None:
    """Labels 0 0 1 1 2 2, predictions 0 1 1 1 2 0: R_K = (4 * 6 - (2*2 + 2*3 + 2*1)) / sqrt(24 * 22)."""
    counts = confusion([0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0], 3)
    assert accuracy(counts) == pytest.approx(4 / 6)
    assert matthews(counts) == pytest.approx(12 / (24 * 22) ** 0.5)
    assert macro_f1(counts) == pytest.approx((2 / 4 + 4 / 5 + 2 / 3) / 3)


def test_perfect_inverted_and_constant_predictors() -> None:
    labels = [0, 1, 1, 0]
    assert matthews(confusion(labels, labels, 2)) == pytest.approx(1.0)
    assert matthews(confusion(labels, [1, 0, 0, 1], 2)) == pytest.approx(-1.0)
    constant = confusion(labels, [1] * 4, 2)
    assert (matthews(constant), f1(constant), accuracy(constant)) == pytest.approx((0.0, 2 / 3, 0.5))
    never = confusion(labels, [0] * 4, 2)
    assert (matthews(never), f1(never)) == (0.0, 0.0)


def test_a_class_that_does_not_occur_is_no_part_of_macro_f1() -> None:
    assert macro_f1(confusion([0, 1], [0, 1], 3)) == pytest.approx(1.0)


def test_measures_of_many_resamples_at_once_are_those_of_each() -> None:
    stack = generator().integers(0, 9, size=(5, 4, 3, 3)).astype(float)
    for name, measure in MEASURES.items():
        if name == "exact_match":
            continue
        together = measure(stack)
        assert together.shape == (5, 4)
        assert together[3, 2] == pytest.approx(float(measure(stack[3, 2])))


def test_exact_match_counts_questions_whose_answers_are_all_right() -> None:
    """Question a: right, right; b: right, wrong; c: right. Two of three."""
    given = rows([1, 0, 1, 0, 1], [1, 0, 1, 1, 1], groups=[0, 0, 0, 0, 1], blocks=["a", "a", "b", "b", "c"])
    found = summarise("exact_match", [given], 2, generator())
    assert (found.value, found.n, found.unit) == (pytest.approx(2 / 3), 5, "share")
    assert float(exact_match(np.array([2.0, 3.0]))) == pytest.approx(2 / 3)


def test_the_interval_of_accuracy_is_the_binomials() -> None:
    """400 items, 60% right: 0.6 +- 1.96 sqrt(0.6 * 0.4 / 400), which is 0.552 to 0.648."""
    given = rows([1] * 400, [1] * 240 + [0] * 160)
    found = summarise("accuracy", [given], 2, generator())
    assert found.value == pytest.approx(0.6)
    assert (found.low, found.high) == (
        pytest.approx(0.552, abs=0.005),
        pytest.approx(0.648, abs=0.005),
    )  # 2,000 draws of steps of 1/400


def test_items_of_one_passage_count_as_one() -> None:
    """100 passages of 4 answers, all right or all wrong: the interval is that of 100, twice as wide."""
    labels, predictions = [1] * 400, [1] * 240 + [0] * 160
    found = summarise("accuracy", [rows(labels, predictions, [i // 4 for i in range(400)])], 2, generator())
    assert (found.low, found.high) == (pytest.approx(0.504, abs=0.01), pytest.approx(0.696, abs=0.01))


def test_seeds_widen_the_interval_and_the_value_is_their_mean() -> None:
    """One seed always right, one always wrong: both seeds drawn are the same one in half of all draws."""
    right, wrong = rows([1] * 50, [1] * 50), rows([1] * 50, [0] * 50)
    found = summarise("accuracy", [right, wrong], 2, generator())
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    assert found.n == 50


def test_no_interval_where_the_resamples_cannot_differ() -> None:
    assert summarise("accuracy", [rows([1, 0], [1, 0])], 2, generator())[1:3] == (None, None)
    one_group = summarise("accuracy", [rows([1, 0, 1], [1, 0, 0], [0, 0, 0])], 2, generator())
    assert (one_group.value, one_group.low, one_group.high) == (pytest.approx(2 / 3), None, None)


def test_the_bootstrap_is_that_of_all_resamples() -> None:
    """Three items, one right: accuracies 0, 1/3, 2/3, 1 with 8, 12, 6, 1 of 27; the bounds are 0 and 1."""
    found = summarise("accuracy", [rows([1, 1, 1], [1, 0, 0])], 2, generator())
    assert (found.low, found.high) == (0.0, 1.0)


def test_the_unit_says_what_a_figure_is() -> None:
    assert summarise("matthews", [rows(LABELS, PREDICTIONS)], 2, generator()).unit == "correlation"
