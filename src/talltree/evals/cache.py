"""Results of evaluations on disk: a file for each part of a task, written whole and checked when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from talltree import checkpoint
from talltree.evals.results import TaskResult, metric_from_json


def key(answers_to: Mapping[str, Any]) -> str:
    """SHA-256 of everything that decides a result: model, tokenizer, task, data and options, as JSON."""
    return hashlib.sha256(json.dumps(answers_to, sort_keys=True).encode()).hexdigest()


def store(folder: Path, answers_to: Mapping[str, Any], result: TaskResult) -> None:
    """Keeps a result under its key. Raises RunError for a full disk."""
    path = _path(folder, answers_to)
    with checkpoint.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(
        {
            "answers_to": answers_to,
            "metrics": {name: metric.as_json() for name, metric in result.metrics.items()},
            "notes": result.notes,
            "rows": result.rows,
            "by_seed": {name: dict(values) for name, values in result.by_seed.items()},
        },
        ensure_ascii=False,
    ).encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(content).hexdigest().encode()
    checkpoint.write_file(path, digest + b"\n" + content + b"\n")


def load(folder: Path, answers_to: Mapping[str, Any], say: Callable[[str], None]) -> TaskResult | None:
    """What `store` kept under this key; None where there is nothing, or where a byte of it has changed.

    A damaged entry is named through `say`.
    """
    path = _path(folder, answers_to)
    if not path.is_file():
        return None
    digest, _, content = path.read_bytes().removesuffix(b"\n").partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        say(f"{path} is damaged; {answers_to.get('task', 'it')} is computed again")
        return None
    found = json.loads(content.decode("utf-8", "surrogatepass"))
    metrics = {name: metric_from_json(metric) for name, metric in found["metrics"].items()}
    return TaskResult(metrics, found["rows"], tuple(found["notes"]), found.get("by_seed", {}))


def _path(folder: Path, answers_to: Mapping[str, Any]) -> Path:
    name = key(answers_to)
    return folder / name[:2] / f"{name}.json"
