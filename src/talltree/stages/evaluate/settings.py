"""Models that are training seeds of one setting: their figures, and what is known over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from talltree.evals.seeds import over_seeds
from talltree.stages.evaluate.models import Place


def settings(models: Sequence[Place], entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each setting of several models: name, models, and of every task all metrics that all of them have.

    entries: what results.json says of the models so far. A metric has the value of each model, and mean, low,
    high, n and kind as `evals.seeds.over_seeds` gives them.
    """
    of_setting: dict[str, list[str]] = {}
    for each in models:
        if each.setting is not None:
            of_setting.setdefault(each.setting, []).append(each.label)
    by_name = {entry["name"]: entry for entry in entries}
    return [
        {"name": name, "models": labels, "tasks": _tasks([by_name[label] for label in labels])}
        for name, labels in of_setting.items()
        if all(label in by_name for label in labels)
    ]


def _tasks(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    first = entries[0]["tasks"]
    found: dict[str, dict[str, Any]] = {}
    for task in (name for name in first if all(name in entry["tasks"] for entry in entries)):
        metrics = [entry["tasks"][task]["metrics"] for entry in entries]
        found[task] = {
            name: {
                "values": {
                    entry["name"]: of[name]["value"] for entry, of in zip(entries, metrics, strict=True)
                },
                **over_seeds([of[name]["value"] for of in metrics])._asdict(),
                "unit": metrics[0][name]["unit"],
            }
            for name in metrics[0]
            if all(name in of for of in metrics)
        }
    return found
