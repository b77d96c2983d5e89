"""What an evaluation returns: named metrics with intervals, and the row of every item behind them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Metric(NamedTuple):
    """A figure with its 95% interval over `n` items, both in `unit`.

    low and high are None where no spread can be known, as with one item or one seed.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    unit: str

    def as_json(self) -> dict[str, Any]:
        return self._asdict()


class TaskResult(NamedTuple):
    """Metrics by name, e.g. "accuracy" or "agreement/accuracy", a row per item, and notes in words.

    A row is JSON: text, numbers, booleans, None, lists and mappings of them. A note says in a sentence what a
    reader of the figures has to know, such as how many items were longer than the context. by_seed: of
    metrics that are means over fine-tunings, the value of each seed.
    """

    metrics: dict[str, Metric]
    rows: list[dict[str, Any]]
    notes: tuple[str, ...] = ()
    by_seed: Mapping[str, Mapping[str, float]] = MappingProxyType({})


def metric_from_json(given: Mapping[str, Any]) -> Metric:
    """The inverse of `Metric.as_json`. Raises KeyError for a field that is not there."""
    return Metric(given["value"], given["low"], given["high"], given["n"], given["unit"])
