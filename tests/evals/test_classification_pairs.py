"""Two classifiers by the task's own measure: by hand, by enumeration, and by independent libraries."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from talltree.evals import classification_pairs
from talltree.evals.classification_metrics import summarise
from talltree.evals.classification_pairs import classes_of, exchanged, paired, value_of


def rows(labels, predictions, groups=None, blocks=None):
    return [
        {"label": label, "prediction": prediction, "group": group, "block": block}
        for label, prediction, group, block in zip(
            labels, predictions, groups or range(len(labels)), blocks or itertools.repeat(0), strict=False
        )
    ]


def f1_of(labels, predictions):
    tp = sum(a == b == 1 for a, b in zip(labels, predictions, strict=True))
    wrong = sum(a != b for a, b in zip(labels, predictions, strict=True))
    return 2 * tp / (2 * tp + wrong)


def matthews_of(labels, predictions):
    """As the correlation of two columns of 0 and 1."""
    if len(set(labels)) < 2 or len(set(predictions)) < 2:
        return 0.0
    return float(np.corrcoef(labels, predictions)[0, 1])


LABELS = [1, 1, 1, 0, 0, 0, 1, 0]
LEFT = [1, 0, 0, 0, 1, 0, 0, 0]
RIGHT = [1, 1, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(("name", "by_hand"), [("matthews", matthews_of), ("f1", f1_of)])
def test_the_difference_is_of_the_measure_and_its_test_goes_through_every_exchange(name, by_hand) -> None:
    found = paired(name, [rows(LABELS, LEFT)], [rows(LABELS, RIGHT)], 2)
    one, two = by_hand(LABELS, LEFT), by_hand(LABELS, RIGHT)
    assert (found.left.value, found.right.value) == (pytest.approx(one), pytest.approx(two))
    assert found.difference.value == pytest.approx(two - one)
    as_far = 0
    for pattern in itertools.product((False, True), repeat=8):
        a = [y if swap else x for x, y, swap in zip(LEFT, RIGHT, pattern, strict=True)]
        b = [x if swap else y for x, y, swap in zip(LEFT, RIGHT, pattern, strict=True)]
        as_far += abs(by_hand(LABELS, b) - by_hand(LABELS, a)) >= abs(two - one) - 1e-9
    assert found.p_value == pytest.approx(as_far / 256)


def test_f1_and_accuracy_may_disagree_and_each_is_told_as_it_is() -> None:
    """Left says always 1 where 6 of 10 are: accuracy .6, F1 .75. Right finds 3 of the 6: .7, .667."""
    labels = [1] * 6 + [0] * 4
    always, few = [rows(labels, [1] * 10)], [rows(labels, [1, 1, 1] + [0] * 7)]
    assert paired("accuracy", always, few, 2).difference.value == pytest.approx(0.1)
    assert paired("f1", always, few, 2).difference.value == pytest.approx(2 / 3 - 3 / 4)


def test_accuracy_of_single_items_is_tested_as_mcnemar_does() -> None:
    """Seven gained, one lost: 2 (1 + 8) / 2^8."""
    left, right = [rows([1] * 20, [0] * 7 + [1] * 13)], [rows([1] * 20, [1] * 7 + [0] + [1] * 12)]
    found = paired("accuracy", left, right, 2)
    assert found.p_value == pytest.approx(18 / 256) == pytest.approx(stats.binomtest(7, 8).pvalue)


def test_many_changes_are_tested_by_random_exchanges() -> None:
    """30 gained and 12 lost of 100: McNemar's p is .0080."""
    left, right = rows([1] * 100, [0] * 30 + [1] * 70), rows([1] * 100, [1] * 30 + [0] * 12 + [1] * 58)
    exact = stats.binomtest(30, 42).pvalue
    assert paired("accuracy", [left], [right], 2).p_value == pytest.approx(exact, abs=0.003)


def test_items_of_one_text_are_exchanged_together() -> None:
    """Six texts of 5 items each, all gained: 2 of 2^6 exchanges are as far, not 2 of 2^30."""
    groups = [i // 5 for i in range(30)]
    left, right = rows([1] * 30, [0] * 30, groups), rows([1] * 30, [1] * 30, groups)
    found = paired("accuracy", [left], [right], 2)
    assert (found.p_value, found.groups) == (2 / 64, 6)
    # Every text differs alike: the interval is the point.
    assert found.difference[:3] == (1.0, 1.0, 1.0)
    assert paired("accuracy", [left], [left], 2).difference[:3] == (0.0, 0.0, 0.0)
    assert paired("accuracy", [left], [left], 2).p_value == 1.0


def test_each_sides_figure_is_what_evaluate_says() -> None:
    generator = np.random.default_rng(3)
    labels = generator.integers(2, size=60).tolist()
    sides = [
        [rows(labels, np.where(generator.random(60) < 0.7, labels, 0).tolist()) for _ in range(3)]
        for _ in range(2)
    ]
    found = paired("matthews", *sides, 2)
    for each, side in ((found.left, sides[0]), (found.right, sides[1])):
        assert each == summarise("matthews", side, 2, np.random.default_rng(0))
    assert found.left.value == pytest.approx(sum(found.left_by_seed) / 3)
    assert value_of("matthews", sides[0], 2) == pytest.approx(found.left.value)
    predictions = [row["prediction"] for row in sides[0][1]]
    assert found.left_by_seed[1] == pytest.approx(matthews_of(labels, predictions))


def test_the_same_draws_on_both_sides_make_the_interval_of_the_difference() -> None:
    """200 items, 40 gained and 10 lost: 0.15 +- 1.96 sqrt((0.25 - 0.0225) / 200), far less than unpaired."""
    left = rows([1] * 200, [1] * 120 + [0] * 80)
    right = rows([1] * 200, [1] * 110 + [0] * 10 + [1] * 40 + [0] * 40)
    found = paired("accuracy", [left], [right], 2)
    half = 1.96 * math.sqrt((0.25 - 0.15**2) / 200)
    assert found.difference.value == pytest.approx(0.15)
    assert (found.difference.low, found.difference.high) == (
        pytest.approx(0.15 - half, abs=0.008),
        pytest.approx(0.15 + half, abs=0.008),
    )  # 2,000 draws of steps of 1/200


def test_exact_match_and_classes() -> None:
    """Questions a, b: left has a right, right has both."""
    groups, blocks = [0, 0, 1, 1], ["a", "a", "b", "b"]
    left, right = (
        rows([1, 0, 1, 0], [1, 0, 1, 1], groups, blocks),
        rows([1, 0, 1, 0], [1, 0, 1, 0], groups, blocks),
    )
    assert paired("exact_match", [left], [right], 2).difference.value == 0.5
    assert classes_of([rows([0, 1], [0, 2])], [rows([0, 1], [0, 1])]) == 3
    assert classes_of([rows([0, 0], [0, 0])]) == 2


def test_exchanges_hold_their_level(monkeypatch) -> None:
    """Two classifiers of one kind: p <= 0.1 in about a tenth of 200 trials (binomial: 8 to 34 in 99.99%)."""
    monkeypatch.setattr(classification_pairs, "SIGNS", 500)
    generator = np.random.default_rng(1)
    low = 0
    for _ in range(200):
        labels = generator.integers(2, size=40)
        sides = [np.where(generator.random(40) < 0.75, labels, 1 - labels).tolist() for _ in range(2)]
        pair = paired_p(labels.tolist(), *sides)
        low += pair <= 0.1
    assert 8 <= low <= 34


def paired_p(labels, one, two):
    from talltree.evals.classification_metrics import counts_by_group, group_numbers

    sides = [[rows(labels, each)] for each in (one, two)]
    groups = group_numbers(sides[0][0])
    return exchanged("matthews", *(counts_by_group("matthews", side, groups, 2) for side in sides))
