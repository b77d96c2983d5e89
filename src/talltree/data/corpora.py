"""Corpora: documents from JSONL and text files, split by document, packed into one stream of tokens.

A document is one JSONL row's `text`, or one stretch of a .txt file between separators; white space around
it is removed and nothing else is. Exact duplicates are dropped and counted, so that no text stands on both
sides of a split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talltree import checkpoint
from talltree.errors import DataError


@dataclass(frozen=True)
class SplitCounts:
    """What became of a corpus: documents, words (split on white space) and UTF-8 bytes on either side."""

    train_documents: int
    train_words: int
    train_bytes: int
    validation_documents: int
    validation_words: int
    validation_bytes: int
    duplicates_dropped: int
    empty_dropped: int


@dataclass(frozen=True)
class Corpus:
    """The texts of the two splits, in file order, and what was counted on the way."""

    train: list[str]
    validation: list[str]
    counts: SplitCounts
    sha256: dict[str, str]

    def manifest(self) -> dict[str, Any]:
        """Counts and the SHA-256 of every file read, for environment.json and the model card."""
        return {**asdict(self.counts), "sha256": self.sha256}


def corpus_files(name: str) -> list[Path]:
    """The .jsonl and .txt files of a corpus: the file itself, or all of them in a folder, by name.

    Raises DataError when there is none, or when the file's ending says neither format.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".jsonl", ".txt"))
        if not files:
            raise DataError(f"corpus folder {path} holds no .jsonl or .txt file")
        return files
    if not path.is_file():
        raise DataError(f"corpus {path} not found: give a .jsonl or .txt file, or a folder of them")
    if path.suffix not in (".jsonl", ".txt"):
        raise DataError(f"corpus {path}: ending {path.suffix!r} is not known; use .jsonl or .txt")
    return [path]


def _decode(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8 ({error.reason}); convert the file first"
        ) from None


def read_documents(path: Path, separator: str) -> Iterator[str]:
    """The documents of one file, white space around each removed (an empty one is yielded as "").

    JSONL: the `text` of each line that is not blank. Text: the stretches between separators.
    Raises DataError with file and line for broken JSON, a missing `text` or one that is not a string.
    """
    content = _decode(path)
    if path.suffix == ".txt":
        yield from (text.strip() for text in content.split(separator))
        return
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})"
            ) from None
        if not isinstance(row, dict) or "text" not in row:
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise DataError(f"{path}, line {number}: no column `text`; found: {found}")
        if not isinstance(row["text"], str):
            raise DataError(
                f"{path}, line {number}: `text` is {type(row['text']).__name__}, a string is needed"
            )
        yield row["text"].strip()


def in_validation(text: str, share: float) -> bool:
    """Whether a document belongs to validation: SHA-256(text) / 2^256 < share.

    Depends on the text alone, so order, neighbours and later additions to a corpus move no document.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) < share * 2**64


def load_corpus(name: str, separator: str, validation_share: float) -> Corpus:
    """Read a file or folder and split it by document, without duplicates.

    Raises DataError when a split comes out empty.
    """
    train: list[str] = []
    validation: list[str] = []
    seen: set[bytes] = set()
    duplicates = empty = 0
    sha256 = {}
    for path in corpus_files(name):
        sha256[path.name] = checkpoint.file_sha256(path)
        for text in read_documents(path, separator):
            key = hashlib.sha256(text.encode()).digest()
            if not text:
                empty += 1
            elif key in seen:
                duplicates += 1
            else:
                seen.add(key)
                (validation if in_validation(text, validation_share) else train).append(text)
    for split, texts in (("train", train), ("validation", validation)):
        if not texts:
            raise DataError(
                f"corpus {name}: no document fell into {split} ({len(seen)} distinct documents, "
                f"validation_share {validation_share}); use more documents, another share or separator"
            )
    counts = SplitCounts(
        len(train), _words(train), _bytes(train), len(validation), _words(validation), _bytes(validation),
        duplicates, empty,
    )  # fmt: skip
    return Corpus(train, validation, counts, sha256)


def _words(texts: Iterable[str]) -> int:
    return sum(len(text.split()) for text in texts)


def _bytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text without special tokens: a literal "<|endoftext|>" in a text stays text."""
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]


def pack(documents: Sequence[Sequence[int]], eos: int) -> Tensor:
    """EOS doc EOS doc EOS ... EOS as one int32 stream: each document is preceded and ended by one EOS."""
    ids = [eos]
    for document in documents:
        ids.extend(document)
        ids.append(eos)
    return torch.tensor(ids, dtype=torch.int32)


def windows_per_epoch(stream: Tensor, context: int) -> int:
    """Rows of context + 1 tokens in an epoch, whatever its offset: floor((len - context) / context).

    Raises DataError when the stream has none.
    """
    count = (len(stream) - context) // context
    if count < 1:
        raise DataError(
            f"the training split has {len(stream)} tokens, fewer than two windows of context {context}; "
            "use a larger corpus or a smaller context"
        )
    return count


def training_batch(stream: Tensor, context: int, rows: int, first_row: int, seed: int) -> Tensor:
    """Rows first_row .. first_row + rows - 1 of an endless sequence of windows -> (rows, context + 1).

    Each epoch cuts the stream at its own random offset below `context` and shuffles the windows; neighbouring
    windows share one token, which is predicted once. Fewer than 2 * context tokens at the ends of the stream
    stay out of an epoch, other ones in each. A pure function of its arguments: the row number is the whole
    data position, so resume needs nothing else.
    """
    per_epoch = windows_per_epoch(stream, context)
    starts: list[int] = []
    for epoch in range(first_row // per_epoch, (first_row + rows - 1) // per_epoch + 1):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        offset = int(torch.randint(context, (), generator=generator))
        order = torch.randperm(per_epoch, generator=generator)
        low = max(first_row - epoch * per_epoch, 0)
        high = min(first_row + rows - epoch * per_epoch, per_epoch)
        starts.extend((order[low:high] * context + offset).tolist())
    return torch.stack([stream[start : start + context + 1] for start in starts]).long()
