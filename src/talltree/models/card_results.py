"""The results of an evaluation in a model's card: the hub's model-index metadata, and a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from talltree import checkpoint
from talltree.errors import ModelError
from talltree.models.card import CARD
from talltree.models.load import SEEDLING

START, END = "<!-- talltree evaluate: start -->", "<!-- talltree evaluate: end -->"
"""What stands between them is replaced by the next evaluation; the rest of a card is left as it is."""
DATASETS = {
    "blimp": ("BLiMP", "nyu-mll/blimp"),
    "loss": ("held-out text", "text"),
    "stories": ("stories of the model", "text"),
}


def check_folder(source: str) -> None:
    """Raises ModelError where no card can be written: for a hub name, the package's model, a checkpoint."""
    folder = Path(source)
    if not folder.is_dir():
        raise ModelError(f"write_card: {source} is a model of the hub; fetch it into a folder first")
    if folder.resolve() == SEEDLING.resolve():
        raise ModelError("write_card: seedling belongs to the package; copy it to a folder of your own first")
    if folder.resolve().parent.name == "checkpoints":
        raise ModelError(
            f"write_card: {source} is a checkpoint, which stays as it was saved; name a final/ folder"
        )


def write_results(folder: Path, entry: Mapping[str, Any]) -> None:
    """Puts a model's entry of results.json into its card, which is made where there is none.

    Raises ModelError for a card whose metadata are not YAML.
    """
    path = folder / CARD
    about, body = _read(path, entry["name"])
    results = [_index(name, task) for name, task in entry["tasks"].items()]
    about["model-index"] = [{"name": entry["name"], "results": results}]
    text = (
        f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}---\n{_with_section(body, entry)}"
    )
    checkpoint.write_file(path, text.encode())


def _read(path: Path, name: str) -> tuple[dict[str, Any], str]:
    """The metadata and the text of a card; both anew where there is none."""
    if not path.is_file():
        return {"library_name": "transformers", "pipeline_tag": "text-generation"}, f"\n# {name}\n"
    text = path.read_text(encoding="utf-8")
    if not text.startswith("---\n"):
        return {}, f"\n{text}"
    head, border, body = text[4:].partition("\n---\n")
    try:
        about = yaml.safe_load(head)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path}: its metadata are not YAML ({reason[:120]}); mend them first") from None
    if not border or not isinstance(about, dict):
        raise ModelError(
            f"{path}: its metadata are no keys and values between two lines ---; mend them first"
        )
    return about, body


def _index(name: str, task: Mapping[str, Any]) -> dict[str, Any]:
    label, kind = DATASETS.get(name, (name, name.replace(":", "/")))
    return {
        "task": {"type": "text-generation", "name": "Text generation"},
        "dataset": {"name": label, "type": kind},
        "metrics": [
            {"type": key, "name": f"{key} ({metric['unit']})", "value": metric["value"]}
            for key, metric in task["metrics"].items()
        ],
    }


def _with_section(body: str, entry: Mapping[str, Any]) -> str:
    section = f"{START}\n{results_section(entry)}\n{END}\n"
    before, found, rest = body.partition(START)
    if not found:
        return f"{body.rstrip()}\n\n{section}"
    return before + section + rest.partition(f"{END}\n")[2]


def results_section(entry: Mapping[str, Any]) -> str:
    """The evaluation as Markdown: a table and the notes of each task."""
    parts = ["## Evaluation", "By `talltree evaluate`; 95% intervals in brackets."]
    for name, task in entry["tasks"].items():
        rows = [
            f"| {key} | {_figure(metric)} | {metric['unit']} | {metric['n']:,} |"
            for key, metric in task["metrics"].items()
        ]
        parts.append("\n".join([f"### {name}\n\n| measure | value | unit | n |", "|---|---|---|---|", *rows]))
        parts += task["notes"]
    return "\n\n".join(parts)


def _figure(metric: Mapping[str, Any]) -> str:
    spread = "" if metric["low"] is None else f" ({metric['low']:.4g} to {metric['high']:.4g})"
    return f"{metric['value']:.4g}{spread}"
