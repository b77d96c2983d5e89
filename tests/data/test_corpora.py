"""Corpora as a whole: disjoint splits, nested subsets, shares, overlaps, the manifest, changes while read."""

import hashlib
import json
from pathlib import Path

import pytest

from talltree.data import corpora
from talltree.errors import ConfigError, DataError

from .made import TEXTS, by_sources, corpus_of, write_jsonl


def all_texts(corpus):
    return {split: list(corpus.texts(split)) for split in ("train", "validation", "test")}


def test_splits_are_disjoint_complete_by_hash_and_independent_of_order(tmp_path):
    one = all_texts(corpus_of(write_jsonl(tmp_path / "a.jsonl", TEXTS), test_share=0.2))
    two = all_texts(corpus_of(write_jsonl(tmp_path / "b.jsonl", [*TEXTS[::-1], "Another."]), test_share=0.2))
    for text in TEXTS:
        share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
        expected = "validation" if share < 0.25 else "test" if share < 0.45 else "train"
        assert [split for split in one if text in one[split]] == [expected]
        assert [split for split in two if text in two[split]] == [expected]
    assert sum(map(len, one.values())) == len(TEXTS)
    assert min(map(len, one.values())) > 20


def test_duplicates_and_empty_documents_are_counted(tmp_path):
    texts = [f"s {n}" for n in range(60)] + ["s 3", " s 3 ", "", "  "]
    found = corpus_of(write_jsonl(tmp_path / "a.jsonl", texts)).manifest()
    assert (found["duplicates_dropped"], found["empty_dropped"]) == (2, 2)
    assert found["train_documents"] + found["validation_documents"] == 60
    assert found["train_words"] + found["validation_words"] == 120
    assert found["train_bytes"] + found["validation_bytes"] == 10 * 3 + 50 * 4
    assert found["test_documents"] == 0


def test_subsets_are_nested_and_move_no_held_out_document(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    whole = all_texts(corpus_of(path, test_share=0.2))
    smaller: set[str] = set()
    for share in (0.05, 0.1, 0.25, 0.5, 1.0):
        found = all_texts(corpus_of(path, test_share=0.2, subset=share))
        assert (found["validation"], found["test"]) == (whole["validation"], whole["test"])
        assert smaller <= set(found["train"]) <= set(whole["train"])
        assert len(found["train"]) == pytest.approx(share * len(whole["train"]), abs=15)
        smaller = set(found["train"])
    assert smaller == set(whole["train"])
    manifest = corpus_of(path, subset=0.25).manifest()
    left_out = manifest["sources"][0]["left_out_by_subset"]
    assert manifest["subset"] == 0.25
    assert left_out + manifest["train_documents"] + manifest["validation_documents"] == len(TEXTS)


def test_a_subset_does_not_follow_the_split(tmp_path):
    # Were the subset decided by the hash of the split, train (u >= 0.25) would hold none of a subset of 0.2.
    found = corpus_of(write_jsonl(tmp_path / "a.jsonl", TEXTS), subset=0.2)
    assert 10 < found.count("train")[0] < 60


def test_shares_of_sources_are_met_and_told(tmp_path):
    rows = [
        {"name": "few", "path": write_jsonl(tmp_path / "a.jsonl", TEXTS[:50]), "share": 1},
        {"name": "many", "path": write_jsonl(tmp_path / "b.jsonl", TEXTS[50:]), "share": 1},
    ]
    few, many = by_sources(rows).manifest()["sources"]
    assert (few["share_wanted"], many["share_wanted"]) == (0.5, 0.5)
    assert few["share_found"] == pytest.approx(0.5, abs=0.02)
    assert few["left_out_by_mixing"] == 0 < many["left_out_by_mixing"]
    everything = by_sources(rows, mixing="all").manifest()
    assert everything["sources"][0]["share_found"] == pytest.approx(0.25, abs=0.05)
    assert everything["train_documents"] + everything["validation_documents"] == 200
    with pytest.raises(DataError, match=r"`few` ends first"):
        by_sources(rows, words=100_000).manifest()


def test_explicit_splits_and_their_overlap(tmp_path):
    rows = [
        {"path": write_jsonl(tmp_path / "train.jsonl", TEXTS[:20]), "into": "train"},
        {"path": write_jsonl(tmp_path / "valid.jsonl", TEXTS[20:30]), "into": "validation"},
        {"path": write_jsonl(tmp_path / "test.jsonl", TEXTS[30:35]), "into": "test"},
    ]
    found = all_texts(by_sources(rows))
    assert found == {"train": TEXTS[:20], "validation": TEXTS[20:30], "test": TEXTS[30:35]}
    write_jsonl(tmp_path / "valid.jsonl", [*TEXTS[20:30], TEXTS[4], TEXTS[5]])
    with pytest.raises(DataError) as caught:
        by_sources(rows).manifest()
    assert str(caught.value) == (
        "splits overlap: 2 documents of train (`train.jsonl`) stand in validation (`valid.jsonl`) too, first "
        "'Story number 4 tells of 28 trees.'; remove them, or set corpus.overlaps keep_held_out"
    )
    kept = by_sources(rows, overlaps="keep_held_out")
    assert list(kept.texts("train")) == TEXTS[:4] + TEXTS[6:20]
    assert kept.manifest()["overlaps_dropped"] == 2


def test_pairs_with_one_prompt_stay_on_one_side(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"ask": f"Question {n % 60}?", "say": f"Answer {n}."} for n in range(180)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    corpus = corpus_of(path, prompt="{ask}", completion=" {say}")
    sides = {split: {pair.prompt for pair in corpus.pairs(split)} for split in ("train", "validation")}
    assert not sides["train"] & sides["validation"]
    assert len(sides["train"] | sides["validation"]) == 60
    assert sum(len(list(corpus.pairs(split))) for split in sides) == 180
    assert next(corpus.texts("train")) == "".join(next(corpus.pairs("train"))[:2])
    assert " Answer" in next(corpus.texts("train"))


def test_the_manifest_says_where_everything_is_from(tmp_path):
    folder = tmp_path / "books"
    write_jsonl(folder / "b" / "two.jsonl", TEXTS[:60])
    (folder / "a.txt").write_text("One.<|endoftext|>Two.", encoding="utf-8")
    (folder / "notes.md").write_text("no text", encoding="utf-8")
    (folder / ".hidden.txt").write_text("hidden", encoding="utf-8")
    corpus = corpus_of(folder)
    found = corpus.manifest()
    assert list(found["sha256"]) == ["books/a.txt", "books/b/two.jsonl"]
    digest = hashlib.sha256((folder / "a.txt").read_bytes()).hexdigest()
    assert found["sha256"]["books/a.txt"] == corpus.sha256["books/a.txt"] == digest
    assert found["sources"][0]["files_passed_over"] == ["notes.md"]
    assert found["train_documents"] + found["validation_documents"] == 62
    assert str(tmp_path) not in json.dumps(found)
    corpora.save_manifest(tmp_path, found)
    assert json.loads((tmp_path / "corpus.json").read_text()) == found


def test_texts_are_streamed_again_and_a_change_meanwhile_is_noticed(tmp_path):
    path = Path(write_jsonl(tmp_path / "a.jsonl", TEXTS))
    corpus = corpus_of(path)
    first = list(corpus.texts("train"))
    assert list(corpus.texts("train")) == first
    stream = corpus.texts("train")
    assert next(stream) == first[0]
    for changed in (TEXTS[:-1], [*TEXTS, "More."], [text.replace("199", "299") for text in TEXTS]):
        write_jsonl(path, changed)
        with pytest.raises(DataError, match=r"a\.jsonl has changed while it was being read"):
            all_texts(corpus)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n{"story": "b"}\n', "line 3: no column `text`; found: story"),
        ("a.jsonl", b"\n\n", "a.jsonl holds no rows"),
        ("a.txt", b"", "a.txt is empty (0 bytes)"),
        ("a.txt", b"PK\x03\x04\x00\x00", "a.txt is a binary file: byte 4 is NUL"),
        ("a.txt", b"caf\xe9 au lait", "a.txt: byte 3 is not UTF-8"),
        ("a.txt", b"<|endoftext|> \n", "no document fell into train"),
        ("a.txt", b"just one document", "no document fell into"),
        ("a.csv", b"text\n", "ending '.csv' is not known; use .jsonl, .txt"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        corpus_of(tmp_path / name).manifest()
    assert message in str(caught.value)
    assert "a." in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"path": "a.txt", "shar": 1}], r"row 1: shar: unknown option .*nearest known: share"),
        ([{"path": "a.txt"}, {"name": "b"}], "row 2: path or dataset is required"),
        ([{"path": "a.txt", "share": 1}, {"path": "b.txt"}], "1 of 2 rows with training text have a share"),
        ([{"path": "a/x.txt"}, {"path": "b/x.txt"}], r"two sources are called x\.txt; give each a name"),
        ([{"path": "a.txt", "documents": "page"}], "row 1: documents: 'page' is not allowed"),
    ],
)
def test_bad_sources_are_refused_before_anything_is_read(rows, message):
    with pytest.raises(ConfigError, match=message):
        by_sources(rows)


def test_missing_files_and_folders_without_text(tmp_path):
    for name in (tmp_path / "none.txt", tmp_path / "none"):
        with pytest.raises(DataError, match="not found: give a .jsonl or .txt file"):
            corpus_of(name)
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match=r"holds no \.jsonl or \.txt file; found: a\.csv"):
        corpus_of(tmp_path)
    with pytest.raises(ConfigError, match="dataset_name a.txt and corpus.sources are both given"):
        corpora.open_corpus(corpora.CorpusOptions(sources=[{"path": "b.txt"}]), "a.txt")
