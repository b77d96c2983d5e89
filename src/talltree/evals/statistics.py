"""Intervals, all at 95%: Wilson's for shares, the bootstrap for means, the jackknife for sets of texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from scipy import stats

from talltree.evals.results import Metric
from talltree.evals.samples import ratio_interval

T = TypeVar("T")

CONFIDENCE = 0.95
RESAMPLES = 10_000
JACKKNIFE_BLOCKS = 20


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of the share successes / n; a tie may count as half a success.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). Raises ValueError for n < 1. Wilson 1927.
    """
    if n < 1:
        raise ValueError(f"a share of {n} items has no interval")
    z, share = float(stats.norm.ppf((1 + CONFIDENCE) / 2)), successes / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def share(successes: float, n: int, unit: str) -> Metric:
    """The share successes / n with Wilson's interval."""
    return Metric(successes / n, *wilson(successes, n), n, unit)


def macro_average(groups: Sequence[Sequence[float]], unit: str, seed: int = 0) -> Metric:
    """Mean over groups of the mean of each group's items; items are drawn anew within each group.

    The groups themselves are fixed: the interval is for other items of the same groups. Percentile bootstrap
    of RESAMPLES draws. n counts items. Raises ValueError for no groups or an empty one. Efron 1979.
    """
    if not groups or not all(groups):
        raise ValueError("a macro average needs at least one group, and items in each")
    generator = np.random.default_rng(seed)
    drawn = np.zeros(RESAMPLES)
    for group in groups:
        # Drawing n items with replacement draws how often each distinct value comes.
        values, counts = np.unique(np.asarray(group, dtype=float), return_counts=True)
        times = generator.multinomial(len(group), counts / len(group), size=RESAMPLES)
        drawn += times @ values / len(group)
    value = math.fsum(math.fsum(group) / len(group) for group in groups) / len(groups)
    low, high = _percentiles(drawn / len(groups))
    return Metric(value, low, high, sum(map(len, groups)), unit)


def cluster_mean(clusters: Sequence[Sequence[float]], unit: str, seed: int = 0) -> Metric:
    """Mean over clusters (prompts) of the mean within each; whole clusters are drawn anew.

    Percentile bootstrap of RESAMPLES draws; low and high are None for one cluster. n counts items. Raises
    ValueError for no clusters or an empty one.
    """
    if not clusters or not all(clusters):
        raise ValueError("a mean over clusters needs at least one cluster, and items in each")
    means = np.array([math.fsum(cluster) / len(cluster) for cluster in clusters])
    n = sum(map(len, clusters))
    if len(means) < 2:
        return Metric(float(means[0]), None, None, n, unit)
    generator = np.random.default_rng(seed)
    picks = generator.integers(len(means), size=(RESAMPLES, len(means)))
    low, high = _percentiles(means[picks].mean(1))
    return Metric(math.fsum(means) / len(means), low, high, n, unit)


def ratio(numerators: Sequence[float], denominators: Sequence[float], unit: str, n: int) -> Metric:
    """Sum of numerators / sum of denominators over clusters, with `samples.ratio_interval`."""
    found = ratio_interval(numerators, denominators, CONFIDENCE)
    assert found["mean"] is not None
    return Metric(found["mean"], found["low"], found["high"], n, unit)


def jackknife(measure: Callable[[Sequence[T]], float], clusters: Sequence[Sequence[T]], unit: str) -> Metric:
    """A measure of a whole set of texts, with a delete-a-block jackknife interval over clusters (prompts).

    The blocks are at most JACKKNIFE_BLOCKS runs of clusters, left out in turn: se^2 = (b-1)/b * sum of
    (value without block - their mean)^2, and the interval is value -+ t(b-1) se. A bootstrap would draw a
    prompt twice and count its texts as duplicates of themselves. None, None for one cluster. Tukey 1958.
    """
    everything = [item for cluster in clusters for item in cluster]
    value = measure(everything)
    count = min(len(clusters), JACKKNIFE_BLOCKS)
    if count < 2:
        return Metric(value, None, None, len(everything), unit)
    edges = [round(block * len(clusters) / count) for block in range(count + 1)]
    without = [
        measure([item for cluster in (*clusters[:start], *clusters[stop:]) for item in cluster])
        for start, stop in zip(edges, edges[1:], strict=False)
    ]
    middle = math.fsum(without) / count
    error = math.sqrt((count - 1) / count * math.fsum((each - middle) ** 2 for each in without))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return Metric(value, value - half, value + half, len(everything), unit)


def within_0_and_1(metric: Metric) -> Metric:
    """The interval of a share, which a t interval may leave, kept to what a share can be."""
    if metric.low is None or metric.high is None:
        return metric
    return metric._replace(low=max(metric.low, 0.0), high=min(metric.high, 1.0))


def _percentiles(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
