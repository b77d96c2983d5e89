"""SIGINT and SIGTERM as a flag that a stage loop polls between steps, and the exit that they lead to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_STATUS = {each.name: 128 + each for each in SIGNALS}
"""Signal -> the status of a stage that it has stopped: 130 and 143, as shells count."""


class Interrupts:
    """Inside `with Interrupts() as interrupts`, the first SIGINT or SIGTERM only sets `interrupts.requested`.

    `requested` is None or the signal's name ("SIGINT"). A SIGINT after that raises KeyboardInterrupt at once.
    The earlier handlers come back at the end. Outside the main thread, where Python allows no handlers,
    nothing is changed and `requested` stays None.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # A handler that was not set from Python is reported as None and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = self.requested or signal.Signals(number).name


def leave(signal_name: str, step: int, stage: str, folder: Path, say: Callable[[str], None]) -> NoReturn:
    """Says which step is saved and how to go on, and exits with the signal's status."""
    say(f"{signal_name}: saved step {step}; continue with talltree {stage} --resume {folder}")
    raise SystemExit(EXIT_STATUS[signal_name])
