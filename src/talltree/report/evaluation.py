"""The page of an evaluation: tables with intervals and small multiples, one HTML file without a script."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from talltree import checkpoint
from talltree.evals.seeds import interval_words
from talltree.report.dots import dots
from talltree.report.frame import frame
from talltree.report.html import folded, section, svg_image, table, text
from talltree.report.words import number, share

RESULTS, REPORT = "results.json", "report.html"

Results = Mapping[str, Any]
"""The content of an evaluate folder's results.json."""

ABOUT = {
    "loss": (
        "Held-out loss",
        "How well the model foresees texts that it has not been trained on; lower is better.",
    ),
    "blimp": (
        "BLiMP",
        "Share of minimal pairs in which the grammatical sentence is the more probable one; 50% is chance.",
    ),
    "stories": (
        "Stories",
        "What the model's own stories are like, from the same prompts and seeds for every model.",
    ),
}
WITH_BASELINE = {"blimp": 0.5}


class Group(NamedTuple):
    """Metrics of one kind in one table and charts: its title and their names."""

    title: str
    names: list[str]


def write(folder: Path) -> Path:
    """Writes report.html of an evaluate folder from its results.json, and gives its path."""
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    checkpoint.write_file(folder / REPORT, build(results, folder.resolve().name).encode())
    return folder / REPORT


def build(results: Results, name: str) -> str:
    """The whole page as HTML from what results.json holds."""
    models = results["models"]
    tasks = list(dict.fromkeys(task for model in models for task in model["tasks"]))
    verdict = (
        f"{_many(len(models), 'model')}, {_many(len(tasks), 'task')}",
        "95% intervals in brackets; the notes below a table say what they are over.",
        "Models whose intervals do not overlap differ; talltree compare pairs closer ones item by item.",
    )
    setting = [("Model", f"{model['name']}, {model['parameters']:,} parameters") for model in models]
    links = [(_identifier(task), _title(task)) for task in [*tasks, "details"]]
    body = "\n".join([*(_task(results, task) for task in tasks), _details(results)])
    return frame(name, "evaluation", verdict, setting, links, body)


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _title(task: str) -> str:
    return "Details" if task == "details" else ABOUT.get(task, (task, ""))[0]


def _identifier(task: str) -> str:
    return task.replace(":", "-")


def _task(results: Results, task: str) -> str:
    models = [model for model in results["models"] if task in model["tasks"]]
    content = f'<p class="intro">{text(ABOUT[task][1])}</p>' if task in ABOUT else ""
    for group in groups(models, task):
        if group.title.startswith("paradigm"):
            content += folded("Every paradigm", _table(models, task, group))
            continue
        content += _charts(models, task, group) + _table(models, task, group)
    content += _over_training(results, task) + _over_fine_tuning(models, task)
    content += "".join(f'<p class="intro">{text(note)}</p>' for note in _notes(models, task))
    return section(_identifier(task), text(_title(task)), content)


def _over_training(results: Results, task: str) -> str:
    """Figures over the models of each setting that was trained with several seeds."""
    found = [each for each in results.get("settings", []) if task in each["tasks"]]
    if not found:
        return ""
    names = list(dict.fromkeys(name for each in found for name in each["tasks"][task]))
    parts = [name for name in names if not name.startswith("paradigm/")]

    def rows(some: Sequence[str]) -> list[list[str]]:
        return [
            [
                text(name.replace("_", " ")),
                *(
                    _spread(each["tasks"][task][name]) if name in each["tasks"][task] else "–"
                    for each in found
                ),
            ]
            for name in some
        ]

    header = ["Measure", *(f"{text(each['name'])}, {len(each['models'])} seeds" for each in found)]
    kinds = interval_words([each["kind"] for of in found for each in of["tasks"][task].values()])
    content = table(f"{_title(task)}, over training seeds: {kinds}", header, rows(parts))
    if len(parts) < len(names):
        rest = table(
            "Paradigms, over training seeds", header, rows([each for each in names if each not in parts])
        )
        content += folded("Every paradigm, over training seeds", rest)
    return content


def _over_fine_tuning(models: Sequence[Mapping[str, Any]], task: str) -> str:
    """Figures over the fine-tuning seeds of each model, with every seed's own."""
    found = [model["tasks"][task].get("by_seed") or {} for model in models]
    names = list(dict.fromkeys(name for each in found for name in each))
    if not names:
        return ""
    units = {name: model["tasks"][task]["metrics"][name]["unit"] for model in models for name in names}
    rows = [
        [
            text(name.replace("_", " ")),
            *(_spread(each[name] | {"unit": units[name]}) if name in each else "–" for each in found),
        ]
        for name in names
    ]
    kinds = interval_words([each["kind"] for of in found for each in of.values()])
    caption = f"{_title(task)}, over fine-tuning seeds alone: {kinds}"
    return table(caption, ["Measure", *(text(model["name"]) for model in models)], rows)


def _spread(found: Mapping[str, Any]) -> str:
    """Mean (low to high), and below it the value of each seed."""
    write = share if str(found["unit"]).startswith("share") else number
    bounds = "" if found["low"] is None else f" ({write(found['low'])} to {write(found['high'])})"
    values = ", ".join(
        f"{name.rpartition('/')[2]}: {write(value)}" for name, value in found["values"].items()
    )
    return f'{text(write(found["mean"]))}<span class="unit">{text(bounds)}<br>{text(values)}</span>'


def _notes(models: Sequence[Mapping[str, Any]], task: str) -> list[str]:
    """Every note once; one that does not hold for all models begins with the names of those it holds for."""
    found: dict[str, list[str]] = {}
    for model in models:
        for note in model["tasks"][task]["notes"]:
            found.setdefault(note, []).append(model["name"])
    return [
        note if len(names) == len(models) else f"{', '.join(names)}: {note}" for note, names in found.items()
    ]


def groups(models: Sequence[Mapping[str, Any]], task: str) -> list[Group]:
    """The metrics of a task by what stands before the stroke in their names, those without one first."""
    found: dict[str, list[str]] = {"": []}
    for name in dict.fromkeys(name for model in models for name in model["tasks"][task]["metrics"]):
        head, stroke, _ = name.partition("/")
        found.setdefault(head if stroke else "", []).append(name)
    return [Group(title, names) for title, names in found.items() if names]


def _table(models: Sequence[Mapping[str, Any]], task: str, group: Group) -> str:
    rows = []
    for name in group.names:
        measured = [model["tasks"][task]["metrics"].get(name) for model in models]
        unit = next(each["unit"] for each in measured if each is not None)
        label = name.partition("/")[2] or name
        first = f'{text(label.replace("_", " "))} <span class="unit">{text(unit)}</span>'
        rows.append([first, *(_cell(each) for each in measured)])
    kind = group.title.replace("_", " ")
    caption = f"{_title(task)}: {kind}" if kind else _title(task)
    return table(caption, ["Measure", *(text(model["name"]) for model in models)], rows)


def _cell(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return "–"
    write = share if metric["unit"].startswith("share") else number
    whole = float(metric["value"]).is_integer() and metric["unit"] in COUNTS
    value = f"{int(metric['value']):,}" if whole else write(float(metric["value"]))
    if metric["low"] is None:
        return f'{text(value)} <span class="unit">of {metric["n"]:,}</span>' if whole else text(value)
    spread = f"{write(float(metric['low']))} to {write(float(metric['high']))}"
    return f'{text(value)} <span class="unit">({text(spread)})</span>'


COUNTS = ("pairs", "documents", "tokens", "bytes", "items")


def _charts(models: Sequence[Mapping[str, Any]], task: str, group: Group) -> str:
    """A chart of each metric that has an interval in any model: one dot a model, with its interval."""
    figures = []
    for name in group.names:
        measured = [(model["name"], model["tasks"][task]["metrics"].get(name)) for model in models]
        drawn = [(label, metric) for label, metric in measured if metric is not None]
        if all(metric["low"] is None for _, metric in drawn):
            continue
        unit = drawn[0][1]["unit"]
        svg = dots(
            [label for label, _ in drawn],
            [(metric["value"], metric["low"], metric["high"]) for _, metric in drawn],
            unit,
            unit.startswith("share"),
            WITH_BASELINE.get(task) if unit == "share of pairs" and name != "ties" else None,
        )
        title = (name.partition("/")[2] or name).replace("_", " ")
        alt = f"{title}: " + "; ".join(f"{label} {number(float(metric['value']))}" for label, metric in drawn)
        figures.append(
            f"<figure><figcaption><strong>{text(title)}</strong></figcaption>{svg_image(svg, alt)}</figure>"
        )
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _details(results: Results) -> str:
    rows = [
        [
            text(model["name"]),
            *(f"<code>{text(model[key])}</code>" for key in ("weights_sha256", "tokenizer_sha256")),
        ]
        for model in results["models"]
    ]
    return section(
        "details",
        "Details",
        table("What was evaluated", ["Model", "Weights SHA-256", "Tokenizer SHA-256"], rows),
    )
