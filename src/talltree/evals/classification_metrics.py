"""Measures of a classifier from its confusions, with bootstrap intervals over groups of items and over seeds.

Every measure is a function of counts (..., K, K), [label, prediction], so that it is computed on thousands of
resamples at once; exact match is one of counts (..., 2): blocks that are wholly right, blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talltree.evals.results import Metric

Array = NDArray[np.float64]

DRAWS = 2000
CHUNK = 50


def accuracy(counts: Array) -> Array:
    """Share of right predictions; 0 for no items."""
    return _share(np.trace(counts, axis1=-2, axis2=-1), counts.sum((-2, -1)))


def f1(counts: Array) -> Array:
    """2 tp / (2 tp + fp + fn) of label 1; 0 where nothing is, or is called, 1."""
    return _class_f1(counts)[..., 1]


def macro_f1(counts: Array) -> Array:
    """The mean F1 of the classes that occur as label or prediction; 0 for no items."""
    occurs = (counts.sum(-1) + counts.sum(-2)) > 0
    return _share((_class_f1(counts) * occurs).sum(-1), occurs.sum(-1).astype(float))


def matthews(counts: Array) -> Array:
    """Matthews correlation: (tp tn - fp fn) / sqrt((tp + fp)(tp + fn)(tn + fp)(tn + fn)) for two classes.

    For more it is their generalisation, Gorodkin's R_K. 0 where all labels or all predictions are one class.
    """
    total = counts.sum((-2, -1))
    labels, predicted = counts.sum(-1), counts.sum(-2)
    right = np.trace(counts, axis1=-2, axis2=-1)
    covariance = right * total - (labels * predicted).sum(-1)
    spread = np.sqrt(total**2 - (labels**2).sum(-1)) * np.sqrt(total**2 - (predicted**2).sum(-1))
    return _share(covariance, spread)


def exact_match(counts: Array) -> Array:
    """Share of blocks all of whose items are right; 0 for no blocks."""
    return _share(counts[..., 0], counts[..., 1])


MEASURES: dict[str, Callable[[Array], Array]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "exact_match": exact_match,
}
UNITS = {"matthews": "correlation"}
"""Of the measures that are not shares from 0 to 1."""


def confusion(labels: Sequence[int], predictions: Sequence[int], classes: int) -> Array:
    """Counts (K, K): [label, prediction]."""
    counts = np.zeros((classes, classes))
    np.add.at(counts, (list(labels), list(predictions)), 1)
    return counts


def summarise(
    name: str, by_seed: Sequence[Sequence[Mapping[str, Any]]], classes: int, generator: np.random.Generator
) -> Metric:
    """A measure over rows of {group, block, label, prediction}, the same items for each seed.

    The value is the mean over seeds. The interval is a percentile bootstrap: groups of items are drawn with
    replacement, and so are seeds where there are several. low and high are None where the resamples do not
    differ, as for one group or for a classifier without an error.
    """
    groups = group_numbers(by_seed[0])
    counts_SGK = counts_by_group(name, by_seed, groups, classes)
    figures = resampled(name, [counts_SGK], generator)[0]
    return metric_of(name, float(by_seed_values(name, counts_SGK).mean()), figures, len(by_seed[0]))


def group_numbers(rows: Sequence[Mapping[str, Any]]) -> dict[Any, int]:
    """The groups of items, numbered in the order in which they first come."""
    found: dict[Any, int] = {}
    for row in rows:
        found.setdefault(row["group"], len(found))
    return found


def counts_by_group(
    name: str, by_seed: Sequence[Sequence[Mapping[str, Any]]], groups: Mapping[Any, int], classes: int
) -> Array:
    """What a measure is a function of, for each seed and group: (S, G, K, K), for exact match (S, G, 2)."""
    return np.stack([_group_counts(name, rows, groups, classes) for rows in by_seed])


def by_seed_values(name: str, counts_SGK: Array) -> Array:
    """The measure of each seed, (S,)."""
    return MEASURES[name](counts_SGK.sum(1))


def resampled(name: str, sides: Sequence[Array], generator: np.random.Generator) -> list[Array]:
    """DRAWS resampled means over seeds for each side's counts_SGK, with the same draws for all of them.

    Groups are drawn with replacement, and so are seeds where there are several: those of one place in each
    side together.
    """
    seeds, size = sides[0].shape[:2]
    figures: list[list[Array]] = [[] for _ in sides]
    for start in range(0, DRAWS, CHUNK):
        draws = min(CHUNK, DRAWS - start)
        drawn = generator.integers(size, size=(draws, size))
        weight_BG = np.stack([np.bincount(row, minlength=size) for row in drawn]).astype(float)
        chosen_BS = generator.integers(seeds, size=(draws, seeds))
        for found, counts_SGK in zip(figures, sides, strict=True):
            flat = counts_SGK.reshape(seeds, size, -1)
            sums = np.einsum("bg,sgk->bsk", weight_BG, flat).reshape(draws, seeds, *counts_SGK.shape[2:])
            found.append(np.take_along_axis(MEASURES[name](sums), chosen_BS, axis=1).mean(1))
    return [np.concatenate(each) for each in figures]


def metric_of(name: str, value: float, figures: Array, items: int) -> Metric:
    """A value with the percentiles of its resamples, without them where no resample differs."""
    low, high = (float(bound) for bound in np.quantile(figures, [0.025, 0.975]))
    unit = UNITS.get(name, "share")
    return Metric(value, None, None, items, unit) if low == high else Metric(value, low, high, items, unit)


def _group_counts(
    name: str, rows: Sequence[Mapping[str, Any]], groups: Mapping[Any, int], classes: int
) -> Array:
    """Counts of each group: (G, K, K), for exact match (G, 2)."""
    if name == "exact_match":
        blocks: dict[Any, tuple[int, bool]] = {}
        for row in rows:
            _, right = blocks.get(row["block"], (0, True))
            blocks[row["block"]] = (groups[row["group"]], right and row["label"] == row["prediction"])
        matches = np.zeros((len(groups), 2))
        for group, right in blocks.values():
            matches[group] += (right, 1)
        return matches
    counts = np.zeros((len(groups), classes, classes))
    for row in rows:
        counts[groups[row["group"]], row["label"], row["prediction"]] += 1
    return counts


def _class_f1(counts: Array) -> Array:
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    return _share(2 * right, counts.sum(-1) + counts.sum(-2))


def _share(part: Array, whole: Array) -> Array:
    """The quotient, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole > 0)
