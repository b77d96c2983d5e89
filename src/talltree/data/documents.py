"""Documents from text files and rows: read as a stream, each fault named with its file and line or byte.

White space around a document is removed and nothing else is. A byte-order mark at the start of a file is
no text. A file with a NUL byte near its start is binary.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from talltree.data.corpus_options import FIELD, Source
from talltree.errors import DataError

CHUNK = 2**20
LONGEST_DOCUMENT = 64 * 2**20
"""Characters; a longer one is a file whose boundaries were not found, and would sit in memory whole."""


class Document(NamedTuple):
    """A text, or a pair whose prompt is read and whose completion is written; `prompt` is "" for a text.

    where: its file and line, or row, for messages.
    """

    prompt: str
    completion: str
    where: str = ""

    @property
    def text(self) -> str:
        return self.prompt + self.completion

    @property
    def key(self) -> str:
        """What decides the split: pairs with one prompt stay together."""
        return self.prompt or self.completion


# Text files


def decoded(path: Path) -> Iterator[str]:
    """A UTF-8 file in pieces of about 1 MiB.

    Raises DataError for an empty file, one with a NUL byte in its first 8,192 bytes (binary), and for bytes
    that are not UTF-8, naming the byte counted from 0.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    at = 0
    try:
        with path.open("rb") as file:
            while block := file.read(CHUNK):
                if at == 0:
                    _refuse_binary(path, block[:8192])
                before = at - len(decoder.getstate()[0])
                at += len(block)
                text = decoder.decode(block)
                yield text.removeprefix("\ufeff") if before == 0 else text
            before = at - len(decoder.getstate()[0])
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {before + error.start} is not UTF-8 ({error.reason}); convert the file first"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if at == 0:
        raise DataError(f"{path} is empty (0 bytes); fetch it again or take it out of the corpus")


def _refuse_binary(path: Path, start: bytes) -> None:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16, not UTF-8; convert it first")
    if b"\0" in start:
        raise DataError(f"{path} is a binary file: byte {start.index(0)} is NUL; give UTF-8 text")


def pieces(chunks: Iterable[str], separator: str, where: str) -> Iterator[str]:
    """The stretches of a text between separators; a blank one at the end is none.

    Raises DataError for a stretch of more than LONGEST_DOCUMENT characters.
    """
    begun: list[str] = []
    carry = ""  # the end of what is begun, which may hold the first part of a separator
    length = 0
    for chunk in chunks:
        head, *more = (carry + chunk).split(separator)
        length += len(head) - len(carry)
        if more:
            yield "".join(begun) + head
            yield from more[:-1]
            begun, head, length = [], more[-1], len(more[-1])
        cut = max(len(head) - len(separator) + 1, 0)
        begun.append(head[:cut])
        carry = head[cut:]
        if length > LONGEST_DOCUMENT:
            raise DataError(
                f"{where}: a document of more than {LONGEST_DOCUMENT:,} characters (no {separator!r} in it); "
                "say with documents: line, blank_line or separator where documents end"
            )
    last = "".join(begun) + carry
    if last.strip():
        yield last


def paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Runs of lines between blank lines, joined by newlines."""
    run: list[str] = []
    for line in lines:
        if line.strip():
            run.append(line)
        elif run:
            yield "\n".join(run)
            run = []
    if run:
        yield "\n".join(run)


def groups_of_lines(lines: Iterable[str], count: int) -> Iterator[str]:
    """Every `count` lines joined by newlines, the last group maybe shorter."""
    run: list[str] = []
    for line in lines:
        run.append(line)
        if len(run) == count:
            yield "\n".join(run)
            run = []
    if run:
        yield "\n".join(run)


def text_documents(chunks: Iterable[str], source: Source, where: str) -> Iterator[str]:
    """The documents of one text under `source.documents`, white space around each removed, "" included."""
    if source.documents == "file":
        text = "".join(chunks)
        if len(text) > LONGEST_DOCUMENT:
            raise DataError(
                f"{where}: {len(text):,} characters as one document; at most {LONGEST_DOCUMENT:,}"
            )
        found: Iterable[str] = [text]
    elif source.documents in ("auto", "separator"):
        found = pieces(chunks, source.separator, where)
    else:
        lines = pieces(chunks, "\n", where)
        by_line = source.documents == "line"
        found = groups_of_lines(lines, source.lines_per_document) if by_line else paragraphs(lines)
    yield from (text.strip() for text in found)


# Rows


def jsonl_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and line, row) of each line that is not blank. Raises DataError for one that is no object."""
    for number, line in enumerate(pieces(decoded(path), "\n", str(path)), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
        except (ValueError, RecursionError) as error:  # a number of over 4,300 digits, deep nesting
            raise DataError(f"{where}: not JSON ({str(error)[:80]})") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: a JSON {type(row).__name__}, not an object such as {{'text': ...}}")
        yield where, row


def columns_of(source: Source) -> list[str]:
    """The columns that a row must have: those of the templates, or the text column."""
    if source.completion:
        return list(dict.fromkeys(FIELD.findall(source.prompt + source.completion)))
    return [source.column]


def row_document(row: Mapping[str, Any], source: Source, where: str) -> Document:
    """A row's text column without white space around it, or its prompt and completion from the templates.

    An empty completion makes an empty document. Raises DataError, naming the row, for a missing column, a
    value that is no string, or half a surrogate pair.
    """
    values = {name: _value(row, name, where) for name in columns_of(source)}
    if not source.completion:
        return Document("", values[source.column].strip(), where)
    prompt, completion = (_filled(template, values) for template in (source.prompt, source.completion))
    return Document(prompt, completion, where) if completion.strip() else Document("", "", where)


def _filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its fields stripped; a template that is one field alone keeps it as it is."""
    if alone := FIELD.fullmatch(template):
        return values[alone[1]]
    return FIELD.sub(lambda field: values[field[1]].strip(), template)


def _value(row: Mapping[str, Any], name: str, where: str) -> str:
    if name not in row:
        raise DataError(
            f"{where}: no column `{name}`; found: {', '.join(map(str, row)) or 'none'}; name yours in "
            "corpus.column, or in corpus.prompt and corpus.completion"
        )
    value = row[name]
    if not isinstance(value, str):
        raise DataError(f"{where}: `{name}` is {type(value).__name__}, a string is needed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: character {error.start} of `{name}` is half a surrogate pair; write it whole"
        ) from None
    return value
