"""The processes of a run: one alone, or several that `accelerate launch` started.

Every process holds the whole model and makes the same random draws for the whole batch. Each samples, scores
and differentiates its own share of the rows; what it finds goes to all, so all know the same batch and decide
alike. Gradients are summed, not averaged: the weights of the loss carry the normalisation already. The main
process alone calls the reward, speaks and writes. Alone every function here is the work itself.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn

from talltree.errors import ConfigError, ModelError, RunError, TallTreeError
from talltree.models.memory import out_of_memory
from talltree.run import Run

T = TypeVar("T")
USER_ERROR = 2
PATIENCE = datetime.timedelta(days=1)
"""A reward may take its time; that a process has died shows at once, by its closed connection."""


@dataclass(frozen=True)
class Team:
    """rank 0 is the main process; here: how many are on this machine; launcher: who started this one."""

    rank: int = 0
    size: int = 1
    here: int = 1
    launcher: int | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The rows of `count` that are this process's: adjacent, as many as any other's or one more."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gathered(self, work: Callable[[], T]) -> list[T]:
        """What `work` gives in each process, by rank; what one raises is raised in all.

        A defect keeps its traceback where it is, and the other processes end with SystemExit. Results travel
        pickled, so tensors in them must be on the CPU; no collective may be inside.
        """
        if self.size == 1:
            return [work()]
        with _Told(self) as told:
            told.mine = work()
        return told.all

    def together(self, work: Callable[[], T]) -> T:
        """What `work` gives here, once it has ended in every process; what one raises is raised in all."""
        found: list[T] = []
        self.gathered(lambda: found.append(work()))
        return found[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work` gives in the main process, which alone does it, in every process."""
        found = self.gathered(lambda: [work()] if self.is_main else [])
        return found[0][0]

    def agreed(self, signal: str | None) -> str | None:
        """The signal that any process has received; a launcher that is gone counts as SIGTERM."""
        if self.launcher is not None and os.getppid() != self.launcher:
            signal = signal or "SIGTERM"
        return next((each for each in self.gathered(lambda: signal) if each is not None), None)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Each gradient becomes its sum over the processes; one that none of them has stays None."""
        if self.size == 1:
            return
        has_gradient = torch.tensor([each.grad is not None for each in parameters], dtype=torch.uint8)
        with _connected():
            dist.all_reduce(has_gradient, dist.ReduceOp.MAX)
            sums = []
            for parameter, is_there in zip(parameters, has_gradient.tolist(), strict=True):
                if is_there:
                    mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    parameter.grad = mine.contiguous()
                    sums.append(dist.all_reduce(parameter.grad, async_op=True))
            for each in sums:
                each.wait()

    def device(self, kind: torch.device) -> torch.device:
        """The device of that kind which this process computes on. Raises ConfigError for too few GPUs."""
        if self.size == 1 or kind.type != "cuda":
            return kind
        here, gpus = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        if here >= gpus:
            raise ConfigError(
                f"this machine has {gpus} GPUs, but process {here + 1} of the launch needs one as well; "
                f"launch {gpus} processes on it, or set device cpu"
            )
        torch.cuda.set_device(here)
        return torch.device("cuda", here)

    def leave(self) -> None:
        """Closes the connections: from here on every process is alone."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


ALONE = Team()


class _Told:
    """A with block that tells the other processes on its end what it gave or raised, and hears it of them."""

    def __init__(self, team: Team) -> None:
        self.mine: Any = None
        self.all: list[Any] = []
        self._team = team

    def __enter__(self) -> _Told:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        said: list[Any] = [None] * self._team.size
        with _connected():
            dist.all_gather_object(said, (self.mine, _for_others(error)))
        self.all = [found for found, _ in said]
        for rank, (_, raised) in enumerate(said):
            if raised is not None:
                if rank == self._team.rank:
                    return  # it goes on its way, with its own traceback
                raise raised from error


def _for_others(error: BaseException | None) -> BaseException | None:
    """What the other processes raise: the error, if it is the user's or memory's; for a defect they leave."""
    if error is None or isinstance(error, TallTreeError) or out_of_memory(error):
        return error
    return SystemExit(1)


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise RunError(
            "another process of this run has died, so it cannot go on; see above for what it said (killed by "
            "signal 9 is, as a rule, a lack of memory), then continue with --resume"
        ) from error


@contextmanager
def gather_team() -> Iterator[Team]:
    """The team that this process belongs to, for the length of a with block.

    Of several processes the main one alone speaks and raises TallTreeError; the others end with its status.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    with contextlib.ExitStack() as stack:
        if rank:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            _meet(size)
            yield Team(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", size)), os.getppid())
        except TallTreeError:
            if rank:
                raise SystemExit(USER_ERROR) from None
            raise
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def _meet(size: int) -> None:
    # Objects travel over the CPU in any case.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"the {size} processes that RANK and WORLD_SIZE tell of do not meet ({str(error)[:200]}); start "
            "them by accelerate launch, or unset the two for a run of one process"
        ) from error


def open_folder(team: Team, start: Callable[[], Run], path: str) -> Run:
    """The run folder that `start` opens for writing in the main process; the others may read it."""
    return team.together(lambda: start() if team.is_main else None) or Run.open(path)


def require_same(team: Team, loaded: object) -> None:
    """Raises ModelError unless all processes have loaded the same."""
    found = team.gathered(lambda: loaded)
    other = next((rank for rank, each in enumerate(found) if each != found[0]), None)
    if other is not None:
        raise ModelError(
            f"process {other} has loaded other weights or prompts than process 0; give every machine of the "
            "launch the same files"
        )
