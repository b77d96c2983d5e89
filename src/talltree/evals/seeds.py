"""A figure over several seeds, light enough for a report: no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

CONFIDENCE = 0.95
CERTAIN = 3
"""From so many seeds on there is an interval."""


class OverSeeds(NamedTuple):
    """The mean over n seeds with its interval; `kind`: "t" (95%), "range" (lowest, highest), "" for none."""

    mean: float
    low: float | None
    high: float | None
    n: int
    kind: str


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """The mean with the 95% t interval from three seeds on, the range for two, and no interval for one.

    Two seeds have a t interval as well, of 12.7 standard errors either way: it says less than the two values.
    """
    n, mean = len(values), sum(values) / len(values)
    if n == 1:
        return OverSeeds(mean, None, None, 1, "")
    if n < CERTAIN:
        return OverSeeds(mean, min(values), max(values), 2, "range")
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    half = _quantile(n - 1) * math.sqrt(variance / n)
    return OverSeeds(mean, mean - half, mean + half, n, "t")


def interval_words(kinds: Sequence[str]) -> str:
    """What the intervals are, in a sentence, for figures of these kinds."""
    found = [kind for kind in ("t", "range", "") if kind in kinds]
    words = {
        "t": "95% t interval over seeds",
        "range": "range of two seeds",
        "": "one seed, so no interval",
    }
    return "; ".join(words[kind] for kind in found)


@cache
def _quantile(freedom: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
