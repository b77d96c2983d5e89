"""A stage as one step of a round: run once, resumed where it was, its lines passed on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from talltree import checkpoint, yaml_text
from talltree.errors import RunError
from talltree.run import SUMMARY, Run
from talltree.stages.process import run_stage


class Stopped(Exception):
    """SIGINT or SIGTERM came, and what was done until then is on disk: an exit status, not an error."""

    def __init__(self, signal: str, where: str) -> None:
        super().__init__(f"{signal} in {where}")
        self.signal = signal
        self.where = where


def run_once(
    stage: str, options: Mapping[str, Any], parent: Path, where: str, say: Callable[[str], None]
) -> None:
    """Runs a training stage into parent/STAGE unless it has ended there; a half-done run is resumed.

    Its output goes to parent/STAGE.log and, line by line, to `say`. Raises RunError if the stage fails before
    its end, Stopped if a signal ended it. A run whose summary says why it stopped by itself has ended.
    """
    output = parent / stage
    if has_ended(output):
        return
    config, log = parent / f"{stage}.yaml", parent / f"{stage}.log"
    resume = output if checkpoint.step_folders(output / "checkpoints") else None
    if resume is None:
        # Killed before its first checkpoint, hence without anything to lose.
        shutil.rmtree(output, ignore_errors=True)
        checkpoint.write_file(config, yaml_text.dump({**options, "output_dir": str(output)}).encode())
    say(f"{where}: {'going on with ' if resume else ''}{stage}")
    echo = Echo(log, f"  {stage} | ", say)
    ended = run_stage(stage, None if resume else config, log, resume=resume, watch=echo)
    echo()
    if ended.signal is not None and ended.status != 0:
        raise Stopped(ended.signal, where)
    if ended.status != 0 and not has_ended(output):
        raise RunError(
            f"{where}: talltree {stage} failed: {ended.error}; the whole of it is in {log}: mend it and "
            "continue with --resume"
        )
    if ended.signal is not None:
        raise Stopped(ended.signal, where)


def has_ended(folder: Path) -> bool:
    """Whether the run in a folder has ended by itself."""
    return (folder / SUMMARY).is_file() and Run.open(folder).summary()["stop_reason"] is not None


class Echo:
    """Called now and then, says the lines that were added to a log since it was made."""

    def __init__(self, log: Path, prefix: str, say: Callable[[str], None]) -> None:
        self._log = log
        self._prefix = prefix
        self._say = say
        self._read = log.stat().st_size if log.exists() else 0

    def __call__(self) -> None:
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]
        if whole:
            self._read += len(whole) + 1
            for line in whole.decode("utf-8", "replace").splitlines():
                self._say(self._prefix + line)
