"""A stage without a model, for whatever only needs stages to start, write, fail, hang or be killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

STAGE = '''
import json, os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path

from talltree.config import option
from talltree.errors import ConfigError, RunError
from talltree.interrupt import Interrupts


@dataclass(frozen=True)
class Inner:
    coef: float = option(0.0, "A price.", low=0)


@dataclass(frozen=True)
class Config:
    """Writes `steps` rows whose reward is level * step + seed, then a summary."""

    level: float = option(1.0, "Slope of the reward.")
    kl: Inner = option(Inner(), "The price.")
    steps: int = option(3, "Rows.", low=1)
    pause: float = option(0.0, "Seconds a step.", low=0)
    fail: str = option("", "error, defect, kill, abort, silent or memory.")
    start: str = option("", "Folder that must hold a file `weights`.")
    seed: int = option(0, "Seed.", low=0)
    output_dir: str = option("runs/fake", "Run folder.")
    resume: str | None = option(None, "Run folder to continue.")

    def check(self):
        if self.level == 13:
            raise ConfigError("level 13 brings bad luck; use 12 or 14")


def run(config):
    folder = Path(config.resume or config.output_dir)
    print(f"pid {os.getpid()} threads {os.environ.get('OMP_NUM_THREADS')}", flush=True)
    if config.start and not (Path(config.start) / "weights").is_file():
        raise RunError(f"{config.start} has no weights")
    rows = folder / "metrics.jsonl"
    done = len(rows.read_text().splitlines()) if config.resume else 0
    if config.resume is None and folder.exists():
        raise RunError(f"{folder} exists")
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("fake: 1")
    (folder / "started").open("a").write("x")
    with Interrupts() as interrupts:
        for step in range(done + 1, config.steps + 1):
            row = {"step": step, "reward/mean": config.level * step + config.seed, "kl/sequence": step / 10.0}
            with rows.open("a") as file:
                file.write(json.dumps(row) + "\\n")
            (folder / "checkpoints" / f"step-{step}").mkdir(exist_ok=True)
            if interrupts.requested:
                print(f"{interrupts.requested}: saved step {step}", flush=True)
                raise SystemExit({"SIGINT": 130, "SIGTERM": 143}[interrupts.requested])
            if config.fail and step == 2:
                if config.fail == "error":
                    raise RunError("the tree fell; plant another")
                if config.fail == "defect":
                    raise KeyError("a defect")
                if config.fail == "silent":
                    raise SystemExit(3)
                if config.fail == "memory":
                    raise MemoryError("cannot allocate 9 TB")
                os.kill(os.getpid(), signal.SIGKILL if config.fail == "kill" else signal.SIGABRT)
            time.sleep(config.pause)
    (folder / "final").mkdir(exist_ok=True)
    (folder / "final" / "weights").write_text("w")
    reward = config.level * config.steps + config.seed
    after = {"reward": {"mean": reward, "low": reward - 1, "high": reward + 1}, "distinct_2": 0.5,
             "kl": {"mean": config.level, "low": None, "high": None}}
    before = after | {"reward": {"mean": 1.0, "low": 0.5, "high": 1.5}, "kl": {"mean": 0.0}}
    summary = {"stage": "fake", "before": before, "after": after, "stop_reason": "done"}
    (folder / "summary.json").write_text(json.dumps(summary))
'''

SITE = """
from talltree.stages import table
table.STAGES["fake"] = ("fake_stage", "a stage without a model")
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the stage `fake` known here and in every process that is started from here."""
    from talltree.stages import table

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fake_stage.py").write_text(STAGE)
    # Python imports a module of this name at its start, before any command of ours.
    (folder / "sitecustomize.py").write_text(SITE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ["PYTHONPATH"]]))
    monkeypatch.setitem(table.STAGES, "fake", ("fake_stage", "a stage without a model"))


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
