"""What tasks are made of: parts that are computed, cached and resumed one by one, and what joins them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from talltree.evals.likelihood import Heard
from talltree.evals.results import TaskResult
from talltree.stages.evaluate.models import Loaded


class Progress(NamedTuple):
    """How a part tells that it goes on: tokens read, or a line of words."""

    heard: Heard
    say: Callable[[str], None]


class Part(NamedTuple):
    """A piece of a task whose result is kept: `data` and `options` are what it answers to beside the model.

    compute: the model, the results of the task's earlier parts, and where to tell of progress.
    """

    name: str
    data: Any
    options: Any
    compute: Callable[[Loaded, Sequence[TaskResult], Progress], TaskResult]


class Task(NamedTuple):
    """A task's parts in order, and its result from theirs."""

    name: str
    parts: list[Part]
    join: Callable[[Sequence[TaskResult]], TaskResult]


def last(results: Sequence[TaskResult]) -> TaskResult:
    """The join of a task whose last part has everything."""
    return results[-1]
