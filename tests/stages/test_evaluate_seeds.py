"""Evaluate over seeds: fine-tuning seeds of a model, and models that are training seeds of one setting."""

import json
from pathlib import Path

import pytest
from scipy import stats

from talltree.config import from_dict
from talltree.errors import ConfigError
from talltree.evals.finetune import SeedResult, summarise_seeds
from talltree.report.evaluation import build
from talltree.stages import compare, evaluate
from talltree.stages.evaluate.models import places

from ..tiny import llama, save


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    save(folder / "base", llama())
    for seed in range(3):
        save(folder / f"s{seed}", llama(seed=10 + seed))
    (folder / "valid.txt").write_text("w1 w2 w3<|endoftext|>w4 w5<|endoftext|>w6 w7 w8")
    (folder / "blimp").mkdir()
    pairs = [
        {"sentence_good": f"w{at % 20 + 1} w3", "sentence_bad": f"w3 w{at % 20 + 1} w7"} for at in range(20)
    ]
    (folder / "blimp/passive_1.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return folder


def seeds_of(there, count=3):
    return ",".join(str(there / f"s{seed}") for seed in range(count))


def run(there, output, models, **changed):
    given = {
        "models": models, "tasks": "loss,blimp:passive_1", "loss.data": str(there / "valid.txt"),
        "blimp.data": str(there / "blimp"), "output_dir": str(output), "cache_dir": str(there / "cache"),
    }  # fmt: skip
    evaluate.run(from_dict(evaluate.Config, given | changed))
    return json.loads((Path(output) / "results.json").read_text())


def test_models_of_one_setting_have_an_interval_over_training_seeds(there, tmp_path, capsys) -> None:
    results = run(there, tmp_path / "eval", [str(there / "base"), f"rl={seeds_of(there)}"])
    assert [each["name"] for each in results["models"]] == ["base", "rl/s0", "rl/s1", "rl/s2"]
    (setting,) = results["settings"]
    assert (setting["name"], setting["models"]) == ("rl", ["rl/s0", "rl/s1", "rl/s2"])
    bits = setting["tasks"]["loss"]["bits_per_byte"]
    own = [each["tasks"]["loss"]["metrics"]["bits_per_byte"]["value"] for each in results["models"][1:]]
    assert list(bits["values"].values()) == own
    low, high = stats.t.interval(0.95, 2, sum(own) / 3, stats.sem(own))
    assert (bits["mean"], bits["low"], bits["high"]) == pytest.approx((sum(own) / 3, low, high))
    said = capsys.readouterr().out
    assert "rl  loss: " in said and "3 seeds, 95% t interval over seeds" in said
    page = (tmp_path / "eval/report.html").read_text()
    assert "over training seeds: 95% t interval over seeds" in page and "rl, 3 seeds" in page
    assert "Every paradigm, over training seeds" in page
    # `compare` of the folder knows the setting.
    compare.run(compare.Config(models=[str(tmp_path / "eval")], output_dir=str(tmp_path / "cmp")))
    found = json.loads((tmp_path / "cmp/comparison.json").read_text())["items"]
    (apart,) = [each for each in found["against"]["rl"][0]["differences"] if "bits" in each["measure"]]
    base = results["models"][0]["tasks"]["loss"]["metrics"]["bits_per_byte"]["value"]
    assert apart["p_value"] == pytest.approx(stats.ttest_1samp(own, base).pvalue)


@pytest.mark.parametrize(("count", "words"), [(2, "range of two seeds"), (1, None)])
def test_two_seeds_have_a_range_and_one_is_a_model_with_a_name(there, tmp_path, count, words) -> None:
    results = run(there, tmp_path / "eval", [f"rl={seeds_of(there, count)}"], tasks="loss")
    page = (tmp_path / "eval/report.html").read_text()
    if words is None:
        assert results["settings"] == [] and [each["name"] for each in results["models"]] == ["rl"]
        assert "over training seeds" not in page
    else:
        spread = results["settings"][0]["tasks"]["loss"]["bits_per_byte"]
        assert (spread["low"], spread["high"]) == (
            min(spread["values"].values()),
            max(spread["values"].values()),
        )
        assert words in page


def test_names_and_refusals(there) -> None:
    found = places([f"a={there / 's0'}", f"b={there / 's1'},{there / 's2'}"])
    assert [(each.label, each.setting) for each in found] == [("a", None), ("b/s1", "b"), ("b/s2", "b")]
    both = f"{there / 's1'},{there / 's2'}"
    with pytest.raises(ConfigError, match="are 2 models; leave the comma out, or write NAME="):
        places([both])
    with pytest.raises(ConfigError, match="are one model; give it once"):
        places([f"a={there / 's1'}", f"b={both}"])


# --- fine-tuning seeds -------------------------------------------------------------------------------------

LABELS = [1, 1, 0, 0]
PREDICTIONS = {12: [1, 1, 0, 0], 13: [1, 0, 0, 0], 14: [1, 1, 1, 0]}


FACTS = {
    "sources": [], "notes": [], "majority": 1, "classes": 2, "train_rows": 8, "fitted": 6, "stopping": 2,
    "left_out": 0, "cut_in_training": 0, "max_length": 9, "updates": 1, "best_update": 1,
}  # fmt: skip


def fine_tuned(seeds):
    return summarise_seeds([SeedResult("glue:cola", seed, rows_of(seed), [], FACTS) for seed in seeds])


def rows_of(seed):
    pairs = enumerate(zip(LABELS, PREDICTIONS[seed], strict=True))
    rest = {"part": "", "block": 0, "cut_words": 0}
    return [{"item": i, "group": i, "label": label, "prediction": each, **rest} for i, (label, each) in pairs]


def test_each_fine_tuning_has_its_own_value(tmp_path) -> None:
    """Matthews 1; tp 1, fn 1, tn 2: 2 / sqrt(1 * 2 * 2 * 3) = 0.577; tp 2, fp 1, tn 1: the same."""
    found = fine_tuned([12, 13, 14])
    assert found.by_seed["matthews"] == pytest.approx({"12": 1.0, "13": 1 / 3**0.5, "14": 1 / 3**0.5})
    assert found.by_seed["accuracy"] == {"12": 1.0, "13": 0.75, "14": 0.75}
    assert found.metrics["accuracy"].value == pytest.approx(2.5 / 3)
    assert "majority/accuracy" not in found.by_seed
    assert fine_tuned([12]).by_seed["accuracy"] == {"12": 1.0}


@pytest.mark.parametrize(
    ("seeds", "kind", "said"),
    [
        ([12, 13, 14], "t", "95% t interval over seeds"),
        ([12, 13], "range", "range of two seeds"),
        ([12], "", "one seed, so no interval"),
    ],
)
def test_the_page_says_what_is_known_over_fine_tuning_seeds(seeds, kind, said) -> None:
    from talltree.evals.seeds import over_seeds

    found = fine_tuned(seeds)
    task = {
        "metrics": {name: metric.as_json() for name, metric in found.metrics.items()},
        "notes": list(found.notes),
        "rows": "rows",
        "by_seed": {
            name: {"values": dict(values), **over_seeds(list(values.values()))._asdict()}
            for name, values in found.by_seed.items()
        },
    }
    assert task["by_seed"]["accuracy"]["kind"] == kind
    model = {
        "name": "m",
        "parameters": 1,
        "weights_sha256": "",
        "tokenizer_sha256": "",
        "tasks": {"glue:cola": task},
    }
    page = build({"models": [model]}, "x")
    assert f"over fine-tuning seeds alone: {said}" in page
    assert "12: 100%" in page and "13: 75%" in page or seeds == [12]
