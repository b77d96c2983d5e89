"""recipes/corpora: each is a valid config of the stages that read a corpus, and loads from a local folder."""

from pathlib import Path

import datasets
import pytest
import yaml

from talltree.config import parse
from talltree.data.corpora import open_corpus
from talltree.data.corpus_options import sources_of
from talltree.data.documents import columns_of
from talltree.stages import pretrain, tokenizer

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "corpora"
NAMES = sorted(path.name for path in RECIPES.glob("*.yaml"))
BABYLM = {
    "open_subtitles": 30, "simple_wikipedia": 15, "bnc_spoken": 10, "gutenberg": 10, "qed": 10,
    "wikipedia": 10, "cbt": 6, "aochildes": 4, "children_stories": 4, "switchboard": 1,
}  # fmt: skip


def options(name):
    return parse(tokenizer.Config, ["--config", str(RECIPES / name)], "talltree").corpus


def test_there_is_one_for_each_study():
    assert NAMES == [
        "babylm_strict.yaml", "babylm_strict_small.yaml", "books.yaml", "cnn_dailymail.yaml",
        "tinystories.yaml", "tldr.yaml",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_config_of_both_stages(name):
    path = ["--config", str(RECIPES / name)]
    pretraining = parse(pretrain.Config, [*path, "--tokenizer_name_or_path", "t"], "talltree")
    assert pretraining.corpus == options(name)
    assert all(source.dataset for source in sources_of("", pretraining.corpus))


@pytest.mark.parametrize("name", ["babylm_strict.yaml", "babylm_strict_small.yaml"])
def test_the_babylm_mix_of_2023(name):
    found = {source.name: source.share for source in sources_of("", options(name))}
    assert found == BABYLM
    assert sum(found.values()) == 100


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_from_a_local_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    corpus = options(name)
    for number, source in enumerate(sources_of("", corpus)):
        lines = [f"Line {n} of source {number} about {source.split}." for n in range(2000)]
        path = Path(source.path)
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines), encoding="utf-8")
        else:
            rows = datasets.Dataset.from_dict(dict.fromkeys(columns_of(source), lines))
            rows.to_parquet(path / "data" / f"{source.split}-00000-of-00001.parquet")
    found = open_corpus(corpus).manifest()
    assert found["train_documents"] > 0
    assert found["validation_documents"] > 0
    if name.startswith("babylm"):
        assert found["sources"][0]["share_wanted"] == pytest.approx(0.3)
        assert (
            sum(row["splits"]["train"]["documents"] for row in found["sources"]) == found["train_documents"]
        )


def test_recipes_hold_nothing_else():
    for name in NAMES:
        assert list(yaml.safe_load((RECIPES / name).read_text())) == ["corpus"]
