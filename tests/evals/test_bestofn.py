"""Best-of-n against brute force over all subsets, and its KL against a simulation."""

import itertools
import math

import numpy as np
import pytest

from talltree.evals.bestofn import best_of_n_kl, expected, pseudo_values, selection_weights, sizes


def brute_force(proxy, values, n):
    """Mean over all size-n subsets of the value of the proxy's best; ties share evenly."""
    found = []
    for subset in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in subset)
        best = [values[i] for i in subset if proxy[i] == top]
        found.append(sum(best) / len(best))
    return sum(found) / len(found)


@pytest.mark.parametrize("n", range(1, 9))
def test_the_estimator_is_the_mean_over_all_subsets(n) -> None:
    rng = np.random.default_rng(n)
    proxy, gold = rng.normal(size=8).tolist(), rng.normal(size=8).tolist()
    assert expected(proxy, gold, n) == pytest.approx(brute_force(proxy, gold, n), abs=1e-12)
    assert expected(proxy, proxy, n) == pytest.approx(brute_force(proxy, proxy, n), abs=1e-12)


@pytest.mark.parametrize("n", range(1, 8))
def test_ties_are_averaged_as_a_random_choice_among_them(n) -> None:
    proxy = [2.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0]
    gold = [5.0, -1.0, 0.5, 3.0, 8.0, 1.0, -4.0]
    assert expected(proxy, gold, n) == pytest.approx(brute_force(proxy, gold, n), abs=1e-12)


def test_weights_by_hand() -> None:
    # 4 samples in order 10 < 20 < 30 < 40, n = 2: C(i-1, 1) / C(4, 2) = 0, 1/6, 2/6, 3/6.
    assert selection_weights([30.0, 10.0, 40.0, 20.0], 2) == pytest.approx([2 / 6, 0, 3 / 6, 1 / 6])


def test_a_large_sample_does_not_overflow() -> None:
    weights = selection_weights(list(range(5000)), 2500)
    assert weights.sum() == pytest.approx(1.0)
    assert weights[-1] == pytest.approx(0.5)


@pytest.mark.parametrize("n", [0, 5])
def test_n_must_fit_the_samples(n) -> None:
    with pytest.raises(ValueError, match=f"best of {n} cannot be chosen from 4"):
        selection_weights([1.0, 2.0, 3.0, 4.0], n)


def test_the_estimator_is_unbiased_for_a_known_distribution() -> None:
    # Proxy uniform on 0 to 1, gold = proxy: the best of n has mean n / (n + 1).
    rng = np.random.default_rng(0)
    drawn = [expected(row, row, 4) for row in rng.uniform(size=(4000, 10)).tolist()]
    error = np.std(drawn) / math.sqrt(len(drawn))
    assert np.mean(drawn) == pytest.approx(0.8, abs=4 * error)


def test_pseudo_values_average_to_the_estimate_and_are_the_values_for_n_1() -> None:
    proxy, gold = [3.0, 1.0, 2.0, 2.0, 5.0], [1.0, 4.0, 2.0, 0.0, 3.0]
    for n in range(1, 5):
        assert pseudo_values(proxy, gold, n).mean() == pytest.approx(expected(proxy, gold, n), abs=1e-12)
    assert pseudo_values(proxy, gold, 1) == pytest.approx(gold)


def test_pseudo_values_give_the_standard_error() -> None:
    rng = np.random.default_rng(1)
    samples = rng.uniform(size=(300, 40))
    estimates = [expected(row, row, 4) for row in samples.tolist()]
    jackknifed = [pseudo_values(row, row, 4).std(ddof=1) / math.sqrt(40) for row in samples[:60].tolist()]
    # The jackknife's error is a little large for small samples; a tenth either way of the true spread.
    assert np.mean(jackknifed) == pytest.approx(np.std(estimates), rel=0.15)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_kl_of_best_of_n_by_enumeration(n) -> None:
    # A reference uniform over m different rewards: the best of n is the k-th with (k^n - (k-1)^n) / m^n.
    m = 20_000
    k = np.arange(1, m + 1)
    chosen = (k / m) ** n - ((k - 1) / m) ** n
    kl = float(np.sum(chosen * np.log(chosen * m)))
    assert best_of_n_kl(n) == pytest.approx(kl, abs=2e-3)  # the enumeration is of a discrete reference


def test_the_kl_of_best_of_n_by_simulation() -> None:
    # The best of n uniforms has density n x^(n-1): KL = E[log n + (n - 1) log x].
    best = np.random.default_rng(2).uniform(size=(40_000, 8)).max(1)
    sampled = math.log(8) + 7 * np.log(best)
    assert best_of_n_kl(8) == pytest.approx(sampled.mean(), abs=4 * sampled.std() / 200)


def test_sizes_end_with_the_largest() -> None:
    assert sizes(8) == [1, 2, 3, 4, 6, 8]
    assert sizes(10) == [1, 2, 3, 4, 6, 8, 10]
    assert sizes(2) == [1, 2]
