"""Results of evaluate folders side by side: BLiMP pairs, documents, classified rows, or models of seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from talltree.data.documents import jsonl_rows
from talltree.errors import ConfigError, DataError
from talltree.evals import comparison
from talltree.evals.seeds import interval_words, over_seeds
from talltree.evals.verdict import verdict
from talltree.run import CONFIG, Run
from talltree.stages.compare.item_tables import Results, Table, tables
from talltree.stages.compare.sides import EVALUATE_MARK, Side


def read(sides: Sequence[Side]) -> list[Results]:
    """The models of evaluate folders in their order. Raises DataError for a folder that cannot be read.

    A folder with one model is called as the comparison calls it, otherwise its models keep their names, and
    those that were evaluated as seeds of one setting keep that.
    """
    found = []
    for side in sides:
        path = Path(side.source).expanduser() / EVALUATE_MARK
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            listed = [
                (str(each["name"]), {task: str(of["rows"]) for task, of in each["tasks"].items()})
                for each in content["models"]
            ]
            settings = {
                str(name): str(each["name"])
                for each in content.get("settings", [])
                for name in each["models"]
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not what evaluate writes ({type(error).__name__}: {error})") from None
        if side.setting != side.name and len(listed) != 1:
            raise ConfigError(
                f"{side.source} holds {len(listed)} models; a seed of {side.setting} is a folder with one"
            )
        options = Run.open(path.parent).config if (path.parent / CONFIG).is_file() else {}
        for name, tasks in listed:
            rows = {
                task: [dict(row) for _, row in jsonl_rows(path.parent / file)] for task, file in tasks.items()
            }
            if len(listed) == 1:
                found.append(Results(side.name, side.source, rows, options, side.setting))
            else:
                found.append(Results(name, side.source, rows, options, settings.get(name, name)))
    if found and len({each.setting for each in found}) < 2:
        raise ConfigError(
            f"{found[0].folder} holds one model; name a second evaluate folder to compare it with"
            if len(found) == 1
            else f"{found[0].setting} is alone: its models are seeds of one setting; name another one"
        )
    return found


def compare(found: Sequence[Results]) -> dict[str, Any]:
    """The first setting against each other one on every task that both have, a family of tests a table.

    Raises DataError for unequal items and items scored unlike, ConfigError where no task is shared.
    """
    settings: dict[str, list[Results]] = {}
    for each in found:
        settings.setdefault(each.setting, []).append(each)
    (first, left), *others = settings.items()
    against: dict[str, Any] = {}
    said: list[str] = []
    notes: list[str] = []
    left_out = []
    for other, right in others:
        made = tables(left, right)
        if not made.tables:
            raise ConfigError(
                f"{left[0].folder} and {right[0].folder} share no task that can be compared: "
                f"{', '.join(left[0].rows) or 'none'}, and {', '.join(right[0].rows) or 'none'}"
            )
        corrected = [Table(each.title, comparison.corrected(each.differences)) for each in made.tables]
        against[other] = [
            {
                "title": each.title,
                "differences": [comparison.as_json(difference) for difference in each.differences],
                "verdict": verdict(first, other, each.differences),
            }
            for each in corrected
        ]
        said += [f"{each['title']}: {' '.join(each['verdict'])}" for each in against[other]]
        left_out += [each._asdict() | {"against": other} for each in made.left_out]
        notes += [*(each.words for each in made.left_out), *made.notes]
    return {
        "models": list(settings),
        "against": against,
        "left_out": left_out,
        "verdict": said,
        "notes": [*_reading({name: len(models) for name, models in settings.items()}, against), *notes],
    }


def _reading(counts: dict[str, int], against: dict[str, Any]) -> list[str]:
    """What the intervals are over."""
    family = "Each table is a family of its own for Holm's correction."
    if max(counts.values()) > 1:
        kinds = [over_seeds([0.0] * count).kind for count in counts.values()]
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items())
        words = (
            f"{family} Where a setting has several models, each is one figure: intervals are over training "
            f"seeds ({listed} models): {interval_words(kinds)}; a setting of one model is taken as it is."
        )
    else:
        words = (
            f"Items are paired. {family} One model was trained on each side: the intervals leave out what "
            "training again would change."
        )
    found = [words]
    kinds = [
        difference["seeds"]["apart"]["kind"]
        for made in against.values()
        for table in made
        for difference in table["differences"]
        if difference["seeds"] is not None and difference["over"] != "training seeds"
    ]
    if kinds:
        found.append(
            "Fine-tuned tasks are compared by their own measures, means over fine-tuning seeds that both "
            f"sides have; over those seeds alone: {interval_words(kinds)}."
        )
    return found
