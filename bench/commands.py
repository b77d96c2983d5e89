"""The four benchmarks: their options, what runs in which order, and the figures as plain values."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.ratios import fastest, median_phases, paired, spread
from bench.roofline import roofline
from bench.shapes import ROWS, SHAPES, Row, find_rows, from_json, to_json
from bench.worker import measure
from talltree.config import option
from talltree.errors import ConfigError

SCALE_BATCHES = (4, 8, 16, 32, 64, 128)
SCALE_TOKENS = (16, 32, 64, 100, 150, 200)
SCALE_AT = Row(SHAPES["15m"], 16, 4)
"""Batches are measured at its length, lengths at its batch."""


@dataclass(frozen=True)
class Common:
    """Options of every benchmark."""

    threads: int | None = option(None, "threads of every process; null: as many as torch takes", low=1)
    device: Literal["cpu", "cuda"] = option("cpu", "where to compute")
    output: str | None = option(None, "JSON file for every figure; null: the table alone")


@dataclass(frozen=True)
class Rl(Common):
    """One RL step of ours against one of TRL's RLOOTrainer, in turn."""

    rows: str = option(",".join(ROWS), "rows to measure, comma-separated: shape-sequences")
    steps: int = option(
        3, "timed steps of each side in each round, after two that warm up", unit="steps", low=1
    )
    rounds: int = option(2, "how often both sides take their turn", unit="rounds", low=1)
    trl: str = option("{}", "settings of RLOOConfig to try instead of those written down, as a JSON object")

    def check(self) -> None:
        """Raises ConfigError for an unknown row, or trl that is no JSON object."""
        find_rows(self.rows)
        _json_object("trl", self.trl)


@dataclass(frozen=True)
class Sample(Common):
    """Our sampler against transformers' generate, in turn."""

    rows: str = option(",".join(ROWS), "rows to measure, comma-separated: shape-sequences")
    repetitions: int = option(5, "timed repetitions of each, after one that warms up", low=1)
    generate: str = option("{}", "further arguments of generate to try, as a JSON object")

    def check(self) -> None:
        """Raises ConfigError for an unknown row, or generate that is no JSON object."""
        find_rows(self.rows)
        _json_object("generate", self.generate)


@dataclass(frozen=True)
class Scale(Common):
    """What our RL step costs against its batch and its length, on the 15m shape."""

    steps: int = option(2, "timed steps of each size, after two that warm up", unit="steps", low=1)


@dataclass(frozen=True)
class Pretrain(Common):
    """One update of our pretraining against one of the transformers Trainer, in turn."""

    shape: str = option("15m", "shape of the model", choices=("15m", "124m"))
    rows: int = option(16, "rows of the shape's context in an update", unit="rows", low=1)
    steps: int = option(
        4, "timed steps of each side in each round, after two that warm up", unit="steps", low=1
    )
    rounds: int = option(2, "how often both sides take their turn", unit="rounds", low=1)
    ours: str = option("{}", "settings of talltree pretrain to try, as a JSON object")
    trainer: str = option("{}", "settings of TrainingArguments to try, as a JSON object")

    def check(self) -> None:
        """Raises ConfigError where ours or trainer is no JSON object."""
        _json_object("ours", self.ours)
        _json_object("trainer", self.trainer)


def rl(options: Rl) -> dict[str, Any]:
    """Every row in turn: ours, TRL, ours, TRL; the machine is measured before and after."""
    has_trl = importlib.util.find_spec("trl") is not None
    if not has_trl:
        _say("trl is not installed, so ours is measured alone; pip install -e '.[bench]' brings it")
    overrides = _json_object("trl", options.trl)
    machine = [_machine(options)]
    measured = [rl_row(row, options, overrides, has_trl) for row in find_rows(options.rows)]
    best = fastest([*machine, _machine(options)])
    return {
        "bench": "rl",
        "machine": best,
        "settings": {"steps": options.steps, "rounds": options.rounds, "trl": overrides},
        "rows": [with_roofline(row, best) for row in measured],
    }


def rl_row(row: Row, options: Rl, overrides: Mapping[str, Any], has_trl: bool) -> dict[str, Any]:
    """Both sides of one row: all steps, and medians, memory and ratios from them."""
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], **({"trl": []} if has_trl else {})}
    with _model(row, options) as model:
        task = {"row": to_json(row), "model": model, "device": options.device, "steps": options.steps}
        for number in range(options.rounds):
            for side, rounds in sides.items():
                _say(f"{row.name}: round {number + 1} of {options.rounds}, {side}")
                rounds.append(measure(side, {**task, "trl": dict(overrides)}, options.threads))
    result: dict[str, Any] = {"name": row.name, "row": to_json(row)}
    result |= {side: summary(rounds) for side, rounds in sides.items()}
    if has_trl:
        result |= compare(sides["ours"], sides["trl"])
    return result


def pretrain(options: Pretrain) -> dict[str, Any]:
    """Ours, the Trainer, ours, the Trainer: all steps, and medians, memory and ratios from them."""
    machine = [_machine(options)]
    shape = SHAPES[options.shape]
    extra = {side: _json_object(side, getattr(options, side)) for side in ("ours", "trainer")}
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "trainer": []}
    with tempfile.TemporaryDirectory(prefix="talltree-bench-") as data:
        task = {
            "shape": dataclasses.asdict(shape), "rows": options.rows, "steps": options.steps, "data": data,
            "device": options.device, **extra,
        }  # fmt: skip
        measure("pretrain", {**task, "side": "data"}, options.threads)
        for number in range(options.rounds):
            for side, rounds in sides.items():
                _say(f"{shape.name}: round {number + 1} of {options.rounds}, {side}")
                rounds.append(measure("pretrain", {**task, "side": side}, options.threads))
    best = fastest([*machine, _machine(options)])
    floor = 6 * shape.matrix_parameters * options.rows * shape.context / best["matrix_rate"]
    result: dict[str, Any] = {"name": f"{shape.name}-{options.rows}", "floor_seconds": floor}
    result |= {side: summary(rounds) for side, rounds in sides.items()}
    return {
        "bench": "pretrain",
        "machine": best,
        "settings": {"steps": options.steps, "rounds": options.rounds, **extra},
        "rows": [result | compare(sides["ours"], sides["trainer"])],
    }


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One side over its rounds: seconds a step, phases, tokens a second, peak memory, and all steps."""
    steps = [step for each in rounds for step in each["steps"]]
    gpu = [each["peak_gpu_bytes"] for each in rounds if each["peak_gpu_bytes"] is not None]
    return {
        "seconds": spread([step["seconds"] for step in steps])._asdict(),
        "phases": median_phases(steps),
        "tokens": spread([step["tokens"] for step in steps])._asdict(),
        "tokens_per_second": spread([step["tokens"] / step["seconds"] for step in steps])._asdict(),
        "peak_bytes": max(each["peak_bytes"] for each in rounds),
        "peak_gpu_bytes": max(gpu, default=None),
        "rounds": rounds,
    }


def compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """ratio: TRL's seconds a step over ours, in pairs; memory_ratio: TRL's peak over ours, in rounds."""
    seconds = [[[step["seconds"] for step in each["steps"]] for each in side] for side in (ours, theirs)]
    key = "peak_bytes" if ours[0]["peak_gpu_bytes"] is None else "peak_gpu_bytes"
    peaks = [[[each[key]] for each in side] for side in (ours, theirs)]
    return {"ratio": paired(*seconds)._asdict(), "memory_ratio": paired(*peaks)._asdict()}


def sample(options: Sample) -> dict[str, Any]:
    """Every row: our sampler, our sampler on the library's cache, and generate, in turn in one process."""
    extra = _json_object("generate", options.generate)
    machine = _machine(options)
    rows = []
    for row in find_rows(options.rows):
        _say(f"{row.name}: {options.repetitions} repetitions of each")
        with _model(row, options) as model:
            task = {
                "row": to_json(row), "model": model, "device": options.device,
                "repetitions": options.repetitions, "generate": extra,
            }  # fmt: skip
            result = measure("sampling", task, options.threads)
        seconds = result["seconds"]
        bound = roofline(row, machine["matrix_rate"], machine["bandwidth"]).sample
        rows.append(
            {
                "name": row.name,
                "row": to_json(row),
                **result,
                "ratio": {
                    name: paired([seconds["ours"]], [each])._asdict() for name, each in seconds.items()
                },
                "roofline_seconds": bound,
                "roofline_multiple": spread(seconds["ours"]).median / bound,
            }
        )
    return {"bench": "sample", "machine": machine, "settings": {"generate": extra}, "rows": rows}


def scale(options: Scale) -> dict[str, Any]:
    """Our RL step on the 15m shape at several batches, and at several lengths."""
    machine = _machine(options)
    sizes = [replace(SCALE_AT, sequences=batch) for batch in SCALE_BATCHES]
    sizes += [replace(SCALE_AT, tokens=tokens) for tokens in SCALE_TOKENS]
    rows = []
    with _model(SCALE_AT, options) as model:
        for row in sizes:
            _say(f"{row.sequences} sequences of {row.tokens} tokens")
            task = {"row": to_json(row), "model": model, "device": options.device, "steps": options.steps}
            measured = {
                "name": row.name,
                "row": to_json(row),
                "ours": summary([measure("ours", task, options.threads)]),
            }
            rows.append(with_roofline(measured, machine))
    return {"bench": "scale", "machine": machine, "settings": {"steps": options.steps}, "rows": rows}


@contextmanager
def _model(row: Row, options: Common) -> Iterator[str]:
    """The folder of a row's random model, as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="talltree-bench-") as name:
        folder = str(Path(name) / "model")
        measure("weights", {"row": to_json(row), "model": folder}, options.threads)
        yield folder


def _machine(options: Common) -> dict[str, Any]:
    _say("measuring the machine")
    return measure("machine", {"device": options.device}, options.threads)


def with_roofline(result: dict[str, Any], machine: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the floor of its step on that machine, and our median step as a multiple of it."""
    bound = roofline(from_json(result["row"]), machine["matrix_rate"], machine["bandwidth"])
    multiple = result["ours"]["seconds"]["median"] / bound.step
    return {**result, "roofline": {**bound._asdict(), "step": bound.step}, "roofline_multiple": multiple}


def _json_object(key: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"--{key}: {text!r} is not a JSON object; write '{{\"name\": value}}'")
    return value


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
