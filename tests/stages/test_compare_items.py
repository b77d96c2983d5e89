"""Compare on evaluate folders: pairs too long for one model, fine-tuned tasks by their measure, seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from talltree.errors import ConfigError, DataError
from talltree.stages import compare
from talltree.stages.compare.config import Config


def evaluated(folder: Path, models, settings=(), **config) -> str:
    """An evaluate folder: model -> task -> rows; settings: (name, models)."""
    listed = []
    for model, tasks in models.items():
        entry = {"name": model, "tasks": {}}
        for task, rows in tasks.items():
            file = folder / f"rows/{model.replace('/', '-')}/{task.replace(':', '-')}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            entry["tasks"][task] = {"metrics": {}, "notes": [], "rows": str(file.relative_to(folder))}
        listed.append(entry)
    content = {"models": listed, "settings": [{"name": name, "models": of} for name, of in settings]}
    (folder / "results.json").write_text(json.dumps(content))
    if config:
        (folder / "config.yaml").write_text(json.dumps({"models": ["m"]} | config))
    return str(folder)


def blimp(won):
    return [
        {"paradigm": paradigm, "item": i, "good": f"g{i}", "bad": f"b{i}", "won": value}
        for paradigm, values in won.items()
        for i, value in enumerate(values)
    ]


def classified(labels, predictions, part=""):
    """predictions: seed -> one for each label."""
    return [
        {
            "part": part,
            "item": f"i{i}",
            "group": i,
            "block": 0,
            "seed": seed,
            "label": label,
            "prediction": each,
        }
        for seed, given in predictions.items()
        for i, (label, each) in enumerate(zip(labels, given, strict=True))
    ]


def read(folder: Path):
    return json.loads((folder / "comparison.json").read_text())["items"]


# --- pairs that one model cannot read ----------------------------------------------------------------------


def test_pairs_too_long_for_one_model_are_left_out_for_both_and_counted(tmp_path, capsys) -> None:
    """Of a the first two and the last do not fit one or the other model, of `gone` no pair fits the first."""
    one = {"a": [1.0, None, 1.0, 0.0, None], "b": [1.0, 1.0], "gone": [None, None]}
    two = {"a": [None, None, 0.0, 0.0, 1.0], "b": [0.0, 1.0], "gone": [1.0, 1.0]}
    folders = [
        evaluated(tmp_path / name, {name: {"blimp": blimp(won)}})
        for name, won in (("one", one), ("two", two))
    ]
    compare.run(Config(models=folders, output_dir=str(tmp_path / "out")))
    found = read(tmp_path / "out")
    # Of a the third and fourth pair are shared: 1/2 and 0/2; of b both: 2/2 and 1/2.
    overall, paradigms = found["against"]["two"]
    assert overall["differences"][0]["left"]["value"] == pytest.approx((0.5 + 1.0) / 2)
    assert overall["differences"][0]["difference"]["value"] == pytest.approx(-0.5)
    assert [each["measure"] for each in paradigms["differences"]] == ["a", "b"]
    assert found["left_out"] == [
        {"task": "blimp", "pairs": 9, "left_out": 5, "too_long": {"one": 4, "two": 2}, "empty": ["gone"],
         "against": "two"}
    ]  # fmt: skip
    words = (
        "blimp: 5 of 9 pairs have a sentence longer than a model's context (4 for one, 2 for two) and are "
        "left out for all of them, so figures may differ from evaluate's; no pair is left of gone."
    )
    assert words in found["notes"] and words in capsys.readouterr().out
    page = (tmp_path / "out/report.html").read_text()
    assert "5 of 9 pairs have a sentence longer" in page


def test_where_every_pair_fits_nothing_is_said_of_it(tmp_path) -> None:
    folders = [
        evaluated(tmp_path / name, {name: {"blimp": blimp({"a": won})}})
        for name, won in (("one", [1.0, 0.0]), ("two", [1.0, 1.0]))
    ]
    compare.run(Config(models=folders, output_dir=str(tmp_path / "out")))
    found = read(tmp_path / "out")
    assert found["left_out"] == [] and not any("left out for all" in note for note in found["notes"])


# --- fine-tuned tasks --------------------------------------------------------------------------------------


LABELS = [1] * 6 + [0] * 4
ALWAYS = [1] * 10
FEW = [1, 1, 1] + [0] * 7


def test_a_task_is_compared_by_its_own_measures(tmp_path) -> None:
    """MRPC by F1 first: always 1 has .75, three of six found .667, though its accuracy is the higher one."""
    folders = [
        evaluated(tmp_path / name, {name: {"glue:mrpc": classified(LABELS, {12: each})}})
        for name, each in (("always", ALWAYS), ("few", FEW))
    ]
    compare.run(Config(models=folders, output_dir=str(tmp_path / "out")))
    (table,) = read(tmp_path / "out")["against"]["few"]
    f1, accuracy = table["differences"]
    assert (f1["measure"], accuracy["measure"]) == ("glue:mrpc f1", "glue:mrpc accuracy")
    assert f1["difference"]["value"] == pytest.approx(2 / 3 - 3 / 4)
    assert accuracy["difference"]["value"] == pytest.approx(0.1)
    assert f1["seeds"] == {
        "left": {"12": pytest.approx(0.75)}, "right": {"12": pytest.approx(2 / 3)},
        "apart": {"mean": pytest.approx(-1 / 12), "low": None, "high": None, "n": 1, "kind": ""},
    }  # fmt: skip
    assert any("one seed, so no interval" in note for note in read(tmp_path / "out")["notes"])


@pytest.mark.parametrize("seeds", [(1, 2), (1, 2, 3)])
def test_every_seed_is_told_and_the_difference_has_an_interval_over_them(tmp_path, seeds) -> None:
    """CoLA by Matthews correlation, which is the correlation of two columns."""
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=80).tolist()

    def predictions(share):
        return {seed: np.where(generator.random(80) < share, labels, 0).tolist() for seed in seeds}

    sides = {"one": predictions(0.6), "two": predictions(0.8)}
    folders = [
        evaluated(tmp_path / name, {name: {"glue:cola": classified(labels, each)}})
        for name, each in sides.items()
    ]
    compare.run(Config(models=folders, output_dir=str(tmp_path / "out")))
    found = read(tmp_path / "out")
    matthews, _ = found["against"]["two"][0]["differences"]
    values = {
        name: [float(np.corrcoef(labels, each[seed])[0, 1]) for seed in seeds] for name, each in sides.items()
    }
    apart = np.array(values["two"]) - np.array(values["one"])
    assert matthews["left"]["value"] == pytest.approx(np.mean(values["one"]))
    assert list(matthews["seeds"]["right"].values()) == pytest.approx(values["two"])
    bounds = (apart.min(), apart.max())
    if len(seeds) == 3:
        bounds = stats.ttest_1samp(apart, 0).confidence_interval()
    assert (matthews["seeds"]["apart"]["low"], matthews["seeds"]["apart"]["high"]) == pytest.approx(
        tuple(bounds)
    )
    assert matthews["seeds"]["apart"]["kind"] == ("t" if len(seeds) == 3 else "range")
    assert matthews["over"].endswith("and fine-tuning seeds")
    assert "Every seed" in (tmp_path / "out/report.html").read_text()


def test_other_seeds_and_other_rows_are_refused_and_other_settings_said(tmp_path) -> None:
    def folder(name, predictions, labels=LABELS, **config):
        return evaluated(tmp_path / name, {name: {"glue:cola": classified(labels, predictions)}}, **config)

    one = folder("one", {12: FEW}, finetune={"learning_rate": 5e-5, "seeds": [12]})
    for other, match in (
        (folder("two", {12: FEW, 13: ALWAYS}), r"fine-tuned with other seeds \(12 and 12, 13\)"),
        (folder("three", {12: FEW[:9]}, LABELS[:9]), r"unequal items \(10 and 9\)"),
    ):
        with pytest.raises(DataError, match=match) as caught:
            compare.run(Config(models=[one, other], output_dir=str(tmp_path / "out")))
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    four = folder("four", {12: ALWAYS}, finetune={"learning_rate": 1e-3, "seeds": [12]})
    compare.run(Config(models=[one, four], output_dir=str(tmp_path / "out")))
    said = "glue:cola of one, four was fine-tuned with unlike settings: learning_rate 5e-05, 0.001."
    assert said in read(tmp_path / "out")["notes"]


# --- training seeds ----------------------------------------------------------------------------------------


def of_one_seed(shift):
    """Rows of three tasks: BLiMP shares 1/2 + shift / 4, bits 2 + shift, accuracy 6/10 or 7/10."""
    won = [1.0] * (2 + shift) + [0.0] * (2 - shift)
    nats = [(2 + shift) * 10 * 0.6931471805599453] * 3
    documents = [{"document": i, "nats": each, "bytes": 10} for i, each in enumerate(nats)]
    return {
        "blimp": blimp({"a": won, "b": won}),
        "loss": documents,
        "glue:rte": classified(LABELS, {12: FEW if shift else ALWAYS}),
    }


def test_models_evaluated_as_seeds_of_one_setting_are_compared_over_seeds(tmp_path) -> None:
    """BLiMP 1/2 against .75, .75, 1: a mean of 5/6, a t interval over three seeds; and so the other tasks."""
    models = {"base": of_one_seed(0), **{f"rl/s{at}": of_one_seed(at) for at in range(1, 4) if at < 3}}
    models["rl/s3"] = of_one_seed(1)
    folder = evaluated(tmp_path / "eval", models, [("rl", ["rl/s1", "rl/s2", "rl/s3"])])
    compare.run(Config(models=[folder], output_dir=str(tmp_path / "out")))
    found = read(tmp_path / "out")
    assert (found["models"], list(found["against"])) == (["base", "rl"], ["rl"])
    overall, paradigms = found["against"]["rl"]
    won, bits, accuracy = overall["differences"]
    assert won["seeds"]["right"] == {"s1": 0.75, "s2": 1.0, "s3": 0.75}
    test = stats.ttest_1samp([0.75, 1.0, 0.75], 0.5)
    assert (won["difference"]["value"], won["p_value"]) == pytest.approx((1 / 3, test.pvalue))
    bounds = test.confidence_interval()
    assert (won["difference"]["low"] + 0.5, won["difference"]["high"] + 0.5) == pytest.approx(tuple(bounds))
    assert bits["left"]["value"] == pytest.approx(2) and bits["right"]["value"] == pytest.approx(2 + 4 / 3)
    assert (accuracy["left"]["value"], accuracy["right"]["value"]) == pytest.approx((0.6, 0.7))
    assert [each["measure"] for each in paradigms["differences"]] == ["a", "b"]
    assert any("base: 1, rl: 3 models" in note for note in found["notes"])
    # The same as folders of one model each.
    folders = {
        name: evaluated(tmp_path / name.replace("/", "-"), {name: rows}) for name, rows in models.items()
    }
    seeds = ",".join(folder for name, folder in folders.items() if name != "base")
    compare.run(Config(models=[folders["base"], f"rl={seeds}"], output_dir=str(tmp_path / "out2")))
    again = read(tmp_path / "out2")["against"]["rl"][0]["differences"]
    assert [each["difference"] for each in again] == [each["difference"] for each in overall["differences"]]


def test_one_setting_alone_and_a_seed_with_two_models_are_refused(tmp_path) -> None:
    models = {"rl/s1": of_one_seed(1), "rl/s2": of_one_seed(2)}
    both = evaluated(tmp_path / "both", models, [("rl", list(models))])
    base = evaluated(tmp_path / "base", {"base": of_one_seed(0)})
    for given, match in (
        ([both], "rl is alone: its models are seeds of one setting"),
        ([base, f"rl={both},{base}"], "is named twice"),
        ([f"rl={both},{base}"], "holds 2 models; a seed of rl is a folder with one"),
    ):
        with pytest.raises(ConfigError, match=match):
            compare.run(Config(models=given, output_dir=str(tmp_path / "out")))
