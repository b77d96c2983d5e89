"""Results of evaluate folders side by side, item by item: BLiMP pairs, documents, classified rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from talltree.data.documents import jsonl_rows
from talltree.errors import ConfigError, DataError
from talltree.evals import comparison
from talltree.evals.comparison import Difference
from talltree.evals.verdict import verdict
from talltree.run import CONFIG, Run
from talltree.stages.compare.sides import EVALUATE_MARK, Side

Rows = list[dict[str, Any]]


ALIKE = {"blimp": ("leading_space",), "loss": ("stride", "end_token")}
"""Options of evaluate that change what is scored of equal items."""


class Results(NamedTuple):
    """What an evaluate folder says of one model: the rows of each task, and the options behind them."""

    name: str
    folder: str
    rows: dict[str, Rows]
    options: Mapping[str, Any]


class Table(NamedTuple):
    """Differences that are one family of tests: its title, and what each is about."""

    title: str
    differences: list[Difference]


def read(sides: Sequence[Side]) -> list[Results]:
    """The models of evaluate folders in their order. Raises DataError for a folder that cannot be read.

    A folder with one model is called as the comparison calls it, otherwise its models keep their names.
    """
    found = []
    for side in sides:
        path = Path(side.source).expanduser() / EVALUATE_MARK
        try:
            models = json.loads(path.read_text(encoding="utf-8"))["models"]
            listed = [
                (str(each["name"]), {task: str(of["rows"]) for task, of in each["tasks"].items()})
                for each in models
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not what evaluate writes ({type(error).__name__}: {error})") from None
        options = Run.open(path.parent).config if (path.parent / CONFIG).is_file() else {}
        for name, tasks in listed:
            rows = {
                task: [dict(row) for _, row in jsonl_rows(path.parent / file)] for task, file in tasks.items()
            }
            found.append(Results(side.name if len(listed) == 1 else name, side.source, rows, options))
    if found and len(found) < 2:
        raise ConfigError(
            f"{found[0].folder} holds one model; name a second evaluate folder to compare it with"
        )
    return found


def compare(found: Sequence[Results]) -> dict[str, Any]:
    """The first model against each other one on every task that both have, a family of tests a table.

    Raises DataError for unequal items and items scored unlike, ConfigError where no task is shared.
    """
    first, *others = found
    against = {}
    said = []
    for other in others:
        tables = _tables(first, other)
        if not tables:
            raise ConfigError(
                f"{first.folder} and {other.folder} share no task that can be compared: "
                f"{', '.join(first.rows) or 'none'}, and {', '.join(other.rows) or 'none'}"
            )
        tables = [Table(each.title, comparison.corrected(each.differences)) for each in tables]
        against[other.name] = [
            {
                "title": each.title,
                "differences": [comparison.as_json(difference) for difference in each.differences],
                "verdict": verdict(first.name, other.name, each.differences),
            }
            for each in tables
        ]
        said += [
            f"{each.title}: {' '.join(verdict(first.name, other.name, each.differences))}" for each in tables
        ]
    notes = [
        (
            "Items are paired. Each table is a family of its own for Holm's correction; one model was "
            "trained on each side, and seeds of fine-tuning are averaged: the intervals leave out what "
            "training or fine-tuning again would change."
        )
    ]
    return {"models": [each.name for each in found], "against": against, "verdict": said, "notes": notes}


def _tables(first: Results, other: Results) -> list[Table]:
    figures: list[Difference] = []
    tables = []
    for task in first.rows:
        if task not in other.rows or not first.rows[task] or not other.rows[task]:
            continue
        rows = first.rows[task], other.rows[task]
        where = f"{task} of {first.name} and {other.name}"
        _require_alike(task, first, other, where)
        if "paradigm" in rows[0][0]:
            overall, paradigms = _blimp(task, *rows, where)
            figures.append(overall)
            tables.append(Table(f"{task} by paradigm", paradigms))
        elif "bytes" in rows[0][0]:
            figures.append(_loss(task, *rows, where))
        elif "label" in rows[0][0]:
            figures += _accuracies(task, *rows, where)
    return [Table("Overall", figures), *tables] if figures else []


def _require_alike(task: str, first: Results, other: Results, where: str) -> None:
    one, two = (each.options.get(task) or {} for each in (first, other))
    for key in ALIKE.get(task, ()):
        if one.get(key) != two.get(key):
            raise DataError(
                f"{where} were scored unlike: {task}.{key} is {one.get(key)} and {two.get(key)}; evaluate "
                "both with one setting"
            )


def _blimp(task: str, left: Rows, right: Rows, where: str) -> tuple[Difference, list[Difference]]:
    pairs = _paired(left, right, where, ("paradigm", "item", "good", "bad"))
    groups: dict[str, tuple[list[float], list[float]]] = {}
    for before, after in pairs:
        if before["won"] is not None and after["won"] is not None:
            group = groups.setdefault(before["paradigm"], ([], []))
            group[0].append(before["won"])
            group[1].append(after["won"])
    if not groups:
        raise DataError(f"{where}: no pair was scored for both")
    one, two = ({name: group[place] for name, group in groups.items()} for place in (0, 1))
    overall = comparison.of_items(f"{task} overall", one, two)
    single = [comparison.of_items(name, {name: one[name]}, {name: two[name]}) for name in sorted(groups)]
    return overall, single


def _loss(task: str, left: Rows, right: Rows, where: str) -> Difference:
    pairs = _paired(left, right, where, ("document", "bytes"))
    one, two = ([pair[side]["nats"] / math.log(2) for pair in pairs] for side in (0, 1))
    size = [pair[0]["bytes"] for pair in pairs]
    return comparison.of_ratios(f"{task} bits per byte", "bits / byte", one, two, size, "documents")


def _accuracies(task: str, left: Rows, right: Rows, where: str) -> list[Difference]:
    """Of each part of a task for itself: what is scored beside the part that counts must not dilute it."""
    parts = dict.fromkeys(row["part"] for row in left)
    if parts != dict.fromkeys(row["part"] for row in right):
        raise DataError(f"{where} have unequal items: other parts; evaluate both on the same data")
    return [
        _accuracy(
            f"{task} {part} accuracy" if part else f"{task} accuracy",
            [row for row in left if row["part"] == part],
            [row for row in right if row["part"] == part],
            where,
        )
        for part in parts
    ]


def _accuracy(measure: str, left: Rows, right: Rows, where: str) -> Difference:
    """Share of right predictions, averaged over fine-tuning seeds; rows of one group are drawn together."""
    sides = [_right_by_item(rows) for rows in (left, right)]
    if sides[0].keys() != sides[1].keys():
        raise DataError(
            f"{where} have unequal items ({len(sides[0])} and {len(sides[1])}); evaluate both alike"
        )
    group = {_item(row): row["group"] for row in left}
    totals: dict[Any, list[float]] = {}
    for item, before in sides[0].items():
        total = totals.setdefault(group[item], [0.0, 0.0, 0.0])
        total[0] += before
        total[1] += sides[1][item]
        total[2] += 1
    one, two, size = ([total[place] for total in totals.values()] for place in range(3))
    return comparison.of_ratios(measure, "share of items", one, two, size, "items, grouped by text")


def _item(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["item"], row["label"]


def _right_by_item(rows: Rows) -> dict[tuple[Any, ...], float]:
    found: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        found.setdefault(_item(row), []).append(float(row["prediction"] == row["label"]))
    return {item: sum(each) / len(each) for item, each in found.items()}


def _paired(
    left: Rows, right: Rows, where: str, keys: Sequence[str]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    if len(left) != len(right):
        raise DataError(
            f"{where} have unequal items ({len(left)} and {len(right)}); evaluate both on the same data"
        )
    for number, (before, after) in enumerate(zip(left, right, strict=True), 1):
        for key in keys:
            if before.get(key) != after.get(key):
                raise DataError(
                    f"{where} have unequal items: in row {number} {key} is {str(before.get(key))[:40]!r} and "
                    f"{str(after.get(key))[:40]!r}; evaluate both on the same data"
                )
    return list(zip(left, right, strict=True))
