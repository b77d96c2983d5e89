"""Sources of a corpus: files, nested folders and `datasets`, opened with the SHA-256 of every file.

A dataset is read through its memory-mapped Arrow files, so its texts are not in memory. Code that comes
with a dataset is never run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from talltree import checkpoint
from talltree.data.corpus_options import FILE_ENDINGS, Source
from talltree.data.documents import (
    Document,
    columns_of,
    decoded,
    jsonl_rows,
    row_document,
    text_documents,
)
from talltree.errors import DataError

HUB_ENDINGS = (".parquet", ".arrow")
ROWS_AT_ONCE = 256
_NO_CODE = {"trust_remote_code": False}


class OpenSource(NamedTuple):
    """A source that exists: its files by name, or its dataset, with SHA-256; `passed_over` were not read."""

    source: Source
    files: dict[str, Path]
    dataset: Any
    sha256: dict[str, str]
    passed_over: list[str]


def open_source(source: Source) -> OpenSource:
    """Finds the files or loads the dataset of a source. Raises DataError if it is not there or unreadable."""
    path = Path(source.path).expanduser()
    if source.path and (path.exists() or not source.dataset):
        if path.is_dir() and any(_under(path, HUB_ENDINGS)):
            dataset = load_dataset(source, str(path))
            files = {name: path / name for name in _under(path, HUB_ENDINGS)}
            return OpenSource(source, {}, dataset, _hashes(source.label, files), [])
        files, passed_over = corpus_files(path)
        return OpenSource(source, files, None, _hashes(source.label, files), passed_over)
    dataset = load_dataset(source, source.dataset)
    arrow = sorted(Path(entry["filename"]) for entry in dataset.cache_files)
    return OpenSource(source, {}, dataset, _hashes(source.label, {file.name: file for file in arrow}), [])


def corpus_files(path: Path) -> tuple[dict[str, Path], list[str]]:
    """The text and JSONL files of a corpus by name, and the names of files that are neither.

    A file, or a folder with everything below it but hidden files, in the order of their names. Raises
    DataError when there is none, or when a file's ending says neither format.
    """
    if path.is_dir():
        every = list(_under(path, ()))
        files = {name: path / name for name in every if name.endswith(FILE_ENDINGS)}
        if not files:
            raise DataError(
                f"corpus folder {path} holds no .jsonl or .txt file; "
                f"found: {', '.join(every[:5]) or 'nothing'}"
            )
        return files, [name for name in every if name not in files]
    if not path.is_file():
        raise DataError(f"corpus {path} not found: give a .jsonl or .txt file, or a folder of them")
    if path.suffix not in FILE_ENDINGS:
        raise DataError(f"corpus {path}: ending {path.suffix!r} is not known; use {', '.join(FILE_ENDINGS)}")
    return {path.name: path}, []


def _under(folder: Path, endings: tuple[str, ...]) -> Iterator[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    visible = (name for name in names if not any(part.startswith(".") for part in name.split("/")))
    return iter(sorted(name for name in visible if not endings or name.endswith(endings)))


def _hashes(label: str, files: Mapping[str, Path]) -> dict[str, str]:
    try:
        digests = {name: checkpoint.file_sha256(path) for name, path in files.items()}
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
    alone = list(digests) == [label]
    return {name if alone else f"{label}/{name}": digest for name, digest in digests.items()}


def load_dataset(source: Source, name: str) -> Any:
    """One split of a dataset of the hub or of a local folder in the hub's layout.

    Raises DataError where it is missing, unreadable or has no such split.
    """
    import datasets

    # From version 4 on there is no such option, and a dataset's code is never run.
    refuse_code: dict[str, Any] = {} if int(datasets.__version__.split(".")[0]) > 3 else _NO_CODE
    try:
        if Path(name, "dataset_info.json").is_file() or Path(name, "dataset_dict.json").is_file():
            found = datasets.load_from_disk(name)
            dataset = found[source.split] if isinstance(found, datasets.DatasetDict) else found
        else:
            # A folder of mere parquet files has no configurations; a copy of a hub dataset says its own.
            is_bare = Path(name).is_dir() and not Path(name, "README.md").is_file()
            dataset = datasets.load_dataset(
                name,
                None if is_bare else source.config_name,
                split=source.split,
                data_files=source.data_files,
                revision=source.revision,
                **refuse_code,
            )
    except (
        datasets.exceptions.DatasetsError,
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        TypeError,
    ) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"dataset {name}, split {source.split}, cannot be loaded ({reason[:200]}); check the name "
            "and the network, or give a local folder"
        ) from None
    return dataset


def columns_there(opened: OpenSource) -> list[str]:
    """The columns of a dataset, or of the first row of its first .jsonl file; none for mere text."""
    if opened.dataset is not None:
        return list(opened.dataset.column_names)
    for path in opened.files.values():
        if path.suffix == ".jsonl":
            return next((list(map(str, row)) for _, row in jsonl_rows(path)), [])
    return []


def read(opened: OpenSource) -> Iterator[Document]:
    """The documents of a source in the order of its files and rows, empty ones included."""
    source = opened.source
    if opened.dataset is not None:
        yield from _from_rows(_dataset_rows(opened), source, source.label)
    for path in opened.files.values():
        if path.suffix == ".jsonl":
            yield from _from_rows(jsonl_rows(path), source, str(path))
        elif source.completion:
            raise DataError(f"{path}: prompt and completion need rows; a text file has none")
        else:
            yield from _numbered(text_documents(decoded(path), source, str(path)), str(path))


def _from_rows(
    rows: Iterator[tuple[str, Mapping[str, Any]]], source: Source, where: str
) -> Iterator[Document]:
    """Each row a document, or the rows as the lines of one text where `documents` says so."""
    first = next(rows, None)
    if first is None:
        raise DataError(f"{where} holds no rows; fetch it again or take it out of the corpus")
    documents = (row_document(row, source, place) for place, row in itertools.chain([first], rows))
    if source.documents == "auto":
        yield from documents
    else:
        chunks = (f"{document.completion}\n" for document in documents)
        yield from _numbered(text_documents(chunks, source, where), where)


def _numbered(texts: Iterator[str], where: str) -> Iterator[Document]:
    return (Document("", text, f"{where}, document {number}") for number, text in enumerate(texts, start=1))


def _dataset_rows(opened: OpenSource) -> Iterator[tuple[str, Mapping[str, Any]]]:
    columns = columns_of(opened.source)
    there = columns_there(opened)
    for column in columns:
        if column not in there:
            raise DataError(
                f"dataset {opened.source.label}: no column `{column}`; columns there: {', '.join(there)}"
            )
    number = 0
    for batch in opened.dataset.select_columns(columns).iter(batch_size=ROWS_AT_ONCE):
        for values in zip(*(batch[column] for column in columns), strict=True):
            number += 1
            yield f"{opened.source.label}, row {number}", dict(zip(columns, values, strict=True))
