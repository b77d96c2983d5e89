"""From the names of tasks to their parts; their data are read and checked before any model is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from talltree.errors import ConfigError, DataError
from talltree.evals import blimp, heldout
from talltree.evals.results import TaskResult
from talltree.stages.evaluate.config import Config
from talltree.stages.evaluate.finetuning import finetuning_task
from talltree.stages.evaluate.models import Loaded
from talltree.stages.evaluate.parts import Part, Progress, Task, last
from talltree.stages.evaluate.stories import stories_task
from talltree.stages.evaluate.texts import open_texts, texts_key

if TYPE_CHECKING:
    from collections.abc import Mapping

BLIMP_VERSION = LOSS_VERSION = 1
"""Part of what a cached result answers to: raised when the same model and data would give another figure."""


def task_list(config: Config) -> list[Task]:
    """Every task that the config names, its data read. Raises ConfigError or DataError."""
    names: dict[str, list[str]] = {}
    for full in config.task_names:
        group, _, part = full.partition(":")
        if group not in MAKERS:
            raise ConfigError(
                f"tasks: {full!r} is not known; nearest: {nearest(full)}; tasks: {', '.join(MAKERS)}"
            )
        names.setdefault(group, [])
        if part:
            names[group].append(part)
        elif full in config.task_names and any(each.startswith(f"{group}:") for each in config.task_names):
            raise ConfigError(f"tasks names {group} as a whole and a part of it; give one or the other")
    return [task for group, parts in names.items() for task in MAKERS[group](config, parts)]


def nearest(name: str) -> str:
    """The known task, or part of a task, whose name is most like this one."""
    from talltree.evals.finetune import TASKS as FINETUNING

    known = [*MAKERS, *(f"blimp:{each}" for each in blimp.PARADIGMS), *FINETUNING]
    return difflib.get_close_matches(name, known, 1, 0.0)[0]


def _whole(group: str, parts: Sequence[str]) -> None:
    if parts:
        raise ConfigError(f"tasks: {group}:{parts[0]} is not known; {group} has no parts; nearest: {group}")


def _blimp(config: Config, parts: Sequence[str]) -> list[Task]:
    for name in parts:
        if name not in blimp.PARADIGMS:
            raise ConfigError(f"tasks: 'blimp:{name}' is not known; nearest: {nearest(f'blimp:{name}')}")
    paradigms = blimp.read_paradigms(config.blimp.data, parts or blimp.PARADIGMS)
    return [Task("blimp", [_paradigm(config, each) for each in paradigms], _join_blimp)]


def _paradigm(config: Config, paradigm: blimp.Paradigm) -> Part:
    space = config.blimp.leading_space

    def compute(loaded: Loaded, _: Sequence[TaskResult], progress: Progress) -> TaskResult:
        rows = blimp.score_paradigm(
            loaded.model, loaded.tokenizer, paradigm, leading_space=space, heard=progress.heard
        )
        return TaskResult({}, rows, (blimp.read_after(loaded.tokenizer, space),))

    return Part(paradigm.name, paradigm.sha256, [BLIMP_VERSION, space], compute)


def _join_blimp(results: Sequence[TaskResult]) -> TaskResult:
    found = blimp.summarise([row for result in results for row in result.rows])
    return found._replace(notes=(*results[0].notes, *found.notes))


def _loss(config: Config, parts: Sequence[str]) -> list[Task]:
    _whole("loss", parts)
    options = config.loss
    opened = open_texts(options, "loss.data")
    texts = heldout.documents(opened, options.max_documents)

    def compute(loaded: Loaded, _: Sequence[TaskResult], progress: Progress) -> TaskResult:
        rows = heldout.score_documents(
            loaded.model,
            loaded.tokenizer,
            texts,
            stride=options.stride,
            end_token=options.end_token,
            heard=progress.heard,
        )
        return heldout.summarise(
            list(rows), loaded.tokenizer, heldout.stride_of(loaded.model, options.stride)
        )

    decides = [LOSS_VERSION, options.stride, options.end_token]
    return [Task("loss", [Part(opened.source.label, texts_key(opened, options), decides, compute)], last)]


def _stories(config: Config, parts: Sequence[str]) -> list[Task]:
    _whole("stories", parts)
    return [stories_task(config.stories)]


def _finetuning(group: str) -> Callable[[Config, Sequence[str]], list[Task]]:
    def make(config: Config, parts: Sequence[str]) -> list[Task]:
        from talltree.evals.finetune import TASKS, read_task

        for name in parts:
            if f"{group}:{name}" not in TASKS:
                raise ConfigError(
                    f"tasks: '{group}:{name}' is not known; nearest: {nearest(f'{group}:{name}')}"
                )
        given = config.glue_data if group == "glue" else config.msgs_data
        folder = None if given is None else Path(given).expanduser()
        names = [f"{group}:{name}" for name in parts] or [
            name for name in TASKS if name.startswith(f"{group}:")
        ]
        read, missing = {}, {}
        for name in names:
            try:
                read[name] = read_task(name, folder)
            except DataError as error:
                missing[name] = str(error)
        if missing:
            raise DataError(_missing(group, names, list(read), missing))
        return [finetuning_task(name, data, config.finetune) for name, data in read.items()]

    return make


def _missing(group: str, names: Sequence[str], read: Sequence[str], missing: Mapping[str, str]) -> str:
    first = next(iter(missing.values()))
    if len(names) == 1:
        return first
    at_hand = f"; to run those at hand: --tasks {','.join(read)}" if read else ""
    return f"{group}: {len(missing)} of {len(names)} tasks cannot be read; the first: {first}{at_hand}"


MAKERS: dict[str, Callable[[Config, Sequence[str]], list[Task]]] = {
    "loss": _loss,
    "blimp": _blimp,
    "stories": _stories,
    "glue": _finetuning("glue"),
    "msgs": _finetuning("msgs"),
}
