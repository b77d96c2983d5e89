"""The GLUE and SuperGLUE tasks: the fields of each in the hub's layout, its labels and its measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from talltree.errors import DataError
from talltree.evals.classification_data import Found, hub_split, local_split, looked_for
from talltree.evals.classification_items import Item, TaskData, Text, label_of, string_of

GLUE = "nyu-mll/glue"
SUPERGLUE = "aps/super_glue"
ROOMS = ("glue", "super_glue", "superglue", "glue_filtered")
"""Subfolders of the data folder that are looked into as well."""

Fields = Callable[[Mapping[str, Any], str], tuple[Text, ...]]


class Task(NamedTuple):
    """One task: the texts of a row, the names of its labels, and its measures, the headline first.

    choices: the label says which of several texts is right. group: the column that items with a common origin
    share. block: columns of what is right only as a whole. files: the names that files give it.
    """

    about: str
    texts: Fields
    labels: tuple[str, ...]
    measures: tuple[str, ...]
    dataset: str
    config: str
    group: str
    block: tuple[str, ...] = ()
    choices: bool = False
    files: tuple[str, ...] = ()


def pair(first: str, second: str, shorten: int = 0) -> Fields:
    """Two columns in this order; `shorten` is the one that gives way where both together are too long."""
    return lambda row, where: (Text((string_of(row, first, where), string_of(row, second, where)), shorten),)


def single(column: str) -> Fields:
    """One column."""
    return lambda row, where: (Text((string_of(row, column, where),)),)


def _multirc(row: Mapping[str, Any], where: str) -> tuple[Text, ...]:
    parts = tuple(string_of(row, name, where) for name in ("question", "answer", "paragraph"))
    return (Text(parts, 2),)


def _wsc(row: Mapping[str, Any], where: str) -> tuple[Text, ...]:
    noun, pronoun, text = (string_of(row, name, where) for name in ("span1_text", "span2_text", "text"))
    return (Text((f'Here, does "{pronoun}" stand for "{noun}"?', text), 1),)


def _wic(row: Mapping[str, Any], where: str) -> tuple[Text, ...]:
    word, first, second = (string_of(row, name, where) for name in ("word", "sentence1", "sentence2"))
    return (Text((f'Does "{word}" mean the same here and there?', first, second), 1),)


def _copa(row: Mapping[str, Any], where: str) -> tuple[Text, ...]:
    premise, question, *choices = (
        string_of(row, name, where) for name in ("premise", "question", "choice1", "choice2")
    )
    if question not in ("cause", "effect"):
        raise DataError(f"{where}: question {question!r} is neither cause nor effect")
    asked = "Why? Because:" if question == "cause" else "What came of it? So:"
    return tuple(Text((premise, asked, choice), 0) for choice in choices)


_ENTAILS = ("entailment", "not_entailment")
_NO_YES = ("no", "yes")

TASKS: dict[str, Task] = {
    "cola": Task(
        "is a sentence acceptable?", single("sentence"), ("unacceptable", "acceptable"),
        ("matthews", "accuracy"), GLUE, "cola", "sentence",
    ),
    "sst2": Task(
        "is a phrase of a film review positive?", single("sentence"), ("negative", "positive"),
        ("accuracy",), GLUE, "sst2", "sentence", files=("sst-2",),
    ),
    "mrpc": Task(
        "do two sentences of news say the same?", pair("sentence1", "sentence2"),
        ("not_equivalent", "equivalent"), ("f1", "accuracy"), GLUE, "mrpc", "sentence1",
    ),
    "qqp": Task(
        "do two questions ask the same?", pair("question1", "question2"),
        ("not_duplicate", "duplicate"), ("f1", "accuracy"), GLUE, "qqp", "question1",
    ),
    "mnli": Task(
        "does a premise entail a hypothesis, contradict it, or neither?", pair("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"), ("accuracy",), GLUE, "mnli", "premise",
    ),
    "qnli": Task(
        "does a sentence answer a question?", pair("question", "sentence", 1), _ENTAILS, ("accuracy",), GLUE,
        "qnli", "question",
    ),
    "rte": Task(
        "does a text entail a hypothesis?", pair("sentence1", "sentence2"), _ENTAILS, ("accuracy",), GLUE,
        "rte", "sentence1",
    ),
    "boolq": Task(
        "does a passage answer a question with yes?", pair("question", "passage", 1), _NO_YES, ("accuracy",),
        SUPERGLUE, "boolq", "passage", files=("BoolQ",),
    ),
    "cb": Task(
        "does a premise entail a clause embedded in it?", pair("premise", "hypothesis"),
        ("entailment", "contradiction", "neutral"), ("accuracy", "macro_f1"), SUPERGLUE, "cb", "premise",
        files=("CB",),
    ),
    "copa": Task(
        "which of two sentences is the cause or the effect?", _copa, ("choice1", "choice2"), ("accuracy",),
        SUPERGLUE, "copa", "premise", choices=True, files=("COPA",),
    ),
    "multirc": Task(
        "is this an answer to the question about a paragraph?", _multirc, _NO_YES,
        ("f1", "accuracy", "exact_match"), SUPERGLUE, "multirc", "paragraph", ("paragraph", "question"),
        files=("MultiRC",),
    ),
    "wic": Task(
        "does a word mean the same in two sentences?", _wic, _NO_YES, ("accuracy",), SUPERGLUE, "wic", "word",
        files=("WiC",),
    ),
    "wsc": Task(
        "does a pronoun stand for a noun?", _wsc, _NO_YES, ("accuracy",), SUPERGLUE, "wsc.fixed", "text",
        files=("wsc.fixed", "WSC"),
    ),
}  # fmt: skip


def items(name: str, found: Found, split: str) -> list[Item]:
    """The items of a split. Raises DataError, naming file and line, for a row that does not fit the task."""
    task = TASKS[name]
    made = []
    for number, (where, row) in enumerate(found.rows):
        if "label" not in row:
            raise DataError(f"{where}: column `label` is missing; columns there: {', '.join(map(str, row))}")
        made.append(
            Item(
                id=f"{split}:{number}",
                texts=task.texts(row, where),
                label=label_of(row["label"], task.labels, where),
                group=string_of(row, task.group, where),
                block="\n".join(string_of(row, column, where) for column in task.block),
            )
        )
    if not made:
        raise DataError(f"{found.source} holds no rows; fetch it again")
    return made


def read(name: str, folder: Path | None) -> TaskData:
    """The rows of a task from a local folder, or from the hub where it is None.

    Trained on is `train`, scored is `validation`, for MNLI also `mismatched`; the test splits' labels are not
    public. Raises DataError that says what is missing, where it was looked for and what to fetch.
    """
    task = TASKS[name]
    if folder is None:
        train = hub_split(task.dataset, task.config, "train")
        held_out = hub_split(
            task.dataset, task.config, "validation_matched" if name == "mnli" else "validation"
        )
        other = hub_split(task.dataset, task.config, "validation_mismatched") if name == "mnli" else None
    else:
        train = _local(name, folder, "train")
        held_out = _local(name, folder, "validation")
        other = _mismatched(folder) if name == "mnli" else None
    scored = {"": items(name, held_out, "validation")}
    if other is not None:
        scored["mismatched"] = items(name, other, "mismatched")
    sources = tuple(each.source for each in (train, held_out, other) if each is not None)
    return TaskData(items(name, train, "train"), scored, sources)


def _mismatched(folder: Path) -> Found | None:
    files = local_split(folder, ROOMS, ("mnli-mm",), "validation")
    return files or local_split(folder, ROOMS, ("mnli",), "validation_mismatched")


def _local(name: str, folder: Path, split: str) -> Found:
    task = TASKS[name]
    found = local_split(folder, ROOMS, (name, *task.files), split)
    if found is None:
        raise DataError(
            f"glue:{name} has no {split} data: {looked_for(folder, ROOMS, name, split)}; fetch configuration "
            f"{task.config} of the dataset {task.dataset}, or leave the data folder out to have it fetched"
        )
    return found
