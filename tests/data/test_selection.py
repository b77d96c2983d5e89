"""Splits, duplicates, mixing, subsets: rules on numbers, worked by hand or by enumeration."""

import numpy as np
import pytest

from talltree.data.corpus_options import CorpusOptions, Source
from talltree.data.selection import (
    Documents,
    Fate,
    below,
    duplicates,
    fates,
    mixed,
    overlaps,
    split_of,
    taken,
)
from talltree.errors import DataError

TRAIN, VALIDATION, TEST = 0, 1, 2


def documents(keys, sources=None, words=None, subsets=None, ranks=None):
    count = len(keys)
    return Documents(
        np.array(sources or [0] * count, dtype=np.uint16),
        np.array(keys, dtype=np.uint64),
        np.array(subsets if subsets is not None else keys, dtype=np.uint64),
        np.array(ranks if ranks is not None else range(count), dtype=np.uint64),
        np.array(words or [1] * count, dtype=np.uint32),
        np.array([1] * count, dtype=np.uint32),
    )


def test_below_is_exact_at_the_edges():
    hashes = np.array([0, 2**62 - 1, 2**62, 2**63, 2**64 - 1], dtype=np.uint64)
    assert below(hashes, 0.25).tolist() == [True, True, False, False, False]
    assert below(hashes, 0.0).tolist() == [False] * 5
    assert below(hashes, 1.0).tolist() == [True] * 5


def test_splits_follow_the_hash_and_into():
    quarter = 2**62
    found = documents([0, quarter - 1, quarter, 2 * quarter - 1, 2 * quarter, 0], [0, 0, 0, 0, 0, 1])
    options = CorpusOptions(validation_share=0.25, test_share=0.25)
    sources = [Source(path="a"), Source(path="b", into="test")]
    assert split_of(found, sources, options).tolist() == [VALIDATION, VALIDATION, TEST, TEST, TRAIN, TEST]


def test_duplicates_are_the_later_ones():
    found = documents([5, 6, 5, 5, 7], ranks=[1, 1, 1, 2, 1])
    assert duplicates(found, np.zeros(5, dtype=np.uint8)).tolist() == [False, False, True, False, False]
    # In another split the same text is an overlap, no duplicate.
    assert not duplicates(found, np.array([0, 0, 1, 0, 0], dtype=np.uint8)).any()


def test_overlaps_keep_the_latest_split():
    found = documents([5, 5, 6, 7, 7, 7], ranks=[0] * 6)
    split = np.array([TRAIN, VALIDATION, TRAIN, TEST, TRAIN, VALIDATION], dtype=np.uint8)
    assert overlaps(found, split).tolist() == [True, False, False, False, True, True]
    assert overlaps(documents([]), np.empty(0, dtype=np.uint8)).tolist() == []


def test_taken_goes_by_rank_to_the_sum_that_is_nearest():
    found = documents([1, 2, 3, 4], ranks=[30, 10, 40, 20], words=[5, 4, 3, 2])
    everything = np.ones(4, dtype=bool)
    # In rank order: number 1 (4 words), 3 (2), 0 (5), 2 (3), so the sums are 4, 6, 11, 14.
    limits = (0, 0.1, 4, 4.9, 5.1, 8.4, 8.6, 12.6, 99)
    assert [np.flatnonzero(taken(found, everything, words)).tolist() for words in limits] == [
        [], [1], [1], [1], [1, 3], [1, 3], [0, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3],
    ]  # fmt: skip


def test_shares_cut_the_source_that_has_too_much():
    # 10 and 30 documents of one word, shares 1 : 1, so T = 20 and 10 of the second are taken.
    found = documents(list(range(40)), [0] * 10 + [1] * 30)
    split, kept = np.zeros(40, dtype=np.uint8), np.ones(40, dtype=bool)
    sources = [Source(path="a", share=5), Source(path="b", share=5)]
    mix = mixed(found, split, kept, sources, CorpusOptions())
    assert (mix[:10].sum(), mix[10:].sum()) == (10, 10)
    assert mix[10:20].all()  # those with the lowest rank
    assert mixed(found, split, kept, sources, CorpusOptions(mixing="all")).all()
    # 8 words in the same shares are 4 of each; validation keeps its 20.
    split[1::2] = VALIDATION
    smaller = mixed(found, split, kept, sources, CorpusOptions(words=8))
    train = split == TRAIN
    assert (smaller[:10] & train[:10]).sum() == (smaller[10:] & train[10:]).sum() == 4
    assert (smaller & ~train).sum() == 10
    larger = mixed(found, split, kept, sources, CorpusOptions(words=10))
    assert not (smaller & ~larger).any()
    with pytest.raises(DataError, match=r"corpus.words 11: there are 10 .*\(`a` ends first\)"):
        mixed(found, split, kept, sources, CorpusOptions(words=11))


def test_words_without_shares_cut_every_source_alike():
    found = documents(list(range(40)), [0] * 10 + [1] * 30)
    sources = [Source(path="a"), Source(path="b")]
    mix = mixed(found, np.zeros(40, np.uint8), np.ones(40, bool), sources, CorpusOptions(words=20))
    assert (mix[:10].sum(), mix[10:].sum()) == (5, 15)


def test_fates_tell_why_a_document_is_out():
    half = 2**63
    found = documents(
        [0, half, half, half + 1, half + 2, half],
        sources=[0, 0, 0, 0, 0, 1],
        subsets=[half, 0, 0, half, 1, 0],
        ranks=[1, 2, 2, 3, 4, 2],
    )
    options = CorpusOptions(validation_share=0.25, subset=0.5, overlaps="keep_held_out")
    sources = [Source(path="a"), Source(path="b", into="validation")]
    split = split_of(found, sources, options)
    assert split.tolist() == [VALIDATION, TRAIN, TRAIN, TRAIN, TRAIN, VALIDATION]
    assert fates(found, split, sources, options).tolist() == [
        Fate.KEPT, Fate.OVERLAP, Fate.DUPLICATE, Fate.OUTSIDE_SUBSET, Fate.KEPT, Fate.KEPT,
    ]  # fmt: skip
