"""Items of a classification task: their texts, which of them train, stop or are scored, cutting to length.

Nothing here knows a model or a file.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from talltree.errors import ContractError, DataError


class Text(NamedTuple):
    """Parts that stand on lines of their own; part number `shorten` gives way first where it is too long."""

    parts: tuple[str, ...]
    shorten: int = 0

    @property
    def joined(self) -> str:
        return "\n".join(self.parts)


@dataclass(frozen=True)
class Item:
    """One thing to classify.

    id: split and row number from 0, unique in a task. texts: one, or one per choice where the answer is one
    of them. group: what items share that would help to guess each other, such as a passage; groups are kept
    together when rows are carved and when intervals are drawn. block: items that are right only all together
    (exact match); "" where there is no such thing.
    """

    id: str
    texts: tuple[Text, ...]
    label: int
    group: str
    block: str = ""


@dataclass(frozen=True)
class TaskData:
    """The rows of a task: training rows, and the rows to score by part, "" being the one that counts."""

    train: list[Item]
    scored: dict[str, list[Item]]
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


class Carved(NamedTuple):
    """Training rows: those that are fitted, those that say when to stop; how many stood among the scored."""

    fit: list[Item]
    stop: list[Item]
    left_out: int


def carve(data: TaskData, stop_share: float, seed: int, max_rows: int | None = None) -> Carved:
    """Fitted and stopping rows out of the training rows: whole groups, drawn by seed, never a scored text.

    Groups in a random order go to the stopping rows until they hold at least stop_share of all rows. Raises
    DataError where no row or no two groups are left.
    """
    scored = {item.texts for items in data.scored.values() for item in items}
    train = [item for item in data.train if item.texts not in scored]
    left_out = len(data.train) - len(train)
    if not train:
        raise DataError(
            f"{', '.join(data.sources) or 'the training data'}: all {len(data.train)} training rows are "
            "scored rows as well; what is scored cannot be trained on, so give the real training split"
        )
    groups: dict[str, list[Item]] = {}
    for item in train:
        groups.setdefault(item.group, []).append(item)
    order = list(groups)
    random.Random(f"{seed} rows").shuffle(order)
    taken: list[str] = []
    count = 0
    for name in order:
        if max_rows is not None and taken and count + len(groups[name]) > max_rows:
            break
        taken.append(name)
        count += len(groups[name])
    stop_names: set[str] = set()
    stopping = 0
    for name in taken[:-1]:
        if stopping >= stop_share * count:
            break
        stop_names.add(name)
        stopping += len(groups[name])
    if not stop_names:
        raise DataError(
            f"{', '.join(data.sources) or 'the training data'}: {count} training rows share one text, so "
            "none can be kept apart to say when to stop; give more rows"
        )
    chosen = set(taken)
    fit = [item for item in train if item.group in chosen and item.group not in stop_names]
    stop = [item for item in train if item.group in stop_names]
    return Carved(fit, stop, left_out)


def check_apart(fit: Sequence[Item], stop: Sequence[Item], scored: Sequence[Item]) -> None:
    """Raises ContractError where a row has two purposes, or a scored text is trained on under another id."""
    purposes = {"fitted": fit, "stopping": stop, "scored": scored}
    purpose_of: dict[str, str] = {}
    for purpose, items in purposes.items():
        for item in items:
            if purpose_of.setdefault(item.id, purpose) != purpose:
                raise ContractError(f"row {item.id} is both {purpose_of[item.id]} and {purpose}")
    texts = {item.texts: item.id for item in scored}
    for item in (*fit, *stop):
        if item.texts in texts:
            raise ContractError(
                f"row {item.id} is {purpose_of[item.id]}, but row {texts[item.texts]}, which is scored, has "
                "the same texts"
            )


def majority(items: Sequence[Item]) -> int:
    """The most frequent label, the smallest of those that are equally frequent."""
    counts: dict[int, int] = {}
    for item in items:
        counts[item.label] = counts.get(item.label, 0) + 1
    return min(counts, key=lambda label: (-counts[label], label))


def cut_to_fit(text: Text, fits: Callable[[str], bool]) -> tuple[str, int]:
    """The joined text with as few words as possible taken off ends until it fits, and how many they were.

    Words go from the end of the part `shorten`, and only when that is empty from the ends of the others, the
    longest first. Raises DataError where even no word at all fits.
    """
    if fits(text.joined):
        return text.joined, 0
    parts = list(text.parts)
    dropped = 0
    others = sorted((n for n in range(len(parts)) if n != text.shorten), key=lambda n: -len(parts[n]))
    for number in (text.shorten, *others):
        whole = parts[number]
        ends = [0, *(match.end() for match in re.finditer(r"\S+", whole))]
        low, high = 0, len(ends) - 1
        while low < high:
            middle = (low + high + 1) // 2
            parts[number] = whole[: ends[middle]]
            low, high = (middle, high) if fits("\n".join(parts)) else (low, middle - 1)
        parts[number] = whole[: ends[low]]
        dropped += len(ends) - 1 - low
        if fits("\n".join(parts)):
            return "\n".join(parts), dropped
    raise DataError(
        f"not a word of {text.joined[:60]!r} fits into the model's input; give a longer max_length"
    )


def label_of(value: object, names: Sequence[str], where: str) -> int:
    """A label given as number, truth value or name. Raises DataError for another, and for -1 (hidden)."""
    if isinstance(value, str) and value in names:
        return names.index(value)
    if isinstance(value, (bool, int)) and 0 <= int(value) < len(names):
        return int(value)
    if value == -1:
        raise DataError(f"{where}: label -1 means that the labels of this split are hidden; use validation")
    raise DataError(
        f"{where}: label {value!r} is none of {', '.join(f'{n} ({name})' for n, name in enumerate(names))}"
    )


def string_of(row: Mapping[str, object], name: str, where: str) -> str:
    """A text column. Raises DataError where it is missing or no text."""
    value = row.get(name)
    if not isinstance(value, str):
        found = "missing" if name not in row else f"{type(value).__name__}, a string is needed"
        raise DataError(f"{where}: column `{name}` is {found}; columns there: {', '.join(map(str, row))}")
    return value
