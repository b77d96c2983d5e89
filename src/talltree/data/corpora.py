"""Corpora: documents from files, folders and datasets, split by document, streamed and never held whole.

One pass over the text hashes and counts every document; what is kept of a document is six numbers. Later
passes read the text again and give the documents of a split, each checked against its hash.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from talltree import checkpoint
from talltree.data import near_duplicates
from talltree.data.corpus_options import SPLITS, CorpusOptions, sources_of
from talltree.data.documents import Document
from talltree.data.selection import Documents, Fate, fates, overlaps, split_of
from talltree.data.sources import OpenSource, open_source, read
from talltree.errors import DataError

MANIFEST = "corpus.json"
SPLIT_RULE = (
    "SHA-256 of the text (of the prompt, for pairs) as a share of 1: below validation_share is validation, "
    "the next test_share is test, the rest is train; a source with `into` goes there whole"
)
MIXING_RULES = {
    "downsample": (
        "each source is cut to its share of the words, by a hash of the text; nothing stands twice"
    ),
    "all": "every document of every source; shares are only reported",
}


class Index(NamedTuple):
    """What one pass over a corpus found; `empty` and `content` (SHA-256 of the texts) are per source."""

    documents: Documents
    split: NDArray[np.uint8]
    fate: NDArray[np.uint8]
    empty: list[int]
    content: list[str]

    def kept(self, split: str) -> NDArray[np.bool_]:
        return (self.fate == Fate.KEPT) & (self.split == SPLITS.index(split))


@dataclass(frozen=True)
class Corpus:
    """Opened sources; the first pass over the text is made when something asks for it.

    key: what decides a document's split, so that documents of one key are never parted.
    """

    options: CorpusOptions
    sources: tuple[OpenSource, ...]
    key: Callable[[Document], str] = attrgetter("key")

    @property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of every file, by source and name."""
        return {name: digest for opened in self.sources for name, digest in opened.sha256.items()}

    @cached_property
    def index(self) -> Index:
        """Every document hashed, counted, split and selected; see `scan`."""
        return scan(self.sources, self.options, self.key)

    def documents(self, *splits: str) -> Iterator[tuple[str, int, Document]]:
        """(split, number of the source, document) of what is kept in these splits, in the order of reading.

        Raises DataError when a text is not the one that was counted: a file has changed meanwhile.
        """
        index = self.index
        wanted = np.logical_or.reduce([index.kept(split) for split in splits])
        number = 0
        for source, opened in enumerate(self.sources):
            for document in read(opened):
                if not document.completion:
                    continue
                if number >= len(wanted) or index.documents.source[number] != source:
                    raise _changed(opened)
                if wanted[number]:
                    _, subset, rank, _ = _hashes(document.text)
                    if (subset, rank) != (index.documents.subset[number], index.documents.rank[number]):
                        raise _changed(opened)
                    yield SPLITS[index.split[number]], source, document
                number += 1
        if number != len(wanted):
            raise _changed(self.sources[-1])

    def texts(self, split: str) -> Iterator[str]:
        """The texts of one split as a stream; a pair's prompt and completion are joined."""
        return (document.text for _, _, document in self.documents(split))

    def pairs(self, split: str) -> Iterator[Document]:
        """The documents of one split as a stream of (prompt, completion); prompt is "" for a plain text."""
        return (document for _, _, document in self.documents(split))

    def count(self, split: str) -> tuple[int, int, int]:
        """Documents, words and UTF-8 bytes of a split."""
        return _count(self.index, self.index.kept(split))

    def manifest(self) -> dict[str, Any]:
        """Counts, shares, rules and hashes, for corpus.json, environment.json and the model card."""
        return manifest(self)


def open_corpus(options: CorpusOptions, dataset_name: str = "") -> Corpus:
    """The corpus of `options.sources` or of `dataset_name`; reads and hashes files, not yet documents.

    Raises DataError for what is missing or unreadable, ConfigError for options that do not go together.
    """
    return Corpus(options, tuple(open_source(source) for source in sources_of(dataset_name, options)))


def near_duplicate_report(corpus: Corpus) -> dict[str, Any]:
    """What `near_duplicates.find` says across the splits, under that key; empty where it is not asked for."""
    if not corpus.options.near_duplicates:
        return {}
    held_out = ((split, document.text) for split, _, document in corpus.documents("validation", "test"))
    return {"near_duplicates": near_duplicates.find(held_out, corpus.texts("train"))}


def save_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Writes corpus.json into a run folder."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    checkpoint.write_file(folder / MANIFEST, text.encode())


# The first pass


def scan(opened: Sequence[OpenSource], options: CorpusOptions, key_of: Callable[[Document], str]) -> Index:
    """Reads everything once. Raises DataError when train or validation comes out empty, or splits overlap."""
    sources, keys, subsets, ranks = array("H"), array("Q"), array("Q"), array("Q")
    words, sizes = array("I"), array("I")
    empty, content = [], []
    for number, each in enumerate(opened):
        digest = hashlib.sha256()
        empty.append(0)
        for document in read(each):
            text = document.text
            # A pair without a completion has nothing to learn from, so it counts as empty.
            if not document.completion:
                empty[-1] += 1
                continue
            key, subset, rank, _ = _hashes(text)
            if (group := key_of(document)) != text:
                key = _hashes(group)[0]
            sources.append(number)
            keys.append(key)
            subsets.append(subset)
            ranks.append(rank)
            words.append(len(text.split()))
            sizes.append(len(text.encode()))
            digest.update(struct.pack(">QQQ", key, subset, rank))
        content.append(digest.hexdigest())
    documents = Documents(
        np.array(sources, dtype=np.uint16),
        np.array(keys, dtype=np.uint64),
        np.array(subsets, dtype=np.uint64),
        np.array(ranks, dtype=np.uint64),
        np.array(words, dtype=np.uint32),
        np.array(sizes, dtype=np.uint32),
    )
    rules = [each.source for each in opened]
    split = split_of(documents, rules, options)
    if options.overlaps == "refuse":
        _refuse_overlaps(documents, split, opened, key_of)
    index = Index(documents, split, fates(documents, split, rules, options), empty, content)
    _refuse_empty_splits(index, opened, options)
    return index


def _hashes(text: str) -> tuple[int, int, int, int]:
    found: tuple[int, int, int, int] = struct.unpack(">4Q", hashlib.sha256(text.encode()).digest())
    return found


def _refuse_overlaps(
    documents: Documents,
    split: NDArray[np.uint8],
    opened: Sequence[OpenSource],
    key_of: Callable[[Document], str],
) -> None:
    both = np.flatnonzero(overlaps(documents, split))
    if not len(both):
        return
    first = int(both[0])
    other = int(np.flatnonzero((documents.key == documents.key[first]) & (split != split[first]))[0])
    every = (key_of(document) for each in opened for document in read(each) if document.completion)
    shown = next(itertools.islice(every, first, None))[:60]
    here, there = ((SPLITS[split[n]], opened[documents.source[n]].source.label) for n in (first, other))
    raise DataError(
        f"splits overlap: {len(both):,} documents of {here[0]} (`{here[1]}`) stand in {there[0]} "
        f"(`{there[1]}`) too, first {shown!r}; remove them, or set corpus.overlaps keep_held_out"
    )


def _refuse_empty_splits(index: Index, opened: Sequence[OpenSource], options: CorpusOptions) -> None:
    needed = SPLITS if options.test_share else ("train", "validation")
    for name in needed:
        if not index.kept(name).any():
            distinct = int((index.fate != Fate.DUPLICATE).sum())
            where = ", ".join(each.source.label for each in opened)
            raise DataError(
                f"corpus {where}: no document fell into {name} ({distinct} distinct documents, "
                f"validation_share {options.validation_share}, test_share {options.test_share}, subset "
                f"{options.subset}); use more documents, another share or separator"
            )


def _changed(opened: OpenSource) -> DataError:
    return DataError(f"{opened.source.label} has changed while it was being read; start again")


# The manifest


def manifest(corpus: Corpus) -> dict[str, Any]:
    """What a corpus is: counts per split and source, rules, hashes; keys as in docs/corpora.md."""
    index, options = corpus.index, corpus.options
    train = index.kept("train")
    shares = [opened.source.share for opened in corpus.sources]
    total = sum(share for share in shares if share is not None)
    all_words = int(index.documents.words[train].sum())
    rows: list[dict[str, Any]] = []
    for number, opened in enumerate(corpus.sources):
        mine = index.documents.source == number
        fate = {each: int((mine & (index.fate == each)).sum()) for each in Fate}
        share = opened.source.share
        rows.append(
            {
                "name": opened.source.label,
                "into": opened.source.into,
                "documents": opened.source.documents,
                "share_wanted": None if share is None else share / total,
                "share_found": int(index.documents.words[train & mine].sum()) / all_words,
                "splits": {name: _named(_count(index, mine & index.kept(name))) for name in SPLITS},
                "duplicates_dropped": fate[Fate.DUPLICATE],
                "empty_dropped": index.empty[number],
                "overlaps_dropped": fate[Fate.OVERLAP],
                "left_out_by_mixing": fate[Fate.MIXED_OUT],
                "left_out_by_subset": fate[Fate.OUTSIDE_SUBSET],
                "files_passed_over": opened.passed_over,
                "content_sha256": index.content[number],
            }
        )
    counts = {
        f"{name}_{what}": value for name in SPLITS for what, value in _named(corpus.count(name)).items()
    }
    lost = ("duplicates_dropped", "empty_dropped", "overlaps_dropped")
    return {
        **counts,
        **{name: sum(row[name] for row in rows) for name in lost},
        "subset": options.subset,
        "rules": {"split": SPLIT_RULE, "mixing": MIXING_RULES[options.mixing]},
        "sources": rows,
        "sha256": corpus.sha256,
    }


def _count(index: Index, mask: NDArray[np.bool_]) -> tuple[int, int, int]:
    words, size = index.documents.words[mask], index.documents.size[mask]
    return int(mask.sum()), int(words.sum(dtype=np.int64)), int(size.sum(dtype=np.int64))


def _named(counts: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("documents", "words", "bytes"), counts, strict=True))
