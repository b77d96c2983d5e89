"""Held-out loss: windows by hand, nats against plain forward passes, bytes counted, bad input."""

import math

import pytest
import torch

from talltree.data.corpus_options import Source
from talltree.data.documents import Document
from talltree.data.sources import open_source
from talltree.errors import ConfigError, DataError
from talltree.evals.heldout import Window, documents, score_documents, stride_of, summarise, windows

from ..tiny import STOP, llama, tokenizer


def nats(model, ids, first):
    """-log p of ids[first:] after what stands before them."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
    logp = torch.log_softmax(logits, -1)[range(len(ids) - 1), ids[1:]]
    return -float(logp[first - 1 :].sum())


def test_windows_by_hand():
    assert windows(5, 8, 4) == [Window(0, 1, 5)]
    assert windows(8, 8, 4) == [Window(0, 1, 8)]
    assert windows(9, 8, 4) == [Window(0, 1, 8), Window(1, 8, 9)]
    assert windows(16, 8, 4) == [Window(0, 1, 8), Window(4, 8, 12), Window(8, 12, 16)]
    assert windows(1, 8, 4) == [Window(0, 1, 1)]
    for stride in (0, 8):
        with pytest.raises(ValueError, match="stride"):
            windows(9, 8, stride)


@pytest.mark.parametrize("stride", [1, 3, 7])
def test_windows_score_each_token_once_and_never_see_too_little(stride):
    for length in range(1, 40):
        found = windows(length, 8, stride)
        assert [at for each in found for at in range(each.first, each.end)] == list(range(1, length))
        assert all(each.end - each.begin <= 8 for each in found)
        assert all(each.first - each.begin >= 8 - stride for each in found[1:])


def test_documents_score_as_plain_forward_passes_do():
    model, words = llama(), tokenizer()
    texts = [Document("", "w1 w2 w3"), Document("", "w9"), Document("", " ".join(["w1", "w2"] * 50))]
    rows = list(score_documents(model, words, texts, stride=16))
    ids = [STOP, *[1, 2] * 50]  # 101 tokens, context 64: windows 0-64, 16-80, 32-96, 37-101
    long = nats(model, ids[:64], 1) + sum(
        nats(model, ids[begin:end], first - begin)
        for begin, first, end in ((16, 64, 80), (32, 80, 96), (37, 96, 101))
    )
    assert [row["nats"] for row in rows] == [
        pytest.approx(nats(model, [STOP, 1, 2, 3], 1), abs=1e-5),
        pytest.approx(nats(model, [STOP, 9], 1), abs=1e-5),
        pytest.approx(long, abs=1e-4),
    ]
    assert [row["tokens"] for row in rows] == [3, 1, 100]
    assert [row["windows"] for row in rows] == [1, 1, 4]
    assert [row["bytes"] for row in rows] == [8, 2, 299]


def test_the_end_token_adds_nats_and_a_token_and_no_bytes():
    model, words = llama(), tokenizer()
    (row,) = score_documents(model, words, [Document("", "w1 w2")], end_token=True)
    assert row["nats"] == pytest.approx(nats(model, [STOP, 1, 2, STOP], 1), abs=1e-5)
    assert (row["tokens"], row["bytes"]) == (3, 5)


def test_bytes_are_those_of_utf_8():
    (row,) = score_documents(llama(), tokenizer(), [Document("", "é“ w1")])
    assert row["bytes"] == 2 + 3 + 1 + 2


def test_the_summary_by_hand():
    rows = [
        {"document": 0, "nats": 2.0, "tokens": 2, "bytes": 4, "windows": 1},
        {"document": 1, "nats": 4.0, "tokens": 6, "bytes": 8, "windows": 3},
    ]
    found = summarise(rows, tokenizer(), 32)
    assert found.metrics["nats_per_token"].value == 6 / 8
    assert found.metrics["nats_per_token"].low == pytest.approx(0.75 - 12.7062 * 0.125, abs=1e-4)
    assert found.metrics["bits_per_byte"].value == pytest.approx(6 / math.log(2) / 12)
    assert found.metrics["longer_than_context"].value == 1
    assert "1 of 2 documents are longer than the context: read in 3 windows" in found.notes[-1]
    assert "32 tokens at a time, and nothing was cut" in found.notes[-1]
    (alone,) = ({**rows[0]},)
    assert summarise([alone], tokenizer(), 32).metrics["nats_per_token"].low is None


def test_bad_input():
    with pytest.raises(ConfigError, match=r"loss.stride 64 does not fit the model's context of 64 tokens"):
        stride_of(llama(), 64)
    assert stride_of(llama(), None) == 32
    words = tokenizer()
    words.eos_token = None
    with pytest.raises(ConfigError, match="the tokenizer has none"):
        list(score_documents(llama(), words, [Document("", "w1")], end_token=True))
    (row,) = score_documents(llama(), words, [Document("", "w1")])
    with pytest.raises(DataError, match="no document has a token to score"):
        summarise([row], words, 32)


def test_an_empty_corpus_is_refused(tmp_path):
    path = tmp_path / "blank.txt"
    path.write_text(" \n<|endoftext|>\n ")
    with pytest.raises(DataError, match=r"blank.txt has no document with text in it"):
        documents(open_source(Source(path=str(path))), None)
    path.write_text("one<|endoftext|>two<|endoftext|><|endoftext|>three")
    assert [each.text for each in documents(open_source(Source(path=str(path))), None)] == [
        "one",
        "two",
        "three",
    ]
    assert [each.text for each in documents(open_source(Source(path=str(path))), 2)] == ["one", "two"]
