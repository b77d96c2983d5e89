"""Which documents of a corpus stand in which split: by hash, by mixing and by nested subsets.

Every rule is a pure function of the documents themselves (their SHA-256), never of their order in a file,
so that additions to a corpus move no document from one split to another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from talltree.data.corpus_options import SPLITS, CorpusOptions, Source
from talltree.errors import DataError

Mask = NDArray[np.bool_]
TRAIN = SPLITS.index("train")


class Fate(IntEnum):
    """Why a document is in the corpus or not."""

    KEPT = 0
    DUPLICATE = 1
    OVERLAP = 2
    MIXED_OUT = 3
    OUTSIDE_SUBSET = 4


class Documents(NamedTuple):
    """Every document that is not empty, in the order of reading, as columns of equal length.

    source: number of its source. key: bytes 0-7 of SHA-256(key), which split it. subset and rank: bytes
    8-15 and 16-23 of SHA-256(text). words: split on white space. size: UTF-8 bytes.
    """

    source: NDArray[np.uint16]
    key: NDArray[np.uint64]
    subset: NDArray[np.uint64]
    rank: NDArray[np.uint64]
    words: NDArray[np.uint32]
    size: NDArray[np.uint32]


def below(hashes: NDArray[np.uint64], share: float) -> Mask:
    """Whether hash / 2^64 < share, exactly."""
    threshold = math.ceil(share * 2**64)
    if threshold >= 2**64:
        return np.ones(len(hashes), dtype=bool)
    return hashes < np.uint64(threshold)


def split_of(documents: Documents, sources: Sequence[Source], options: CorpusOptions) -> NDArray[np.uint8]:
    """Number of each document's split in SPLITS.

    u = hash of the key as a share of 1: u < validation_share is validation, the next test_share is test, the
    rest is train; a source with `into` sends all its documents there.
    """
    held_out = options.validation_share
    split = np.full(len(documents.key), TRAIN, dtype=np.uint8)
    split[below(documents.key, held_out + options.test_share)] = SPLITS.index("test")
    split[below(documents.key, held_out)] = SPLITS.index("validation")
    for number, source in enumerate(sources):
        if source.into != "hash":
            split[documents.source == number] = SPLITS.index(source.into)
    return split


def duplicates(documents: Documents, split: NDArray[np.uint8]) -> Mask:
    """Documents whose exact text stands earlier in the same split."""
    order = np.lexsort((np.arange(len(split)), split, documents.rank, documents.subset))
    same = np.zeros(len(split), dtype=bool)
    columns = (documents.subset[order], documents.rank[order], split[order])
    same[order[1:]] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
    return same


def overlaps(documents: Documents, split: NDArray[np.uint8]) -> Mask:
    """Documents (or pairs, by their prompt) that stand in a later split too; test is after validation."""
    order = np.lexsort((split, documents.key))
    key, ordered = documents.key[order], split[order]
    last = np.flatnonzero(np.append(key[1:] != key[:-1], True)) if len(key) else np.empty(0, dtype=np.int64)
    highest = np.repeat(ordered[last], np.diff(last, prepend=-1))
    found = np.zeros(len(split), dtype=bool)
    found[order] = ordered < highest
    return found


def taken(documents: Documents, among: Mask, words: float) -> Mask:
    """The documents of `among` by rank up to the number of them whose sum is nearest to `words`.

    At least one when words > 0. Fewer words take a part of the same documents.
    """
    chosen = np.flatnonzero(among)
    chosen = chosen[np.argsort(documents.rank[chosen], kind="stable")]
    sizes = documents.words[chosen].astype(np.int64)
    result = np.zeros(len(among), dtype=bool)
    is_nearer = np.cumsum(sizes) - sizes / 2 < words
    is_nearer[:1] = words > 0
    result[chosen[is_nearer]] = True
    return result


def mixed(
    documents: Documents,
    split: NDArray[np.uint8],
    kept: Mask,
    sources: Sequence[Source],
    options: CorpusOptions,
) -> Mask:
    """The kept documents that the mix takes, by `mixing` and `words`.

    downsample: with shares s_i and W_i words of training text, T = min W_i / s_i words are the most that
    have these shares without a document standing twice; source i gives s_i T words. `words` lowers T for
    train alone; without shares it cuts every source alike. Held-out documents are cut to the same mix.
    Raises DataError when `words` is above T, naming the source that ends first.
    """
    masks = [kept & (documents.source == number) for number in range(len(sources))]
    available = np.array([_words(documents, mask & (split == TRAIN)) for mask in masks], dtype=np.float64)
    fraction, most, ends_first = np.ones(len(sources)), available.sum(), ""
    shares = np.array([source.share or 0.0 for source in sources])
    if options.mixing == "downsample" and shares.any():
        gives = np.flatnonzero((available > 0) & (shares > 0))
        bounds = available[gives] / (shares[gives] / shares[gives].sum())
        most = bounds.min(initial=np.inf)
        fraction[gives] = most / bounds
        ends_first = (
            f" in this mix (`{sources[gives[bounds.argmin()]].label}` ends first)" if len(gives) else ""
        )
    if options.words is not None and options.words > most:
        raise DataError(
            f"corpus.words {options.words:,}: there are {int(most):,} words of training text{ends_first}; "
            f"set corpus.words to {int(most)} or less, or add text"
        )
    cut = 1.0 if options.words is None else options.words / most
    result = np.zeros(len(split), dtype=bool)
    for number in range(len(sources)):
        for part in range(len(SPLITS)):
            among = masks[number] & (split == part)
            share = fraction[number] * (cut if part == TRAIN else 1.0)
            enough = share * _words(documents, among)
            result |= among if share >= 1 else taken(documents, among, enough)
    return result


def _words(documents: Documents, mask: Mask) -> int:
    return int(documents.words[mask].sum(dtype=np.int64))


def fates(
    documents: Documents, split: NDArray[np.uint8], sources: Sequence[Source], options: CorpusOptions
) -> NDArray[np.uint8]:
    """The Fate of each document: exact duplicates, overlaps, mixing, and then the subset of train.

    The subset holds the training documents with subset hash / 2^64 < `subset`, so each one contains every
    smaller one, and validation and test do not depend on it.
    """
    fate = np.full(len(split), Fate.KEPT, dtype=np.uint8)
    fate[overlaps(documents, split)] = Fate.OVERLAP
    fate[duplicates(documents, split)] = Fate.DUPLICATE
    kept = fate == Fate.KEPT
    in_mix = mixed(documents, split, kept, sources, options)
    fate[kept & ~in_mix] = Fate.MIXED_OUT
    outside = in_mix & (split == TRAIN) & ~below(documents.subset, options.subset)
    fate[outside] = Fate.OUTSIDE_SUBSET
    return fate
