"""What a run folder says, read once: config, environment, metrics, samples, summary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from talltree.errors import RunError
from talltree.run import CONFIG, ENVIRONMENT, SUMMARY, Run

if TYPE_CHECKING:
    import pyarrow as pa

BLOG_POSITIONS = 99
"""The study's beta multiplies a mean over 99 positions: beta = 99 * coefficient per nat of sequence KL."""


class Fresh(NamedTuple):
    """The samples that summary.json's `before` and `after` were measured on, a mapping of columns each.

    is_held_out: none of their prompts stands in the samples of the training steps.
    """

    before: Sequence[Mapping[str, Any]]
    after: Sequence[Mapping[str, Any]]
    is_held_out: bool


class Facts(NamedTuple):
    """A run, read; `rows` are those of metrics.jsonl and `summary` is None where there is no summary.json.

    `fresh` is None until the run has both before.jsonl and after.jsonl.
    """

    folder: Path
    config: Mapping[str, Any]
    config_text: str
    environment: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    samples: pa.Table
    summary: Mapping[str, Any] | None
    fresh: Fresh | None = None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def has_ended(self) -> bool:
        """Whether the summary says why the run stopped; a live or killed run's holds only its beginning."""
        return self.summary is not None and self.summary.get("stop_reason") is not None

    @property
    def best_step(self) -> int | None:
        return (self.summary or {}).get("best_step")

    @property
    def last_step(self) -> int | None:
        return self.rows[-1]["step"] if self.rows else None


def read(folder: str | Path) -> Facts:
    """Reads the run in `folder`. Raises RunError, one line, if it is none or a file of it is damaged."""
    run = Run.open(folder)
    has_summary = (run.folder / SUMMARY).is_file()
    has_environment = (run.folder / ENVIRONMENT).is_file()
    try:
        config, config_text = run.config, (run.folder / CONFIG).read_text(encoding="utf-8")
        environment = run.environment if has_environment else {}
        summary = run.summary() if has_summary else None
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{run.folder}: config.yaml, environment.json or summary.json is damaged: {reason}"
        ) from error
    for name, content in ((CONFIG, config), (SUMMARY, summary)):
        if content is not None and not isinstance(content, Mapping):
            raise RunError(f"{run.folder / name} holds no keys and values; it was not written by a stage")
    samples = _samples(run)
    fresh = _fresh(run.folder, samples)
    return Facts(run.folder, config, config_text, environment, run.metrics(), samples, summary, fresh)


def _samples(run: Run) -> pa.Table:
    import pyarrow as pa

    try:
        return run.samples()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{run.folder}: its samples cannot be read: {reason}") from error


def _fresh(folder: Path, samples: pa.Table) -> Fresh | None:
    paths = [folder / f"{side}.jsonl" for side in ("before", "after")]
    if not all(path.is_file() for path in paths):
        return None
    before, after = (_json_lines(path) for path in paths)
    trained = set(samples["prompt"].unique().to_pylist()) if "prompt" in samples.column_names else set()
    return Fresh(before, after, not any(row["prompt"] in trained for row in (*before, *after)))


def _json_lines(path: Path) -> list[Mapping[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, Mapping) or not isinstance(row.get("prompt"), str):
            raise RunError(f"{path} line {number} is not a sample with a prompt; mend or remove the file")
        rows.append(row)
    return rows


def value(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key, nested or written flat; None if it is absent."""
    if key in config:
        return config[key]
    head, dot, tail = key.partition(".")
    inside = config.get(head)
    return value(inside, tail) if dot and isinstance(inside, Mapping) else None


def series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one key of metrics.jsonl; rows without a number for it are left out."""
    found = [(row["step"], float(row[key])) for row in rows if isinstance(row.get(key), int | float)]
    return [step for step, _ in found], [number for _, number in found]


def kl_coefficient(facts: Facts) -> float | None:
    """The KL coefficient that the run started with, in reward per nat of sequence KL; None if not stated."""
    _, logged = series(facts.rows, "kl/coef")
    coef, beta = value(facts.config, "kl.coef"), value(facts.config, "beta")
    if logged:
        return logged[0]
    if isinstance(stated := (facts.summary or {}).get("kl_coef"), int | float):
        return float(stated)
    if isinstance(coef, int | float):
        return float(coef)
    return float(beta) / BLOG_POSITIONS if isinstance(beta, int | float) else None
