"""The fits of Gao et al.: planted coefficients, peaks by calculus, intervals that cover."""

import math

import numpy as np
import pytest

from talltree.evals.overoptimisation import Coefficients, Peak, Points, fit, fit_points, gains, peak

D = [0.5, 1.0, 1.7, 2.4, 3.1, 4.0]
PLANTED = Coefficients(2.0, 0.4)


def curve(kind, d, alpha, beta):
    """The formulas written out."""
    return [x * (alpha - beta * (x if kind == "bon" else math.log(x))) for x in d]


@pytest.mark.parametrize("kind", ["bon", "rl"])
def test_planted_coefficients_come_back(kind) -> None:
    gained = curve(kind, D, *PLANTED)
    assert fit(kind, D, gained) == pytest.approx(PLANTED, abs=1e-10)
    assert gains(kind, D, PLANTED) == pytest.approx(gained)
    assert gains(kind, [0.0], PLANTED) == pytest.approx([0.0])


@pytest.mark.parametrize("kind", ["bon", "rl"])
def test_a_point_at_the_reference_changes_nothing(kind) -> None:
    assert fit(kind, [0.0, *D], [0.0, *curve(kind, D, *PLANTED)]) == pytest.approx(PLANTED, abs=1e-10)


def test_one_distance_is_too_few() -> None:
    with pytest.raises(ValueError, match="two points"):
        fit("rl", [0.0, 1.0, 1.0], [0.0, 1.0, 2.0])


@pytest.mark.parametrize("kind", ["bon", "rl"])
def test_the_peak_is_where_a_fine_grid_has_it(kind) -> None:
    grid = np.linspace(0.001, 200, 2_000_001)
    found = peak(kind, Coefficients(2.0, 0.5))
    values = gains(kind, grid, Coefficients(2.0, 0.5))
    assert found.d == pytest.approx(grid[values.argmax()], abs=1e-4)
    assert found.gain == pytest.approx(values.max(), rel=1e-9)


def test_peaks_by_hand_and_their_absence() -> None:
    assert peak("bon", Coefficients(2.0, 0.5)) == Peak(2.0, 2.0)
    assert peak("rl", Coefficients(1.0, 1.0)) == Peak(1.0, 1.0)
    for kind in ("bon", "rl"):
        assert peak(kind, Coefficients(1.0, 0.0)) is None
        assert peak(kind, Coefficients(1.0, -0.2)) is None
    assert peak("bon", Coefficients(-1.0, 0.2)) is None
    assert peak("rl", Coefficients(1.0, 1e-5)) is None


def drawn(rng, kind, alpha, beta, units=40, noise=1.0, d=D):
    kl = [np.full(units, x * x) + rng.normal(0, 0.3, units) for x in d]
    level = rng.normal(3.0, 1.0, units)  # a prompt's own level, the same at every point
    gold = [level + g + rng.normal(0, noise, units) for g in curve(kind, d, alpha, beta)]
    return Points(kl, gold, level + rng.normal(0, noise, units), True)


@pytest.mark.parametrize(("kind", "alpha", "beta"), [("bon", 2.0, 0.4), ("rl", 1.0, 0.6)])
def test_intervals_cover_the_planted_coefficients(kind, alpha, beta) -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(100):
        found = fit_points(kind, drawn(rng, kind, alpha, beta), resamples=200)
        covered.append(
            (found.alpha.low <= alpha <= found.alpha.high, found.beta.low <= beta <= found.beta.high)
        )
    # 95% nominal; 100 studies have a standard error of 2.2%, and a percentile bootstrap of 40 units runs
    # a little short.
    assert np.all(np.mean(covered, 0) >= 0.88)


def test_a_clear_peak_is_found_with_its_fall() -> None:
    found = fit_points("bon", drawn(np.random.default_rng(1), "bon", 2.0, 0.4, units=200), resamples=500)
    assert found.peak_d.low < 2.5 < found.peak_d.high  # alpha / (2 beta)
    assert found.peak_gain.value == pytest.approx(2.5, abs=0.4)  # alpha^2 / (4 beta)
    # At d = 4 the planted gain is 4 (2 - 1.6) = 1.6.
    assert found.fall.low > 0 and found.fall.value == pytest.approx(0.9, abs=0.4)
    assert found.peak_share == 1.0 and found.largest_d == pytest.approx(4.0, abs=0.1)
    assert found.r_squared > 0.9


def test_no_peak_within_the_range_is_said_so() -> None:
    # The planted peak is at d = 20, far beyond the largest, 4.
    found = fit_points("bon", drawn(np.random.default_rng(2), "bon", 2.0, 0.05, units=200), resamples=300)
    assert (found.peak_d, found.peak_gain, found.fall) == (None, None, None)
    assert found.peak_share < 0.05


def test_unpaired_points_may_have_different_numbers_of_draws() -> None:
    rng = np.random.default_rng(3)
    sizes = [30, 60, 30, 45, 30, 30]
    kl = [np.full(size, x * x) for size, x in zip(sizes, D, strict=True)]
    gold = [
        5 + gain + rng.normal(0, 0.2, size)
        for size, gain in zip(sizes, curve("rl", D, 1.0, 0.6), strict=True)
    ]
    found = fit_points("rl", Points(kl, gold, 5 + rng.normal(0, 0.2, 80), False), resamples=300)
    assert found.alpha.low < 1.0 < found.alpha.high
    assert found.beta.low < 0.6 < found.beta.high


def test_one_unit_has_no_interval() -> None:
    points = Points(
        [np.array([x * x]) for x in D], [np.array([g]) for g in curve("rl", D, *PLANTED)], np.zeros(1), True
    )
    found = fit_points("rl", points)
    assert found.alpha.value == pytest.approx(2.0) and found.alpha.low is None
    assert found.peak_share == 0.0


def test_a_negative_kl_estimate_counts_as_none() -> None:
    points = Points(
        [np.array([-0.2, -0.1]), np.array([1.0, 1.0]), np.array([4.0, 4.0])],
        [np.array([9.0, 9.0]), np.array([10.0, 10.0]), np.array([11.0, 11.0])],
        np.array([9.0, 9.0]),
        True,
    )
    # Gains 1 at d = 1 and 2 at d = 2: alpha 1, beta 0.
    assert fit_points("bon", points, resamples=10).alpha.value == pytest.approx(1.0)
