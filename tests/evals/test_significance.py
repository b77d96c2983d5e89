"""Tests of differences against hand-worked values, enumeration and scipy."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from talltree.evals.significance import holm, mcnemar, permutation, sign_flip, within_prompts


def test_sign_flips_of_three_differences_by_hand() -> None:
    # Sums of +-1 +-2 +-3: only 6 and -6 of the 8 patterns are as far out as 6.
    assert sign_flip([1.0, 2.0, 3.0]) == 2 / 8
    # 2 of -1 + 2 + 3 = 4: patterns with |sum| >= 4 are +-6 and +-4 (from -1): 4 of 8.
    assert sign_flip([-1.0, 2.0, 3.0]) == 4 / 8


def test_sign_flips_equal_scipys_exact_test() -> None:
    values = np.random.default_rng(3).normal(0.4, 1, 9)

    def mean(x, axis):
        return np.mean(x, axis=axis)

    found = stats.permutation_test((values,), mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(values.tolist()) == pytest.approx(found.pvalue, abs=1e-12)


def test_rounding_leaves_no_pattern_out() -> None:
    # All 2^6 patterns of six equal numbers that are no binary fractions: |sum| >= 0.6 in two.
    assert sign_flip([0.1] * 6) == 2 / 64


def test_random_sign_flips_come_near_the_exact_value_and_repeat() -> None:
    values = [1.0] * 20 + [-1.0] * 8
    # A sum of 28 signs is at least 12 away from 0 with 20 or more of one sign.
    exact = 2 * stats.binom.sf(19, 28, 0.5)
    found = sign_flip(values, seed=1)
    # Four standard errors of a share of 10,000.
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 10_000) + 1e-4)
    assert found == sign_flip(values, seed=1)


def test_no_difference_has_p_1() -> None:
    assert sign_flip([0.0, 0.0]) == 1.0 == sign_flip([])
    assert permutation([[1.0, 1.0]], [[1.0, 1.0]]) == 1.0


def test_permutation_comes_near_the_enumerated_value() -> None:
    left, right = [[0.0, 1.0, 2.0], [5.0, 5.5]], [[3.0, 4.0], [6.0, 9.0]]

    def differences(before, after):
        pooled = before + after
        for chosen in itertools.combinations(range(len(pooled)), len(before)):
            one = [pooled[i] for i in chosen]
            two = [pooled[i] for i in range(len(pooled)) if i not in chosen]
            yield sum(two) / len(two) - sum(one) / len(one)

    every = [
        a + b
        for a, b in itertools.product(*(list(differences(*pair)) for pair in zip(left, right, strict=True)))
    ]
    observed = (3.5 - 1.0) + (7.5 - 5.25)
    exact = sum(abs(each) >= observed - 1e-9 for each in every) / len(every)
    assert len(every) == 10 * 6
    assert permutation(left, right) == pytest.approx(exact, abs=4 * math.sqrt(exact / 10_000) + 1e-4)


def test_permutation_refuses_unequal_prompts() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        permutation([[1.0]], [[1.0], [2.0]])


def test_mcnemar_by_hand() -> None:
    # Binomial(6, 1/2): P(at most 1) = (1 + 6) / 64, twice.
    assert mcnemar(1, 5) == pytest.approx(14 / 64)
    assert mcnemar(5, 1) == mcnemar(1, 5)
    assert mcnemar(0, 0) == 1.0


def test_holm_by_hand() -> None:
    # Sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, made monotone.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_family_at_its_level() -> None:
    rng = np.random.default_rng(0)
    families = rng.uniform(size=(2000, 8))
    errors = np.mean([min(holm(row)) <= 0.05 for row in families.tolist()])
    # True nulls throughout: at most 5%, within four standard errors of a share of 2,000.
    assert errors <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)
    assert errors >= 0.03


def test_within_prompts_has_the_standard_error_of_theory() -> None:
    left, right = [[0.0, 2.0, 4.0, 6.0]], [[1.0, 3.0, 5.0, 11.0]]
    low, high = within_prompts(left, right, 20_000, 0.95)
    # Variances 20/3 and 56/3 over 4 draws each; a normal interval is 1.96 of their root either way.
    expected = 1.96 * math.sqrt((20 / 3 + 56 / 3) / 4)
    assert (high - low) / 2 == pytest.approx(expected, rel=0.06)  # percentiles of a skewed bootstrap
    assert within_prompts([[1.0]], [[1.0, 2.0]], 100, 0.95) is None
