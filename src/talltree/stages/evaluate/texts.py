"""Texts that a task reads: opened, hashed, and named without the machine's folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from talltree.data.corpus_options import FILE_ENDINGS, Source
from talltree.data.sources import OpenSource, open_source
from talltree.errors import DataError
from talltree.stages.evaluate.config import TextOptions


def open_texts(options: TextOptions, option: str) -> OpenSource:
    """The files or dataset of `options.data`. Raises DataError, naming the option, where there is none."""
    name = options.data
    path = Path(name).expanduser()
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix in FILE_ENDINGS
    is_hub = not looks_local and not path.exists()
    source = Source(
        path="" if is_hub else name,
        dataset=name if is_hub else "",
        column=options.column,
        split=options.split,
        documents=options.documents,
        separator=options.separator,
    )
    try:
        return open_source(source)
    except DataError as error:
        raise DataError(f"{option}: {error}") from None


def texts_key(opened: OpenSource, options: TextOptions) -> list[Any]:
    """What decides which texts are read: the files' SHA-256 and how they become documents."""
    return [
        sorted(opened.sha256.values()),
        options.column,
        options.split,
        options.documents,
        options.separator,
        options.max_documents,
    ]
