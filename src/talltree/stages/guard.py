"""Runs a command for as long as its starter lives: `python guard.py COMMAND ...`, standard library alone.

stdin is a pipe that the starter holds open and never writes to. Its end means that the starter is gone,
however it died, SIGKILL included. This holds on every POSIX system; a parent's death signal is Linux's own.
A deputy does the same should this process be killed first: Ray kills the children of a worker that it ends.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

GRACE = 5.0
"""Seconds between SIGTERM, on which a stage saves a checkpoint, and SIGKILL once the starter is gone."""
MOMENT = 0.5
"""Seconds after the starter's end in which a guard that dies with it will have died."""


def main(command: Sequence[str]) -> int:
    """Runs the command, forwards SIGINT and SIGTERM to it, and ends with its status or by its signal."""
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, forward)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    for number in early:
        child.send_signal(number)
    guard = os.getpid()
    if (deputy := os.fork()) == 0:
        _stand_in(guard, child.pid)
    is_alone = threading.Event()
    threading.Thread(target=_end_with_starter, args=(child, is_alone), daemon=True).start()
    status = child.wait()
    if is_alone.is_set():
        # Whatever the command has left behind goes, too, such as the process of a launcher; so does this one.
        os.killpg(0, signal.SIGKILL)
    os.kill(deputy, signal.SIGKILL)
    os.waitpid(deputy, 0)
    if status >= 0:
        return status
    # By the same signal, so that the starter sees what ended the command itself.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
    return 128 - status


def _end_with_starter(child: subprocess.Popen[bytes], is_alone: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    is_alone.set()
    child.terminate()
    time.sleep(GRACE)
    os.killpg(0, signal.SIGKILL)


def _stand_in(guard: int, child: int) -> NoReturn:
    """Waits for the starter's end as well, and ends the command if by then the guard is gone."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    time.sleep(MOMENT)
    if os.getppid() == guard:
        os._exit(0)
    deadline = time.monotonic() + GRACE
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM)
        while time.monotonic() < deadline:
            time.sleep(0.1)
            os.kill(child, 0)
    os.killpg(0, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
