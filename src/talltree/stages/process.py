"""One stage as a process: its own log, signals passed on, and no life beyond the process that started it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from talltree.errors import RunError
from talltree.interrupt import Interrupts
from talltree.stages import guard

ERROR = re.compile(r"^talltree \w+: error: (.*)$", re.MULTILINE)
MEMORY = re.compile(r"MemoryError|can't allocate memory|not enough memory")
LAUNCHER = re.compile(r"^.*torch/distributed/elastic/", re.MULTILINE)
"""Where a launcher begins its report on the processes that it started."""
SMALLER = "run fewer at once, or use a smaller batch_size or more gradient_accumulation_steps"
LONGEST = 160
"""Characters of an error that stand behind what it means."""
TAIL = 100_000
"""Bytes at the end of a log in which its last error is looked for."""


class Ended(NamedTuple):
    """How a stage's process ended.

    status: 0, the exit status, or minus the signal that killed it. error: "" for status 0, otherwise a line.
    signal: the name of the signal that `run_stage` received and passed on, None if there was none.
    """

    status: int
    error: str
    seconds: float
    signal: str | None = None


class StageProcess:
    """A stage that runs; made by `start`. It ends within seconds of the process that started it."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, begins_at: int) -> None:
        self._process = process
        self._started = time.monotonic()
        self._ended: Ended | None = None
        self.log = log
        self._begins_at = begins_at

    def wait(self, seconds: float) -> Ended | None:
        """How it ended, after at most so many seconds; None while it runs."""
        if self._ended is None:
            try:
                status = self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
            self._sweep_up()
            took = time.monotonic() - self._started
            self._ended = Ended(status, error_line(status, self.log, self._begins_at), took)
        return self._ended

    def signal(self, number: int) -> None:
        """Passes a signal on to the stage; SIGINT and SIGTERM make a training stage save and leave."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Ends the stage at once, with all of its process group, if it still runs."""
        if self._ended is not None:
            return
        self._sweep_up()
        self._process.wait()

    def _sweep_up(self) -> None:
        # If the guard itself was killed, the stage would live on; its group has the guard's number.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()


def start(
    stage: str,
    config: Path | None,
    log: Path,
    *,
    arguments: Sequence[str] = (),
    resume: Path | None = None,
    threads: int | None = None,
    launch: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> StageProcess:
    """Starts `talltree STAGE [--config FILE] [arguments] [--resume DIR]`; its output is added to `log`.

    threads: OMP_NUM_THREADS of the process, None leaves the environment's. launch: words of a launcher that
    takes `-m MODULE`, such as accelerate launch --num_processes 2. environment: variables to set besides.
    Raises RunError for a launcher that is not there.
    """
    command = [*_launcher(launch), "-m", "talltree", stage, *arguments]
    command += [] if config is None else ["--config", str(config)]
    command += [] if resume is None else ["--resume", str(resume)]
    variables = {**os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1"}
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        begins_at = out.tell()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, *command],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=variables,
            # A Ctrl-C in the terminal reaches the driver alone, which passes it on once.
            start_new_session=True,
        )
    return StageProcess(process, log, begins_at)


def run_stage(
    stage: str,
    config: Path | None,
    log: Path,
    *,
    arguments: Sequence[str] = (),
    resume: Path | None = None,
    threads: int | None = None,
    launch: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    watch: Callable[[], None] | None = None,
) -> Ended:
    """`start`, then waits for the end; the first SIGINT or SIGTERM meanwhile goes to the stage, which saves.

    `watch` is called about five times a second. A second SIGINT raises KeyboardInterrupt and ends the stage.
    """
    with Interrupts() as interrupts:
        process = start(
            stage, config, log, arguments=arguments, resume=resume, threads=threads, launch=launch,
            environment=environment,
        )  # fmt: skip
        passed_on = None
        try:
            while (ended := process.wait(0.2)) is None:
                if interrupts.requested is not None and passed_on is None:
                    passed_on = interrupts.requested
                    process.signal(signal.Signals[passed_on])
                if watch is not None:
                    watch()
        finally:
            process.kill()
    return ended._replace(signal=passed_on)


def error_line(status: int, log: Path, begins_at: int = 0) -> str:
    """Why a stage ended with this status, in one line: its last error in the log, or the signal; "" for 0.

    Of a launcher's processes, the one that failed first counts, and the launcher's own report does not.
    """
    if status == 0:
        return ""
    if status < 0 and status != -signal.SIGKILL:
        return f"killed by signal {-status} ({signal.strsignal(-status)})"
    tail = _tail(log, begins_at)
    if status > 0 and (found := ERROR.findall(tail)):
        return str(found[-1]).strip()
    written, *report = LAUNCHER.split(tail, maxsplit=1)
    if status == -signal.SIGKILL or "Signal 9 (SIGKILL)" in "".join(report).rpartition("Root Cause")[2]:
        return f"killed (signal 9), probably out of memory: {SMALLER}"
    last = _last(written) or f"ended with status {status} and wrote nothing"
    return f"out of memory: {SMALLER} ({last[:LONGEST]})" if MEMORY.search(last) else last


def last_line(log: Path, begins_at: int = 0) -> str:
    """The last line of a log that is not blank; "" if there is none."""
    return _last(_tail(log, begins_at))


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _tail(log: Path, begins_at: int) -> str:
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(begins_at, end - TAIL))
        return file.read().decode("utf-8", "replace")


def _launcher(words: Sequence[str]) -> list[str]:
    if not words:
        return [sys.executable]
    # Beside the interpreter first: an environment need not be activated.
    found = shutil.which(words[0], path=str(Path(sys.executable).parent)) or shutil.which(words[0])
    if found is None:
        raise RunError(f"launch: {words[0]} is not on the PATH; install it, or give another launcher")
    return [found, *words[1:]]
