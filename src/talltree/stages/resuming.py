"""What the stages that train share when a run is stopped by a signal and continued; no stage of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from talltree import checkpoint
from talltree.config import resumed
from talltree.errors import RunError
from talltree.run import Run

C = TypeVar("C")


def resumed_config(asked: C, may_change: Sequence[str] = ()) -> C:
    """The config that the run asked.resume was started with, but for what `may_change` names.

    Raises RunError if that run has ended, ConfigError where the command asks for something else, or the two
    do not go together.
    """
    resume: str = asked.resume  # type: ignore[attr-defined]
    run = Run.open(resume)
    run.require_unended()
    config: Any = resumed(asked, run.config, run.folder, may_change)
    config.check()
    return config


def require_same_data(folder: Run, data_sha256: Mapping[str, str]) -> None:
    """Raises RunError for a file that the run was started with and that is not the same now."""
    for name, digest in folder.environment["data_sha256"].items():
        if data_sha256.get(name) != digest:
            raise RunError(
                f"{name} has changed since {folder.folder} was started; bring the old data back, or start a "
                "new run"
            )


def require_same_start(folder: Run, model: str, then: str, now: str) -> None:
    """Raises RunError where the model that the run started from has another hash than then."""
    if then != now:
        raise RunError(
            f"{model} is not the model that {folder.folder} started from: its weights have changed; bring "
            "the old ones back, or start a new run"
        )


def say_threads(folder: Run, say: Callable[[str], None]) -> None:
    """Says so where the run was started with another number of threads than it goes on with."""
    import torch

    then, now = folder.environment["torch_threads"], torch.get_num_threads()
    if then != now:
        say(
            f"this run was started with {then} threads and goes on with {now}: its last bits will differ; "
            f"OMP_NUM_THREADS={then} keeps them"
        )


def add_time(folder: Run, started: float) -> None:
    """Adds the seconds since `started`, of time.monotonic, to those in the run's summary."""
    summary = folder.summary()
    summary["wall_time_seconds"] += time.monotonic() - started
    folder.write_summary(summary)


def loading_advice() -> str:
    """What to do where memory ran out before there was anything to save."""
    return "out of memory while model and data were loaded; free memory, or use a smaller model"


def memory_advice(folder: Run, stage: str, smaller: str = "") -> str:
    """What to do where memory ran out: go on from the newest checkpoint, with `smaller` options."""
    saved = [step for step, _ in checkpoint.step_folders(folder.checkpoints)]
    reached = f"step {saved[-1]} is saved" if saved else "nothing is lost, as no step is saved yet"
    return (
        f"out of memory; {reached}: {'' if smaller else 'free memory and '}continue with "
        f"talltree {stage} --resume {folder.folder}{smaller}"
    )


def more_parts(parts: int | None, batch_size: int) -> str:
    """The option that computes an update in twice as many parts; "" where each is one row already."""
    more = batch_size if parts is None else min(2 * parts, batch_size)
    return "" if more in (parts, 1) else f" --gradient_accumulation_steps {more}"
