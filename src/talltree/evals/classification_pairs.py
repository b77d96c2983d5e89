"""Two classifiers on the same items, by the task's own measure: difference, interval, and a test.

Correlations and F1 are no means over items, so their difference is neither: both are computed anew from every
resample, and in the test from every exchange of the two sides' predictions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from talltree.evals.classification_metrics import (
    MEASURES,
    Array,
    by_seed_values,
    counts_by_group,
    group_numbers,
    metric_of,
    resampled,
)
from talltree.evals.results import Metric
from talltree.evals.significance import EXACT, SIGNS

CHUNK = 250
_ROUNDING = 1e-12

Rows = Sequence[Mapping[str, Any]]


class Pair(NamedTuple):
    """right - left of a measure; values of each seed on both sides; groups of items."""

    left: Metric
    right: Metric
    difference: Metric
    p_value: float
    left_by_seed: list[float]
    right_by_seed: list[float]
    groups: int


def paired(name: str, left: Sequence[Rows], right: Sequence[Rows], classes: int, seed: int = 0) -> Pair:
    """A measure of two classifiers over rows of {group, block, label, prediction}, seed by seed.

    Both sides have the same items and as many seeds, those of one place belonging together. The sides'
    figures are those of `classification_metrics.summarise`, the difference has the same draws of groups and
    seeds. The test exchanges the predictions of the two sides, group by group, those of all seeds at once:
    the share of exchanges whose |difference| is at least the observed one.
    """
    groups = group_numbers(left[0])
    sides = [counts_by_group(name, rows, groups, classes) for rows in (left, right)]
    values = [by_seed_values(name, counts) for counts in sides]
    drawn = resampled(name, sides, np.random.default_rng(0))
    items = len(left[0])
    one, two = (
        metric_of(name, float(found.mean()), figures, items)
        for found, figures in zip(values, drawn, strict=True)
    )
    apart = float(values[1].mean() - values[0].mean())
    difference = metric_of(name, apart, drawn[1] - drawn[0], items)
    if difference.low is None and len(groups) > 1:  # every group differs alike, or not at all
        difference = difference._replace(low=apart, high=apart)
    p_value = exchanged(name, sides[0], sides[1], seed)
    return Pair(one, two, difference, p_value, values[0].tolist(), values[1].tolist(), len(groups))


def exchanged(name: str, left_SGK: Array, right_SGK: Array, seed: int = 0) -> float:
    """Two-sided p-value of equal predictions: the sides of each group of items exchanged at random.

    All 2^n patterns of the n groups in which the sides differ, up to EXACT of them, else SIGNS random ones,
    (1 + as far) / (1 + SIGNS). 1 where they differ in none. Of accuracy with groups of one item and one seed
    it is McNemar's exact test.
    """
    changed = np.any(left_SGK != right_SGK, axis=(0, *range(2, left_SGK.ndim)))
    count = int(changed.sum())
    if not count:
        return 1.0
    by_group = np.swapaxes((right_SGK - left_SGK)[:, changed], 0, 1).reshape(count, -1)
    whole_left, whole_right = left_SGK.sum(1), right_SGK.sum(1)
    measure = MEASURES[name]
    observed = abs(float((measure(whole_right) - measure(whole_left)).mean()))
    as_far = tried = 0
    for pattern_BG in _patterns(count, seed):
        moved = (pattern_BG @ by_group).reshape(len(pattern_BG), *whole_left.shape)
        apart = (measure(whole_right - moved) - measure(whole_left + moved)).mean(1)
        as_far += int(np.sum(np.abs(apart) >= observed - _ROUNDING))
        tried += len(pattern_BG)
    return as_far / tried if count <= EXACT else (1 + as_far) / (1 + tried)


def _patterns(count: int, seed: int) -> Iterator[Array]:
    """Which groups are exchanged, some patterns at a time, as 0 and 1."""
    total = 2**count if count <= EXACT else SIGNS
    generator = np.random.default_rng(seed)
    for start in range(0, total, CHUNK):
        size = min(CHUNK, total - start)
        if count <= EXACT:
            yield (np.arange(start, start + size)[:, None] >> np.arange(count) & 1).astype(float)
        else:
            yield generator.integers(2, size=(size, count)).astype(float)


def classes_of(*sides: Sequence[Rows]) -> int:
    """The number of classes that rows name, as label or prediction, at least 2."""
    named = (max(row["label"], row["prediction"]) for side in sides for rows in side for row in rows)
    return max(2, 1 + math.floor(max(named)))


def value_of(name: str, by_seed: Sequence[Rows], classes: int) -> float:
    """A measure's mean over seeds."""
    return float(
        by_seed_values(name, counts_by_group(name, by_seed, group_numbers(by_seed[0]), classes)).mean()
    )
