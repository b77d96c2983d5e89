"""Datasets of the hub's layout, read from local folders; what is missing there is one clear line."""

import datasets
import pytest

from talltree.data.corpus_options import Source
from talltree.data.sources import open_source, read
from talltree.errors import DataError

from .made import TEXTS, by_sources, corpus_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")


@pytest.fixture
def folder(tmp_path):
    for split, texts in (("train", TEXTS[:150]), ("validation", TEXTS[150:])):
        rows = datasets.Dataset.from_dict({"text": texts, "number": list(range(len(texts)))})
        rows.to_parquet(tmp_path / "stories" / "data" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "stories"


def documents(**fields):
    return [document.text for document in read(open_source(Source(**fields)))]


def test_a_local_folder_in_the_hubs_layout(folder):
    assert documents(path=str(folder)) == TEXTS[:150]
    assert documents(dataset=str(folder), split="validation") == TEXTS[150:]
    assert documents(path=str(folder / "gone"), dataset=str(folder)) == TEXTS[:150]
    opened = open_source(Source(path=str(folder)))
    assert list(opened.sha256) == [
        "stories/data/train-00000-of-00001.parquet",
        "stories/data/validation-00000-of-00001.parquet",
    ]
    # Memory-mapped from a file, which is what keeps a large corpus out of memory.
    assert all(entry["filename"].endswith(".arrow") for entry in opened.dataset.cache_files)
    assert opened.dataset.cache_files
    found = corpus_of(folder).manifest()
    assert found["train_documents"] + found["validation_documents"] == 150


def test_a_dataset_saved_to_disk(tmp_path):
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows.select([1]), "test": rows.select([2, 3])}).save_to_disk(
        tmp_path / "two"
    )
    assert documents(dataset=str(tmp_path / "one")) == TEXTS
    assert documents(path=str(tmp_path / "two"), split="test") == TEXTS[2:4]


def test_its_splits_as_explicit_splits(folder):
    rows = [
        {"name": "a", "path": str(folder), "split": "train", "into": "train"},
        {"name": "b", "path": str(folder), "split": "validation", "into": "validation"},
    ]
    corpus = by_sources(rows)
    assert list(corpus.texts("train")) == TEXTS[:150]
    assert list(corpus.texts("validation")) == TEXTS[150:]


def test_rows_that_are_lines(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("One.\nTwo.\n\nThree.\nFour.\n", encoding="utf-8")
    fields = {"dataset": "text", "data_files": str(path)}
    assert documents(**fields) == ["One.", "Two.", "", "Three.", "Four."]
    assert documents(**fields, documents="blank_line") == ["One.\nTwo.", "Three.\nFour."]
    assert documents(**fields, documents="line", lines_per_document=3) == ["One.\nTwo.", "Three.\nFour."]
    assert documents(**fields, documents="file") == ["One.\nTwo.\n\nThree.\nFour."]
    assert documents(**fields, documents="separator", separator="T") == ["One.", "wo.", "hree.\nFour."]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"column": "story"}, "no column `story`; columns there: text, number"),
        ({"completion": "{text} {mark}"}, "no column `mark`; columns there: text, number"),
        ({"split": "dev"}, "split dev, cannot be loaded"),
        ({"column": "number"}, "row 1: `number` is int, a string is needed"),
    ],
)
def test_wrong_columns_and_splits(folder, fields, message):
    with pytest.raises(DataError) as caught:
        documents(path=str(folder), **fields)
    assert message in str(caught.value)
    assert "stories" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dataset_that_is_not_there(tmp_path):
    with pytest.raises(DataError) as caught:
        open_source(Source(dataset="nobody/nothing-of-this-name"))
    assert "dataset nobody/nothing-of-this-name, split train, cannot be loaded" in str(caught.value)
    assert "check the name and the network, or give a local folder" in str(caught.value)
    assert "\n" not in str(caught.value)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be loaded"):
        open_source(Source(path=str(tmp_path / "broken")))


def test_a_template_needs_rows(tmp_path):
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match="prompt and completion need rows"):
        documents(path=str(tmp_path / "a.txt"), completion="{x}")
