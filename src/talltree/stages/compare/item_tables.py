"""Tables of differences from the rows of evaluate: paired item by item, or over models of several seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from talltree.errors import DataError
from talltree.evals import comparison
from talltree.evals.classification_pairs import classes_of, paired, value_of
from talltree.evals.comparison import Difference, Seeds
from talltree.evals.finetune import TASKS, measures_of
from talltree.evals.seeds import over_seeds

Rows = list[dict[str, Any]]
BY_SEED = dict[Any, Rows]
"""Rows of each fine-tuning seed, items in one order."""

ALIKE = {"blimp": ("leading_space",), "loss": ("stride", "end_token")}
"""Options of evaluate that change what is scored of equal items."""
NOT_COMPARED = ("seeds", "device")
"""Options of fine-tuning in which models may differ without a word."""


class Results(NamedTuple):
    """What an evaluate folder says of one model: the rows of each task, and the options behind them.

    setting: what the model is a training seed of; its own name where it stands for itself.
    """

    name: str
    folder: str
    rows: dict[str, Rows]
    options: Mapping[str, Any]
    setting: str


class LeftOut(NamedTuple):
    """Pairs of BLiMP that some model could not score, so that none is compared on them."""

    task: str
    pairs: int
    left_out: int
    too_long: dict[str, int]
    empty: list[str]

    @property
    def words(self) -> str:
        """How many, and for whom."""
        listed = ", ".join(f"{count:,} for {name}" for name, count in self.too_long.items() if count)
        gone = f"; no pair is left of {', '.join(self.empty)}" if self.empty else ""
        return (
            f"{self.task}: {self.left_out:,} of {self.pairs:,} pairs have a sentence longer than a model's "
            f"context ({listed}) and are left out for all of them, so figures may differ from "
            f"evaluate's{gone}."
        )


class Table(NamedTuple):
    """Differences that are one family of tests: its title, and what each is about."""

    title: str
    differences: list[Difference]


class Tables(NamedTuple):
    """The tables of two settings, what was left out of them, and what else a reader has to know."""

    tables: list[Table]
    left_out: list[LeftOut]
    notes: list[str]


def tables(left: Sequence[Results], right: Sequence[Results]) -> Tables:
    """The first setting's models against another's, on every task that all have.

    Models that stand for themselves are paired item by item; where a setting has several, each model is one
    figure. Raises DataError for unequal items and items scored unlike.
    """
    models = [*left, *right]
    figures: list[Difference] = []
    more: list[Table] = []
    left_out: list[LeftOut] = []
    notes: list[str] = []
    for task in models[0].rows:
        if any(not each.rows.get(task) for each in models):
            continue
        for other in models[1:]:
            _require_alike(task, models[0], other)
        first = models[0].rows[task][0]
        if "paradigm" in first:
            missing, groups = _blimp_groups(task, models)
            left_out += [missing] if missing.left_out else []
            overall, paradigms = _blimp(task, groups, len(left), models)
            figures.append(overall)
            more.append(Table(f"{task} by paradigm", paradigms))
        elif "bytes" in first:
            figures.append(_loss(task, models, len(left)))
        elif "label" in first:
            figures += _classified(task, models, len(left))
            notes += _unlike(task, models)
    return Tables([Table("Overall", figures), *more] if figures else [], left_out, notes)


def _where(task: str, one: Results, other: Results) -> str:
    return f"{task} of {one.name} and {other.name}"


def _require_alike(task: str, first: Results, other: Results) -> None:
    one, two = (each.options.get(task) or {} for each in (first, other))
    for key in ALIKE.get(task, ()):
        if one.get(key) != two.get(key):
            raise DataError(
                f"{_where(task, first, other)} were scored unlike: {task}.{key} is {one.get(key)} and "
                f"{two.get(key)}; evaluate both with one setting"
            )


def _require_equal(task: str, models: Sequence[Results], keys: Sequence[str]) -> None:
    first = models[0]
    for other in models[1:]:
        where, left, right = _where(task, first, other), first.rows[task], other.rows[task]
        if len(left) != len(right):
            raise DataError(
                f"{where} have unequal items ({len(left)} and {len(right)}); evaluate both on the same data"
            )
        for number, (before, after) in enumerate(zip(left, right, strict=True), 1):
            for key in keys:
                if before.get(key) != after.get(key):
                    raise DataError(
                        f"{where} have unequal items: in row {number} {key} is {str(before.get(key))[:40]!r} "
                        f"and {str(after.get(key))[:40]!r}; evaluate both on the same data"
                    )


def _of_models(
    measure: str, unit: str, models: Sequence[Results], values: Sequence[float], count: int
) -> Difference:
    """The figures of models, the first `count` of them on the left."""
    named = [
        (each.name.removeprefix(f"{each.setting}/"), value)
        for each, value in zip(models, values, strict=True)
    ]
    return comparison.of_seeds(measure, unit, dict(named[:count]), dict(named[count:]))


# BLiMP


Groups = dict[str, list[list[float]]]
"""Paradigm -> for each model the pairs won, of the pairs that all scored."""


def _blimp_groups(task: str, models: Sequence[Results]) -> tuple[LeftOut, Groups]:
    _require_equal(task, models, ("paradigm", "item", "good", "bad"))
    groups: Groups = {}
    left_out = 0
    for rows in zip(*(each.rows[task] for each in models), strict=True):
        group = groups.setdefault(rows[0]["paradigm"], [[] for _ in models])
        if any(row["won"] is None for row in rows):
            left_out += 1
            continue
        for won, row in zip(group, rows, strict=True):
            won.append(row["won"])
    too_long = {each.name: sum(row["won"] is None for row in each.rows[task]) for each in models}
    empty = [name for name, group in groups.items() if not group[0]]
    found = {name: group for name, group in groups.items() if group[0]}
    if not found:
        raise DataError(f"{_where(task, *models[:2])}: no pair was scored for both")
    return LeftOut(task, len(models[0].rows[task]), left_out, too_long, empty), found


def _blimp(
    task: str, groups: Groups, count: int, models: Sequence[Results]
) -> tuple[Difference, list[Difference]]:
    names = sorted(groups)
    if len(models) > 2:
        means = {name: [math.fsum(won) / len(won) for won in groups[name]] for name in names}
        average = [math.fsum(means[name][at] for name in names) / len(names) for at in range(len(models))]
        unit = "share of items"
        return _of_models(f"{task} overall", unit, models, average, count), [
            _of_models(name, unit, models, means[name], count) for name in names
        ]
    one, two = ({name: group[side] for name, group in groups.items()} for side in (0, 1))
    overall = comparison.of_items(f"{task} overall", one, two)
    return overall, [comparison.of_items(name, {name: one[name]}, {name: two[name]}) for name in names]


# Held-out loss


def _loss(task: str, models: Sequence[Results], count: int) -> Difference:
    _require_equal(task, models, ("document", "bytes"))
    bits = [[row["nats"] / math.log(2) for row in each.rows[task]] for each in models]
    size = [row["bytes"] for row in models[0].rows[task]]
    measure, unit = f"{task} bits per byte", "bits / byte"
    if len(models) > 2:
        return _of_models(measure, unit, models, [math.fsum(each) / sum(size) for each in bits], count)
    return comparison.of_ratios(measure, unit, bits[0], bits[1], size, "documents")


# Fine-tuned classifiers


def _classified(task: str, models: Sequence[Results], count: int) -> list[Difference]:
    """By the task's own measures, of each part for itself: a part beside must not dilute what counts."""
    parts = list(dict.fromkeys(row["part"] for row in models[0].rows[task]))
    for other in models[1:]:
        if set(parts) != {row["part"] for row in other.rows[task]}:
            raise DataError(
                f"{_where(task, models[0], other)} have unequal items: other parts; evaluate both on the "
                "same data"
            )
    measures = measures_of(task) if task in TASKS else ("accuracy",)
    found = []
    for part in parts:
        sides = _aligned(task, part, models)
        classes = classes_of(*(list(side.values()) for side in sides))
        for measure in measures:
            name = " ".join(each for each in (task, part, measure) if each)
            if len(models) > 2:
                values = [value_of(measure, list(side.values()), classes) for side in sides]
                unit = "correlation" if measure == "matthews" else "share"
                found.append(_of_models(name, unit, models, values, count))
            else:
                found.append(_pair(name, measure, sides[0], sides[1], classes))
    return found


def _pair(name: str, measure: str, left: BY_SEED, right: BY_SEED, classes: int) -> Difference:
    """Two models: groups of items drawn anew, and fine-tuning seeds with them."""
    pair = paired(measure, list(left.values()), list(right.values()), classes)
    apart = [two - one for one, two in zip(pair.left_by_seed, pair.right_by_seed, strict=True)]
    names = [str(seed) for seed in left]
    seeds = Seeds(
        dict(zip(names, pair.left_by_seed, strict=True)),
        dict(zip(names, pair.right_by_seed, strict=True)),
        over_seeds(apart),
    )
    over = "items, grouped by text" + (", and fine-tuning seeds" if len(names) > 1 else "")
    test = "exchanges of items between the models"
    return Difference(
        name, pair.left, pair.right, pair.difference, pair.p_value, None, pair.groups, over, test, seeds
    )


def _aligned(task: str, part: str, models: Sequence[Results]) -> list[BY_SEED]:
    """The rows of a part by fine-tuning seed, in the order of the first model's first seed."""
    sides: list[dict[Any, dict[Any, dict[str, Any]]]] = []
    for each in models:
        by_seed: dict[Any, dict[Any, dict[str, Any]]] = {}
        for row in each.rows[task]:
            if row["part"] == part:
                by_seed.setdefault(row["seed"], {})[row["item"], row["label"]] = row
        sides.append(dict(sorted(by_seed.items())))
    order = list(next(iter(sides[0].values())))
    for each, side in zip(models, sides, strict=True):
        where = _where(task, models[0], each)
        if list(side) != list(sides[0]):
            one, two = (", ".join(map(str, seeds)) for seeds in (sides[0], side))
            raise DataError(
                f"{where} were fine-tuned with other seeds ({one} and {two}); evaluate both with the same "
                "--finetune.seeds"
            )
        for items in side.values():
            if items.keys() != set(order):
                raise DataError(
                    f"{where} have unequal items ({len(order)} and {len(items)}); evaluate both alike"
                )
    return [{seed: [items[at] for at in order] for seed, items in side.items()} for side in sides]


def _unlike(task: str, models: Sequence[Results]) -> list[str]:
    """Which options of fine-tuning differ: that is allowed, and a reader has to know it."""
    options = [each.options.get("finetune") or {} for each in models]
    differ = [
        f"{key} {', '.join(str(each.get(key)) for each in options)}"
        for key in sorted({key for each in options for key in each} - set(NOT_COMPARED))
        if all(options) and any(each.get(key) != options[0].get(key) for each in options)
    ]
    names = ", ".join(each.name for each in models)
    return [f"{task} of {names} was fine-tuned with unlike settings: {'; '.join(differ)}."] if differ else []
