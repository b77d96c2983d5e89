"""The token cache: what is in it by hand, what a kill leaves, what damage does."""

import json
from pathlib import Path

import numpy as np
import pytest

from talltree.data import tokens
from talltree.data.tokens import encode, load_tokens, packed, tokenizer_sha256
from talltree.errors import DataError, ModelError, RunError

from ..tiny import tokenizer as word_tokenizer
from .made import TEXTS, by_sources, byte_tokenizer, corpus_of, write_jsonl


@pytest.fixture
def corpus(tmp_path):
    return corpus_of(write_jsonl(tmp_path / "a.jsonl", TEXTS), test_share=0.2)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(tokens, "SHARD_BYTES", 500)


def silent(_):
    pass


def folder_of(cache):
    (folder,) = cache.glob("tokens-*")
    return folder


def test_packed_has_one_eos_between_documents_and_one_at_each_end():
    stream = packed([[5, 6], [7], []], eos=0)
    assert stream.window(0, len(stream)).tolist() == [0, 5, 6, 0, 7, 0, 0]
    assert stream.ends.tolist() == [3, 5, 6]
    assert list(stream.documents()) == [[5, 6], [7], []]


def test_streams_hold_every_document_between_eos(corpus, tmp_path):
    tokenizer = byte_tokenizer()
    found = load_tokens(corpus, tokenizer, tmp_path / "cache", silent)
    for split, stream in (("train", found.train), ("validation", found.validation), ("test", found.test)):
        texts = list(corpus.texts(split))
        assert [tokenizer.decode(ids) for ids in stream.documents()] == texts
        by_hand = packed(encode(tokenizer, texts), eos=0)
        assert stream.window(0, len(stream)).tolist() == by_hand.window(0, len(by_hand)).tolist()
        assert stream.ends.tolist() == by_hand.ends.tolist()
        assert len(stream) == found.manifest[f"{split}_tokens"] == 1 + sum(len(t) + 1 for t in texts)
        assert all(isinstance(shard, np.memmap) and shard.dtype == np.uint16 for shard in stream.shards)
        assert len(stream.shards) == len(list(folder_of(tmp_path / "cache").glob(f"{split}-*.ends.npy"))) > 1
    assert found.manifest["train_documents"] == corpus.count("train")[0]
    assert found.manifest["near_duplicates"]["threshold"] == 0.7


def test_it_is_made_once_for_data_options_and_tokenizer(corpus, tmp_path):
    tokenizer, cache, said = byte_tokenizer(), tmp_path / "cache", []
    load_tokens(corpus, tokenizer, cache, said.append)
    fresh = corpus_of(tmp_path / "a.jsonl", test_share=0.2)
    again = load_tokens(fresh, tokenizer, cache, said.append)
    assert len(said) == 1
    assert "index" not in vars(fresh)  # the text was not read again
    assert [len(stream) for stream in (again.train, again.test)] == [
        again.manifest["train_tokens"], again.manifest["test_tokens"],
    ]  # fmt: skip
    load_tokens(corpus_of(tmp_path / "a.jsonl", test_share=0.2, subset=0.5), tokenizer, cache, said.append)
    other = byte_tokenizer()
    other.eos_token = "<|pad|>"
    load_tokens(fresh, other, cache, said.append)
    write_jsonl(tmp_path / "a.jsonl", TEXTS[1:])
    load_tokens(corpus_of(tmp_path / "a.jsonl", test_share=0.2), tokenizer, cache, said.append)
    assert len(said) == len(list(cache.glob("tokens-*"))) == 4


def test_tokens_are_told_by_source(tmp_path):
    rows = [
        {"name": name, "path": write_jsonl(tmp_path / f"{name}.jsonl", texts)}
        for name, texts in (("a", TEXTS[:50]), ("b", TEXTS[50:]))
    ]
    found = load_tokens(by_sources(rows), byte_tokenizer(), tmp_path / "cache", silent).manifest
    for row, texts in zip(found["sources"], (TEXTS[:50], TEXTS[50:]), strict=True):
        assert row["tokens"] == sum(len(text) + 1 for text in texts)
    # The two streams begin with one EOS each, which is no source's.
    total = found["train_tokens"] + found["validation_tokens"]
    assert total == sum(row["tokens"] for row in found["sources"]) + 2


def test_a_kill_loses_only_the_shard_that_was_being_made(corpus, tmp_path, monkeypatch):
    tokenizer, cache = byte_tokenizer(), tmp_path / "cache"
    whole = load_tokens(corpus, tokenizer, tmp_path / "whole", silent)
    plain, calls = tokens._write_shard, []

    def killed_at_the_third(*arguments):
        calls.append(arguments[3])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(tokens, "_write_shard", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        load_tokens(corpus, tokenizer, cache, silent)
    assert not (folder_of(cache) / "corpus.json").exists()
    (folder_of(cache) / ".train-00002.npy.partial").write_bytes(b"half")
    killed = calls[:2]
    calls[:] = ["resumed"] * 3  # the count goes on, so that nothing is killed again
    resumed = load_tokens(corpus, tokenizer, cache, silent)
    assert not set(killed) & set(calls)
    assert (
        resumed.train.window(0, len(resumed.train)).tolist()
        == whole.train.window(0, len(whole.train)).tolist()
    )
    assert resumed.manifest == whole.manifest
    assert not list(folder_of(cache).glob(".*.partial"))


@pytest.mark.parametrize(
    "name", ["train-00001.npy", "test-00000.ends.npy", "corpus.json", "train-00000.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_noticed_and_mended(corpus, tmp_path, name, damage):
    tokenizer, cache, said = byte_tokenizer(), tmp_path / "cache", []
    whole = load_tokens(corpus, tokenizer, cache, silent)
    expected = [list(stream.documents()) for stream in (whole.train, whole.validation, whole.test)]
    path = folder_of(cache) / name
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(flipped if damage == "flip" else content[:middle])
    found = load_tokens(corpus, tokenizer, cache, said.append)
    assert [list(stream.documents()) for stream in (found.train, found.validation, found.test)] == expected
    assert found.manifest == whole.manifest
    if name != "train-00000.json":  # the shard's own note is not needed once corpus.json is there
        assert path.read_bytes() == content
        assert any("damaged" in line for line in said) or (name, damage) == ("corpus.json", "remove")


def test_a_full_disk_is_one_line_and_leaves_what_was_there(corpus, tmp_path, monkeypatch):
    tokenizer, cache = byte_tokenizer(), tmp_path / "cache"
    plain, calls = np.save, []

    def full(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        plain(*arguments, **options)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(RunError, match="No space left on device") as caught:
        load_tokens(corpus, tokenizer, cache, silent)
    assert "\n" not in str(caught.value)
    assert len(list(folder_of(cache).glob("train-00000*"))) == 3
    found = load_tokens(corpus, tokenizer, cache, silent)
    assert [tokenizer.decode(ids) for ids in found.train.documents()] == list(corpus.texts("train"))


def test_a_tokenizer_that_does_not_fit(corpus, tmp_path):
    with pytest.raises(ModelError, match=r"does not fit the corpus: [\d,]+ of [\d,]+ tokens .* are unknown"):
        load_tokens(corpus, word_tokenizer(), tmp_path / "cache", silent)
    without_eos = byte_tokenizer()
    without_eos.eos_token = None
    with pytest.raises(ModelError, match="the tokenizer has no EOS token"):
        load_tokens(corpus, without_eos, tmp_path / "cache", silent)
    wrong = byte_tokenizer()

    class Beyond:
        eos_token_id, unk_token_id, backend_tokenizer = 0, None, wrong.backend_tokenizer

        def __len__(self):
            return 60

        def __call__(self, *arguments, **options):
            return wrong(*arguments, **options)

    with pytest.raises(ModelError, match="and its vocabulary has 60"):
        load_tokens(corpus, Beyond(), tmp_path / "cache", silent)


def test_half_a_surrogate_pair_is_refused_clearly():
    with pytest.raises(DataError, match=r"character 2 of a text \(after 'ab'\) is half a surrogate pair"):
        encode(byte_tokenizer(), ["fine", "ab\udc80c"])


def test_a_large_vocabulary_takes_four_bytes(corpus, tmp_path, monkeypatch):
    class Large:
        eos_token_id, unk_token_id, backend_tokenizer = 70_000, None, byte_tokenizer().backend_tokenizer

        def __len__(self):
            return 70_001

        def __call__(self, texts, **options):
            return {"input_ids": [[65_536 + len(text)] for text in texts]}

    found = load_tokens(corpus, Large(), tmp_path / "cache", silent)
    assert found.train.shards[0].dtype == np.uint32
    assert found.train.document(0) == [65_536 + len(next(corpus.texts("train")))]


def test_the_hash_of_a_tokenizer_is_that_of_its_rules_not_of_its_last_call():
    one, other = byte_tokenizer(), byte_tokenizer()
    one(["a", "bbb"], padding=True, truncation=True, max_length=2)
    assert tokenizer_sha256(one) == tokenizer_sha256(other)
    other.eos_token = "<|pad|>"
    assert tokenizer_sha256(one) != tokenizer_sha256(other)


def test_real_texts(shared: Path, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "SHARD_BYTES", 2**20)
    rows = [
        {"name": "tinystories", "path": str(shared / "data/tinystories/train.jsonl")},
        {"name": "andersen", "path": str(shared / "data/andersen"), "documents": "file"},
    ]
    corpus = by_sources(rows, validation_share=0.05, subset=0.1)
    found = load_tokens(corpus, byte_tokenizer(), tmp_path / "cache", silent)
    counts = [
        sum(split["documents"] for split in row["splits"].values()) + row["left_out_by_subset"]
        for row in found.manifest["sources"]
    ]
    assert counts == [2834, 156]
    assert 300_000 < found.manifest["train_tokens"] == len(found.train) < 700_000
    assert json.dumps(found.manifest["near_duplicates"])
