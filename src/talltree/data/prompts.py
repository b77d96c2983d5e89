"""Prompts: read from a file or given as texts, checked line by line, split into train and held-out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from talltree.errors import ConfigError, DataError
from talltree.types import Prompt

_REWARD_ARGUMENTS = ("prompts", "completions")


class Split(NamedTuple):
    """Prompts to train on and to evaluate on; held_out_is_train says that both are the same prompts."""

    train: list[Prompt]
    held_out: list[Prompt]
    held_out_is_train: bool


def read_prompts(path: Path | str, column: str = "prompt") -> list[Prompt]:
    """The prompts of a .jsonl file (their text in `column`, the other columns as the row) or a .txt file.

    In .txt, each line is a prompt. White space around a text is kept: it changes the tokens. Empty lines
    at the end of a file are no prompts. Raises DataError, naming file and line, for a line that is not UTF-8
    or no JSON object, lacks a column that another has, or whose text is missing, empty or no string.
    """
    path = Path(path).expanduser()
    if path.suffix not in (".jsonl", ".txt"):
        raise DataError(f"prompts {path}: ending {path.suffix!r} is not known; use .jsonl or .txt")
    if not path.is_file():
        raise DataError(f"prompts {path} not found: give a .jsonl or .txt file")
    lines = _lines(path)
    if not lines:
        raise DataError(f"prompts {path} is empty; it needs at least one prompt")
    if path.suffix == ".txt":
        return [_checked(line, {}, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    prompts = [_from_json(line, column, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    _check_columns(prompts, f"{path}, line ")
    return prompts


def literal_prompts(texts: Sequence[str]) -> list[Prompt]:
    """The texts as prompts without columns. Raises DataError for an empty one, named by its number from 1."""
    if not texts:
        raise DataError("no prompt is given; give at least one text")
    return [_checked(text, {}, f"prompt {number}") for number, text in enumerate(texts, 1)]


def columns(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """The rows turned into columns, one value per prompt, in the first row's order.

    The prompt's text is not among them. Raises DataError if a row lacks a column that another has.
    """
    _check_columns(prompts, "prompt ")
    return {name: [prompt.row[name] for prompt in prompts] for name in (prompts[0].row if prompts else ())}


def split_prompts(prompts: Sequence[Prompt], held_out: float) -> Split:
    """Splits by text: no text stands on both sides, so a prompt that occurs twice goes whole to one.

    round(held_out * D) of the D different texts are held out, at least 1 and at most D - 1: those with
    the smallest SHA-256, whatever the file's order and the run's seed: runs with several seeds, or rounds
    that follow each other, are measured on the same prompts. With one text only, or held_out 0, all
    prompts are on both sides and held_out_is_train is True. Raises ConfigError unless 0 <= held_out < 1.
    """
    if not 0 <= held_out < 1:
        raise ConfigError(f"held_out {held_out} is not a share: give 0 or more and less than 1")
    ranked = sorted({prompt.text for prompt in prompts}, key=_rank)
    if len(ranked) < 2 or held_out == 0:
        return Split(list(prompts), list(prompts), True)
    kept_back = set(ranked[: min(max(round(held_out * len(ranked)), 1), len(ranked) - 1)])
    return Split(
        [prompt for prompt in prompts if prompt.text not in kept_back],
        [prompt for prompt in prompts if prompt.text in kept_back],
        False,
    )


def _rank(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _lines(path: Path) -> list[str]:
    """The lines without their ends; not str.splitlines, which also cuts at characters that JSON may hold."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"prompts {path} cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte {error.start} of the file is not UTF-8 ({error.reason}); "
            "convert the file to UTF-8"
        ) from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _from_json(line: str, column: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: a number of over 4,300 digits, too
        why = (
            f"{error.msg} at character {error.pos + 1}"
            if isinstance(error, json.JSONDecodeError)
            else str(error)
        )
        raise DataError(f"{where} is not JSON: {why}; each line must be one object") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} is a JSON {type(row).__name__}, not an object such as {{{column!r}: ...}}")
    if column not in row:
        have = ", ".join(row) or "none"
        raise DataError(f"{where} has no column {column!r}; columns there: {have}")
    clash = [name for name in _REWARD_ARGUMENTS if name in row and name != column]
    if clash:
        raise DataError(f"{where}: column {clash[0]!r} clashes with a reward's own argument; rename it")
    return _checked(row[column], {name: value for name, value in row.items() if name != column}, where)


def _checked(text: object, row: dict[str, Any], where: str) -> Prompt:
    if not isinstance(text, str):
        raise DataError(f"{where}: the prompt is {str(text)[:60]!r} ({type(text).__name__}), not a text")
    if not text.strip():
        raise DataError(
            f"{where}: the prompt is empty; write a text such as 'Once upon a time', or remove the line"
        )
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(
            f"{where}: the prompt holds half a surrogate pair (\\ud800 to \\udfff); write it whole"
        )
    return Prompt(text, row)


def _check_columns(prompts: Sequence[Prompt], prefix: str) -> None:
    every = dict.fromkeys(name for prompt in prompts for name in prompt.row)
    for number, prompt in enumerate(prompts, 1):
        lacking = [name for name in every if name not in prompt.row]
        if lacking:
            raise DataError(
                f"{prefix}{number}: the column {lacking[0]!r} is missing, which other prompts have; "
                "give it a value, or null"
            )
