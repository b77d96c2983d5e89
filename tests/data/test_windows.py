"""Rows for training: every token once an epoch, and the row number is the whole position."""

import numpy as np
import pytest
import torch

from talltree.data.tokens import TokenStream
from talltree.data.windows import require_windows, training_batch, windows_per_epoch
from talltree.errors import DataError

from .made import byte_tokenizer, corpus_of, write_jsonl


def stream(count, shards):
    arrays = tuple(np.array_split(np.arange(count, dtype=np.uint16), shards))
    return TokenStream(arrays, np.array([count - 1], dtype=np.int64))


@pytest.mark.parametrize("shards", [1, 7, 40])
def test_an_epoch_predicts_every_token_of_its_windows_once(shards):
    tokens, context = stream(100, shards), 8
    per_epoch = windows_per_epoch(len(tokens), context)
    assert per_epoch == 11  # floor((100 - 8) / 8)
    for epoch in (0, 1):
        rows = training_batch(tokens, context, per_epoch, epoch * per_epoch, seed=3)
        assert rows.shape == (per_epoch, context + 1)
        assert rows.dtype == torch.int64
        targets = sorted(rows[:, 1:].flatten().tolist())
        assert targets == list(range(targets[0], targets[0] + per_epoch * context))
        assert (rows[:, 1:] - rows[:, :-1] == 1).all()


def test_batches_do_not_depend_on_how_the_sequence_is_cut():
    tokens = stream(100, 3)
    whole = training_batch(tokens, 8, 33, 0, seed=5)
    pieces = [training_batch(tokens, 8, 3, row, seed=5) for row in range(0, 33, 3)]
    assert torch.equal(whole, torch.cat(pieces))
    assert not torch.equal(whole[:11], whole[11:22])
    assert not torch.equal(whole, training_batch(tokens, 8, 33, 0, seed=6))


def test_a_corpus_below_two_windows_or_below_a_batch_is_refused():
    with pytest.raises(DataError, match="15 tokens, fewer than two windows of context 8"):
        windows_per_epoch(15, 8)
    assert windows_per_epoch(16, 8) == 1
    with pytest.raises(DataError, match="39 tokens, 3 rows of context 8, fewer than the 4 of one batch"):
        windows_per_epoch(39, 8, rows=4)
    assert windows_per_epoch(40, 8, rows=4) == 4


def test_require_windows_counts_exactly_and_reads_no_more_than_it_must(tmp_path):
    texts = [f"{n:02d}" for n in range(40)]
    corpus = corpus_of(write_jsonl(tmp_path / "a.jsonl", texts))
    documents, _, size = corpus.count("train")
    tokens = 1 + size + documents  # a byte a token, an EOS a document and one at the start
    tokenizer = byte_tokenizer()
    require_windows(corpus, tokenizer, context=tokens // 4, rows=3)
    with pytest.raises(DataError, match=f"has {tokens} tokens, 3 rows of context {tokens // 4}, fewer than"):
        require_windows(corpus, tokenizer, context=tokens // 4, rows=4)
    with pytest.raises(DataError, match="fewer than two windows"):
        require_windows(corpus, tokenizer, context=tokens, rows=1)


def test_windows_beyond_the_end_are_refused():
    tokens = stream(10, 3)
    assert tokens.window(7, 3).tolist() == [7, 8, 9]
    assert tokens.window(10, 0).tolist() == []
    for start, length in ((8, 3), (-1, 2)):
        with pytest.raises(IndexError):
            tokens.window(start, length)
