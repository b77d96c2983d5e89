"""Ratios of repeated timings, with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple


class Spread(NamedTuple):
    """Least, median and greatest of some figures."""

    low: float
    median: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Least, median and greatest. Raises ValueError for no values."""
    return Spread(min(values), statistics.median(values), max(values))


def paired(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Spread:
    """Spread of theirs / ours over pairs: step k of their round r with step k of our round r.

    Rounds stand next to each other in time, so a slow spell of the machine meets both sides of a pair. Above
    1: ours takes less. Raises ValueError where rounds or steps do not pair up.
    """
    return spread(
        [
            slow / fast
            for mine, other in zip(ours, theirs, strict=True)
            for fast, slow in zip(mine, other, strict=True)
        ]
    )


def median_phases(steps: Sequence[dict[str, dict[str, float]]]) -> dict[str, float]:
    """Median seconds of each phase over steps that have the same phases under `phases`."""
    return {name: statistics.median(step["phases"][name] for step in steps) for name in steps[0]["phases"]}


def fastest(measurements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The best figures of several measurements of one machine: noise only ever slows it down."""
    joined = dict(measurements[0])
    for key in ("matrix_rate", "copy", "stream_layers", "stream_head", "bandwidth"):
        joined[key] = max(each[key] for each in measurements)
    joined["squares"] = {n: max(each["squares"][n] for each in measurements) for n in joined["squares"]}
    return joined
