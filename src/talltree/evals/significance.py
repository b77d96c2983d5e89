"""Tests of a difference, and their correction where there are many. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

SIGNS = 10_000
"""Random sign patterns or permutations where there are too many to go through."""
EXACT = 14
"""Most differences whose 2^n sign patterns are all gone through."""
_ROUNDING = 1e-9
"""Relative slack in "at least as far from 0", so that a pattern's own rounding does not leave it out."""
_AT_A_TIME = 2**22


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value of paired differences (one a prompt): is their mean 0?

    The share of sign patterns whose |sum| is at least the observed one: all 2^n up to EXACT differences,
    else SIGNS random ones, (1 + as far) / (1 + SIGNS). Exact where the differences are symmetric around 0
    under the null hypothesis. 1 for none, and where all are 0. Fisher 1935.
    """
    values = np.asarray(differences, dtype=float)
    if not values.any():
        return 1.0
    reached = abs(float(values.sum())) - _ROUNDING * float(np.abs(values).sum())
    if len(values) <= EXACT:
        patterns = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
        return float(np.mean(np.abs((2 * patterns - 1) @ values) >= reached))
    generator = np.random.default_rng(seed)
    as_far = 0
    for size in _parts(SIGNS, len(values)):
        signs = 2 * generator.integers(2, size=(size, len(values)), dtype=np.int8) - 1
        as_far += int(np.sum(np.abs(signs @ values) >= reached))
    return (1 + as_far) / (1 + SIGNS)


def permutation(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]], seed: int = 0) -> float:
    """Two-sided p-value of mean over prompts (right's mean - left's mean), draws relabelled within a prompt.

    left, right: the values of each prompt, not paired within it. (1 + as far) / (1 + SIGNS) over SIGNS random
    relabellings: valid where the draws of a prompt are exchangeable between the sides under the null
    hypothesis, so it tests equal distributions. Raises ValueError for an empty prompt.
    """
    _check_prompts(left, right)
    generator = np.random.default_rng(seed)
    totals, observed, scale = np.zeros(SIGNS), 0.0, 0.0
    for before, after in zip(left, right, strict=True):
        pooled, split = np.array([*before, *after], dtype=float), len(before)
        weights = np.r_[np.full(split, -1 / split), np.full(len(after), 1 / len(after))]
        observed += float(weights @ pooled)
        scale += float(np.abs(pooled).mean())
        done = 0
        for size in _parts(SIGNS, len(pooled)):
            shuffled = generator.permuted(np.broadcast_to(pooled, (size, len(pooled))), axis=1)
            totals[done : done + size] += shuffled @ weights
            done += size
    as_far = int(np.sum(np.abs(totals) >= abs(observed) - _ROUNDING * scale))
    return (1 + as_far) / (1 + SIGNS)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value that items gained and lost are equally likely; 1 where there are neither.

    Binomial(gained + lost, 1/2). McNemar 1947.
    """
    changed = gained + lost
    return float(stats.binomtest(gained, changed, 0.5).pvalue) if changed else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order: the family is in error with at most the level.

    Sorted ascending, p_(i) becomes max over j <= i of min(1, (m - j) p_(j)), j from 0. Holds under any
    dependence. Holm 1979.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, reached = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        reached = max(reached, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = reached
    return adjusted


def within_prompts(
    left: Sequence[Sequence[float]],
    right: Sequence[Sequence[float]],
    resamples: int,
    confidence: float,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Bootstrap interval of mean over prompts (right's mean - left's mean) for exactly these prompts.

    Draws are resampled within each prompt and side, whose spread the percentiles are widened to
    (sqrt(n / (n - 1)), which matters where n is small). None where a prompt has one draw on a side.
    """
    _check_prompts(left, right)
    if min(map(len, (*left, *right))) < 2:
        return None
    generator = np.random.default_rng(seed)
    drawn = np.zeros(resamples)
    for groups, sign in ((left, -1.0), (right, 1.0)):
        for group in groups:
            values = np.asarray(group, dtype=float)
            mean, n = float(values.mean()), len(values)
            times = generator.multinomial(n, np.full(n, 1 / n), size=resamples)
            drawn += sign * (mean + math.sqrt(n / (n - 1)) * (times @ values / n - mean))
    low, high = np.quantile(drawn / len(left), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check_prompts(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> None:
    if not left or len(left) != len(right) or not all((*left, *right)):
        raise ValueError("both sides need the same prompts, at least one, with values for each")


def _parts(total: int, width: int) -> list[int]:
    """Sizes that add up to total, each small enough that size x width numbers fit in memory."""
    most = max(1, _AT_A_TIME // max(width, 1))
    return [min(most, total - start) for start in range(0, total, most)]
