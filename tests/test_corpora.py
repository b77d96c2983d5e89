"""Corpora: reading, splitting, packing; expected values by hand or by enumeration."""

import json

import pytest
import torch

from talltree.data import corpora
from talltree.errors import DataError


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def test_jsonl_and_txt_give_the_same_documents(tmp_path):
    texts = ["One.", "Two\n\nparts.", "Thrée."]
    write_jsonl(tmp_path / "a.jsonl", texts)
    (tmp_path / "b.txt").write_text("One.\n<|x|>\nTwo\n\nparts.<|x|> Thrée.\n", encoding="utf-8")
    assert list(corpora.read_documents(tmp_path / "a.jsonl", "<|x|>")) == texts
    assert list(corpora.read_documents(tmp_path / "b.txt", "<|x|>")) == texts


def test_split_is_disjoint_complete_and_independent_of_order(tmp_path):
    texts = [f"story number {n}" for n in range(400)]
    one = corpora.load_corpus(write_jsonl(tmp_path / "a.jsonl", texts), "-", 0.25)
    two = corpora.load_corpus(write_jsonl(tmp_path / "b.jsonl", texts[::-1]), "-", 0.25)
    assert sorted(one.train + one.validation) == sorted(texts)
    assert not set(one.train) & set(one.validation)
    assert set(one.validation) == set(two.validation)
    assert 70 <= len(one.validation) <= 130  # binomial(400, 1/4): mean 100, deviation 8.7


def test_duplicates_and_empty_documents_are_dropped_and_counted(tmp_path):
    texts = [f"s {n}" for n in range(60)] + ["s 3", " s 3 ", "", "  "]
    found = corpora.load_corpus(write_jsonl(tmp_path / "a.jsonl", texts), "-", 0.3)
    assert (found.counts.duplicates_dropped, found.counts.empty_dropped) == (2, 2)
    assert found.counts.train_documents + found.counts.validation_documents == 60
    assert found.counts.train_words + found.counts.validation_words == 120
    assert found.counts.train_bytes + found.counts.validation_bytes == 10 * 3 + 50 * 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        (b'{"text": "a"}\n\n{"story": "b"}\n', "line 3: no column `text`; found: story"),
        (b'{"text": 5}\n', "line 1: `text` is int"),
        (b"[1]\n", "line 1: no column `text`; found: list"),
        (b'{"text": "\xff"}\n', "byte 10 is not UTF-8"),
        (b"", "no document fell into train"),
    ],
)
def test_bad_jsonl_is_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        corpora.load_corpus(str(path), "-", 0.5)
    assert message in str(caught.value)
    assert "bad.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_unknown_ending(tmp_path):
    with pytest.raises(DataError, match="not found"):
        corpora.corpus_files(str(tmp_path / "none.txt"))
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match=r"\.csv"):
        corpora.corpus_files(str(tmp_path / "a.csv"))
    with pytest.raises(DataError, match=r"no \.jsonl or \.txt"):
        corpora.corpus_files(str(tmp_path))


def test_pack_puts_one_eos_between_documents():
    assert corpora.pack([[5, 6], [7]], eos=0).tolist() == [0, 5, 6, 0, 7, 0]


def test_an_epoch_predicts_every_token_of_its_windows_once():
    stream = torch.arange(100, dtype=torch.int32)
    context = 8
    per_epoch = corpora.windows_per_epoch(stream, context)
    assert per_epoch == 11  # floor((100 - 8) / 8)
    for epoch in (0, 1):
        rows = corpora.training_batch(stream, context, per_epoch, epoch * per_epoch, seed=3)
        assert rows.shape == (per_epoch, context + 1)
        targets = sorted(rows[:, 1:].flatten().tolist())
        assert targets == list(range(targets[0], targets[0] + per_epoch * context))
        assert (rows[:, 1:] - rows[:, :-1] == 1).all()


def test_batches_do_not_depend_on_how_the_sequence_is_cut():
    stream = torch.arange(100, dtype=torch.int32)
    whole = corpora.training_batch(stream, 8, 33, 0, seed=5)
    pieces = [corpora.training_batch(stream, 8, 3, row, seed=5) for row in range(0, 33, 3)]
    assert torch.equal(whole, torch.cat(pieces))
    assert not torch.equal(whole[:11], whole[11:22])
    assert not torch.equal(whole, corpora.training_batch(stream, 8, 33, 0, seed=6))


def test_a_corpus_below_two_windows_is_refused():
    with pytest.raises(DataError, match="15 tokens"):
        corpora.windows_per_epoch(torch.zeros(15, dtype=torch.int32), 8)
    assert corpora.windows_per_epoch(torch.zeros(16, dtype=torch.int32), 8) == 1
