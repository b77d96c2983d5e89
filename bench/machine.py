"""What this machine can do: float32 matrix rate, memory bandwidth, and the peak memory of a process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from bench.roofline import BYTES

WARM_UP = 2
"""Steps that are not timed: the first loads and allocates, and writes its log with imports of its own."""

SQUARES = (512, 1024, 2048, 4096)
STREAMED = 64
"""Matrices of 1024 x 1024, 256 MiB: more than any cache holds, so that every product reads memory."""


def work(task: Mapping[str, Any]) -> dict[str, Any]:
    """Best of a few repetitions each, in operations and bytes a second; `task` has device.

    matrix_rate: the best square product. bandwidth: the best of a copy (bytes read and written) and of
    one-row products, which stream weights as decoding does, over many layer-sized matrices and over one head.
    """
    device = task["device"]
    squares = {str(n): _square(n, device) for n in SQUARES}
    copied = _copy(32 * 2**20, device)
    layers = _stream(STREAMED, 1024, 1024, device)
    head = _stream(1, 32_000, 288, device)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "squares": squares,
        "matrix_rate": max(squares.values()),
        "copy": copied,
        "stream_layers": layers,
        "stream_head": head,
        "bandwidth": max(copied, layers, head),
    }


def best_seconds(function: Callable[[], object], device: str, repetitions: int = 5) -> float:
    """Shortest wall time of a call, after one that does not count."""
    function()
    times = []
    for _ in range(repetitions):
        synchronise(device)
        started = time.perf_counter()
        function()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return min(times)


def synchronise(device: str) -> None:
    """Waits for whatever the device still computes."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory() -> int:
    """Peak resident bytes of this process alone: a child's own, which ru_maxrss is not (it outlives exec).

    Raises OSError where there is no /proc, that is, elsewhere than on Linux.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def memory(device: str) -> dict[str, int | None]:
    """Peak bytes of the process and, where there is one, of the GPU."""
    return {
        "peak_bytes": peak_memory(),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


class StepClock:
    """Instants of the optimiser's steps, and seconds by phase since the one before.

    The time between two optimiser steps is one whole step of any trainer, logging and files included, and is
    measured in one way for all of them.
    """

    def __init__(self, device: str) -> None:
        self.instants: list[float] = []
        self.phases: list[dict[str, float]] = []
        self._device = device
        self._sums: dict[str, float] = {}

    @contextmanager
    def running(self) -> Iterator[StepClock]:
        """While this is open, every optimiser step of the process is noted."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        handle = register_optimizer_step_post_hook(lambda *_: self._note())
        try:
            yield self
        finally:
            handle.remove()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the block's wall time to a phase of the present step."""
        synchronise(self._device)
        started = time.perf_counter()
        yield
        synchronise(self._device)
        self._sums[name] = self._sums.get(name, 0.0) + time.perf_counter() - started

    def seconds(self) -> list[float]:
        """Wall time of every step after the WARM_UP first ones."""
        instants = self.instants[WARM_UP - 1 :]
        return [after - before for before, after in zip(instants, instants[1:], strict=False)]

    def _note(self) -> None:
        synchronise(self._device)
        self.instants.append(time.perf_counter())
        self.phases.append(self._sums)
        self._sums = {}


def _square(n: int, device: str) -> float:
    left, right = torch.rand(n, n, device=device), torch.rand(n, n, device=device)
    out = torch.empty(n, n, device=device)
    return 2 * n**3 / best_seconds(lambda: torch.mm(left, right, out=out), device)


def _copy(numbers: int, device: str) -> float:
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    return 2 * BYTES * numbers / best_seconds(lambda: target.copy_(source), device)


def _stream(count: int, outputs: int, inputs: int, device: str) -> float:
    weights = [torch.rand(outputs, inputs, device=device) for _ in range(count)]
    one_row = torch.rand(1, inputs, device=device)

    def products() -> None:
        for weight in weights:
            linear(one_row, weight)

    return BYTES * count * outputs * inputs / best_seconds(products, device)
