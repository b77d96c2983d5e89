"""Near-duplicates across splits: MinHash finds candidates, the exact Jaccard similarity decides.

A document is the set of its runs of five words, lower case and without punctuation. Two documents are
near-duplicates when their sets share at least `threshold` of their union. MinHash with 16 bands of 4 rows
finds a pair of similarity J with probability 1 - (1 - J^4)^16: 99% at 0.7, 99.98% at 0.8. Broder 1997.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RUN = 5
BANDS, ROWS = 16, 4
CANDIDATES_A_BAND = 20
BATCH_CHARACTERS = 2**20
EXAMPLES, SHOWN = 5, 100
MEASURE = (
    f"Jaccard similarity of the sets of runs of {RUN} words (lower case, punctuation ignored); candidates by "
    f"MinHash, {BANDS} bands of {ROWS}, at most {CANDIDATES_A_BAND} a band"
)
_WORD = re.compile(r"\w+")
_Hashes = NDArray[np.uint64]


class Shingles(NamedTuple):
    """The hashed runs of several documents one after the other; document i has ends[i-1]:ends[i]."""

    hashes: _Hashes
    ends: NDArray[np.int64]

    def of(self, number: int) -> _Hashes:
        return np.unique(self.hashes[self.ends[number - 1] if number else 0 : self.ends[number]])


class HeldOut(NamedTuple):
    """The held-out documents, ready to be searched: band by band sorted, with their sets and first words."""

    splits: list[str]
    starts: list[str]
    sets: list[_Hashes]
    bands: list[_Hashes]
    order: list[NDArray[np.int64]]


def shingles(texts: Sequence[str]) -> Shingles:
    """A text with fewer than five words has no run, and is compared with nothing."""
    words = [[zlib.crc32(word.encode()) for word in _WORD.findall(text.lower())] for text in texts]
    lengths = np.array([len(each) for each in words], dtype=np.int64)
    flat = np.fromiter(itertools.chain.from_iterable(words), dtype=np.uint64, count=int(lengths.sum()))
    counts = np.maximum(lengths - RUN + 1, 0)
    if not counts.sum():
        return Shingles(np.empty(0, dtype=np.uint64), np.cumsum(counts))
    hashes = np.zeros(len(flat) - RUN + 1, dtype=np.uint64)
    for offset in range(RUN):
        hashes = _scrambled(hashes + flat[offset : offset + len(hashes)])
    owner = np.repeat(np.arange(len(texts)), lengths)
    is_inside = owner[: len(hashes)] == owner[RUN - 1 :]
    return Shingles(hashes[is_inside], np.cumsum(counts))


def jaccard(one: _Hashes, other: _Hashes) -> float:
    """|A and B| / |A or B| of two sorted sets, not both empty."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def find(held_out: Iterable[tuple[str, str]], train: Iterable[str], threshold: float = 0.7) -> dict[str, Any]:
    """The report on near-duplicates between splits; held_out gives (split, text) with splits of its own.

    Counts pairs and the held-out documents (validation-test: the test documents) that are in one, with
    the most similar as examples. A document with fewer than five words is counted as too short.
    """
    index, too_short = _index(held_out)
    pairs: dict[str, list[tuple[float, int, str]]] = {}
    found = itertools.chain(_among_held_out(index), _in_train(index, train))
    for name, similarity, number, text in found:
        if similarity >= threshold:
            pairs.setdefault(name, []).append((similarity, number, text))
    return {
        "measure": MEASURE,
        "threshold": threshold,
        "held_out_compared": len(index.sets),
        "held_out_too_short": too_short,
        "pairs": {name: _summary(each, index) for name, each in sorted(pairs.items())},
    }


def _summary(pairs: list[tuple[float, int, str]], index: HeldOut) -> dict[str, Any]:
    best = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[:EXAMPLES]
    return {
        "pairs": len(pairs),
        "documents": len({number for _, number, _ in pairs}),
        "examples": [
            {"similarity": round(similarity, 3), "held_out": index.starts[number], "other": text}
            for similarity, number, text in best
        ],
    }


def _index(held_out: Iterable[tuple[str, str]]) -> tuple[HeldOut, int]:
    splits, starts, sets, signatures = [], [], [], []
    too_short = 0
    for batch in _batches(held_out):
        runs = shingles([text for _, text in batch])
        has_runs = np.diff(runs.ends, prepend=0) > 0
        too_short += int((~has_runs).sum())
        signatures.append(_bands(runs))
        for number in np.flatnonzero(has_runs):
            splits.append(batch[number][0])
            starts.append(batch[number][1][:SHOWN])
            sets.append(runs.of(int(number)))
    every = np.concatenate(signatures) if signatures else np.empty((0, BANDS), dtype=np.uint64)
    order = [np.argsort(every[:, band], kind="stable") for band in range(BANDS)]
    return HeldOut(
        splits, starts, sets, [every[each, band] for band, each in enumerate(order)], order
    ), too_short


def _in_train(index: HeldOut, train: Iterable[str]) -> Iterator[tuple[str, float, int, str]]:
    for batch in _batches(("train", text) for text in train):
        runs = shingles([text for _, text in batch])
        with_runs = np.flatnonzero(np.diff(runs.ends, prepend=0) > 0)
        for row, number in _candidates(index, _bands(runs)):
            similarity = jaccard(runs.of(int(with_runs[row])), index.sets[number])
            text = batch[with_runs[row]][1][:SHOWN]
            yield f"train-{index.splits[number]}", similarity, number, text


def _among_held_out(index: HeldOut) -> Iterator[tuple[str, float, int, str]]:
    every = np.empty((len(index.sets), BANDS), dtype=np.uint64)
    for band in range(BANDS):
        every[index.order[band], band] = index.bands[band]
    for row, number in _candidates(index, every):
        if (index.splits[row], index.splits[number]) == ("validation", "test"):
            yield "validation-test", jaccard(index.sets[row], index.sets[number]), number, index.starts[row]


def _candidates(index: HeldOut, signatures: _Hashes) -> list[tuple[int, int]]:
    """(row of signatures, held-out document) of every two that agree in a whole band."""
    found: set[tuple[int, int]] = set()
    for band in range(BANDS):
        left = np.searchsorted(index.bands[band], signatures[:, band], side="left")
        right = np.searchsorted(index.bands[band], signatures[:, band], side="right")
        for row in np.flatnonzero(right > left):
            stop = min(int(right[row]), int(left[row]) + CANDIDATES_A_BAND)
            found.update((int(row), int(number)) for number in index.order[band][left[row] : stop])
    return sorted(found)


def _bands(runs: Shingles) -> _Hashes:
    """One hash for each band of the MinHash signature of each document that has runs: (documents, BANDS)."""
    counts = np.diff(runs.ends, prepend=0)
    starts = (runs.ends - counts)[counts > 0]
    result = np.zeros((len(starts), BANDS), dtype=np.uint64)
    if not len(starts):
        return result
    for band in range(BANDS):
        for row in range(ROWS):
            seed = np.uint64(((band * ROWS + row + 1) * 0x9E3779B97F4A7C15) % 2**64)
            least = np.minimum.reduceat(_scrambled(runs.hashes ^ seed), starts)
            result[:, band] = _scrambled(result[:, band] + least)
    return result


def _scrambled(x: _Hashes) -> _Hashes:
    """The finaliser of splitmix64: a bijection whose output bits depend on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _batches(texts: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    size = 0
    for split, text in texts:
        batch.append((split, text))
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
