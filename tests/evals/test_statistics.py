"""Intervals by hand, by closed form and by simulation."""

import math

import numpy as np
import pytest

from talltree.evals.results import Metric, metric_from_json
from talltree.evals.statistics import cluster_mean, jackknife, macro_average, ratio, share, wilson


def test_wilson_by_hand():
    # p = 0.8, n = 10, z = 1.959964: centre (0.8 + 0.192073) / 1.384146, half 0.232573... / 1.384146.
    z = 1.959963984540054
    scale = 1 + z * z / 10
    half = z * math.sqrt(0.016 + z * z / 400)
    low, high = wilson(8, 10)
    assert low == pytest.approx((0.8 + z * z / 20 - half) / scale, abs=1e-12)
    assert high == pytest.approx((0.8 + z * z / 20 + half) / scale, abs=1e-12)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))  # as in tables


def test_wilson_at_the_ends():
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1.0, abs=1e-15)
    assert wilson(0, 10)[1] == pytest.approx(0.2775, abs=1e-4)
    with pytest.raises(ValueError, match="0 items"):
        wilson(0, 0)


def test_a_macro_average_weighs_groups_alike():
    found = macro_average([[1.0] * 2, [0.0] * 98], "share")
    assert found == Metric(0.5, 0.5, 0.5, 100, "share")  # no spread within either


def test_the_macro_interval_agrees_with_its_normal_approximation():
    # Two groups of 400: variance of the mean (p q / 400) / 4 each.
    groups = [[1.0] * 100 + [0.0] * 300, [1.0] * 200 + [0.0] * 200]
    found = macro_average(groups, "share")
    error = math.sqrt((0.25 * 0.75 / 400 + 0.5 * 0.5 / 400) / 4)
    assert found.value == 0.375
    assert found.low == pytest.approx(0.375 - 1.96 * error, abs=0.05 * error + 1 / 800)  # its grid is 1/800
    assert found.high == pytest.approx(0.375 + 1.96 * error, abs=0.05 * error + 1 / 800)
    assert macro_average(groups, "share") == found  # a seed of its own
    with pytest.raises(ValueError, match="items in each"):
        macro_average([[1.0], []], "share")


def test_a_cluster_mean_by_enumeration():
    # Two clusters with means 0 and 1: resamples have means 0, 1/2, 1 with shares 1/4, 1/2, 1/4.
    assert cluster_mean([[0.0, 0.0], [1.0]], "x") == Metric(0.5, 0.0, 1.0, 3, "x")
    assert cluster_mean([[2.0, 4.0]], "x") == Metric(3.0, None, None, 2, "x")  # one: no spread to see
    with pytest.raises(ValueError, match="at least one cluster"):
        cluster_mean([], "x")


def test_the_jackknife_of_a_mean_is_its_t_interval():
    # For a mean the jackknife's standard error is exactly s / sqrt(n); n = 3, s = 1, t(2) = 4.3027.
    found = jackknife(lambda items: math.fsum(items) / len(items), [[1.0], [2.0], [3.0]], "x")
    half = 4.302652729911275 / math.sqrt(3)
    assert found == Metric(2.0, pytest.approx(2 - half), pytest.approx(2 + half), 3, "x")
    assert jackknife(len, [["a", "b"]], "x") == Metric(2, None, None, 2, "x")


def test_the_jackknife_leaves_out_blocks_of_whole_clusters():
    seen = []
    jackknife(lambda items: float(len(seen.append(tuple(items)) or items)), [[n] for n in range(40)], "x")
    assert len(seen) == 21  # everything, and 20 blocks of two clusters
    assert seen[1] == tuple(range(2, 40))
    assert seen[20] == tuple(range(38))


def test_a_jackknife_of_distinct_words_covers_where_a_bootstrap_does_not():
    """Sets of 30 texts of 20 words out of 200: what the measure is on average lies within most intervals."""
    draw = np.random.default_rng(0)
    measure = lambda texts: len({w for text in texts for w in text}) / sum(map(len, texts))  # noqa: E731
    sets = [[tuple(draw.integers(200, size=20)) for _ in range(30)] for _ in range(60)]
    truth = 200 * (1 - (1 - 1 / 200) ** 600) / 600  # expected different words of 600 draws
    found = [jackknife(measure, [[text] for text in texts], "x") for texts in sets]
    assert sum(each.low <= truth <= each.high for each in found) >= 51  # 57 expected of 60
    again = draw.integers(30, size=(200, 30))
    highest = np.quantile([measure([sets[0][at] for at in picks]) for picks in again], 0.975)
    assert highest < truth  # the bootstrap's whole interval lies below


def test_share_and_ratio():
    assert share(3, 4, "items") == Metric(0.75, *wilson(3, 4), 4, "items")
    found = ratio([2.0, 4.0], [2.0, 6.0], "nats / token", 2)
    assert found.value == 0.75  # as in test_diversity, by hand
    assert found.high == pytest.approx(0.75 + 12.7062 * 0.125, abs=1e-4)


def test_a_metric_goes_through_json():
    metric = Metric(0.5, None, None, 3, "share")
    assert metric_from_json(metric.as_json()) == metric


def test_the_interval_of_a_share_stays_between_0_and_1() -> None:
    from talltree.evals.results import Metric
    from talltree.evals.statistics import within_0_and_1

    assert within_0_and_1(Metric(0.9, 0.7, 1.1, 5, "share")) == (0.9, 0.7, 1.0, 5, "share")
    assert within_0_and_1(Metric(0.1, -0.2, 0.4, 5, "share"))[1:3] == (0.0, 0.4)
    assert within_0_and_1(Metric(0.1, None, None, 1, "share"))[1:3] == (None, None)
