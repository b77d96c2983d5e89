"""Compare on evaluate folders and on people's judgements: hand-made rows with known figures."""

import json
from pathlib import Path

import pytest

from talltree.annotation.store import Store
from talltree.annotation.study import Answer, Study, make_tuple
from talltree.errors import ConfigError, DataError
from talltree.stages import compare
from talltree.stages.compare.config import Config


def evaluated(folder: Path, rows, name="m") -> str:
    """An evaluate folder with the rows of each task."""
    (folder / "rows").mkdir(parents=True)
    tasks = {}
    for task, each in rows.items():
        file = f"rows/{task.replace(':', '-')}.jsonl"
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in each))
        tasks[task] = {"metrics": {}, "notes": [], "rows": file}
    (folder / "results.json").write_text(json.dumps({"models": [{"name": name, "tasks": tasks}]}))
    return str(folder)


def blimp(won):
    return [
        {"paradigm": paradigm, "item": i, "good": f"g{i}", "bad": f"b{i}", "won": value}
        for paradigm, values in won.items()
        for i, value in enumerate(values)
    ]


def read(folder: Path):
    return json.loads((folder / "comparison.json").read_text())


def test_blimp_is_paired_item_by_item(tmp_path) -> None:
    one = {"binding": [1.0] * 6 + [0.0] * 14, "islands": [1.0] * 10 + [None]}
    two = {"binding": [1.0] * 20, "islands": [1.0] * 9 + [0.0, 1.0]}
    folders = [
        evaluated(tmp_path / "one", {"blimp": blimp(one)}),
        evaluated(tmp_path / "two", {"blimp": blimp(two)}),
    ]
    compare.run(Config(models=folders, output_dir=str(tmp_path / "out")))
    overall, paradigms = read(tmp_path / "out")["items"]["against"]["two"]
    # binding 6/20 to 20/20; islands 10/10 to 9/10 over the ten pairs that both scored.
    found = {each["measure"]: each for each in paradigms["differences"]}
    assert found["binding"]["difference"]["value"] == pytest.approx(0.7)
    assert found["binding"]["p_value"] == pytest.approx(2 / 2**14) and found["binding"]["test"] == "McNemar"
    assert found["islands"]["difference"]["value"] == pytest.approx(-0.1)
    assert found["islands"]["p_value"] == 1.0  # one lost, none gained
    assert found["binding"]["p_holm"] == pytest.approx(4 / 2**14)
    assert overall["differences"][0]["difference"]["value"] == pytest.approx((0.7 - 0.1) / 2)
    assert "binding" in (tmp_path / "out/report.html").read_text()


def test_documents_and_classified_rows_are_compared(tmp_path) -> None:
    def rows(nats, predictions, others):
        documents = [
            {"document": i, "nats": n, "tokens": 5, "bytes": 10, "windows": 1} for i, n in enumerate(nats)
        ]
        # As evaluate writes them: a task without exact match has one block.
        labels = [
            {"part": part, "item": f"{part}{i}", "group": i // 2, "block": 0, "seed": seed, "label": 1,
             "prediction": p}
            for seed in (0, 1)
            for part, each in (("", predictions), ("mismatched", others))
            for i, p in enumerate(each)
        ]  # fmt: skip
        return {"loss": documents, "glue:rte": labels}

    ln2 = 0.6931471805599453
    folders = [
        evaluated(tmp_path / "one", rows([10 * ln2, 20 * ln2, 30 * ln2], [1, 0, 0, 0], [1, 1])),
        evaluated(tmp_path / "two", rows([5 * ln2, 15 * ln2, 25 * ln2], [1, 1, 0, 1], [0, 0])),
    ]
    compare.run(Config(models=folders, output_dir=str(tmp_path / "out")))
    (table,) = read(tmp_path / "out")["items"]["against"]["two"]
    bits, accuracy, mismatched = table["differences"]
    assert (bits["left"]["value"], bits["difference"]["value"]) == pytest.approx((2.0, -0.5))
    assert (accuracy["left"]["value"], accuracy["difference"]["value"]) == pytest.approx((0.25, 0.5))
    assert accuracy["clusters"] == 2  # two texts with two items each
    assert accuracy["difference"]["low"] is not None
    # The part that counts is not mixed with the other one.
    assert (mismatched["measure"], mismatched["difference"]["value"]) == ("glue:rte mismatched accuracy", -1)


def test_the_models_of_one_evaluate_folder_are_compared(tmp_path) -> None:
    folder = Path(evaluated(tmp_path / "both", {"blimp": blimp({"a": [1.0, 0.0, 0.0]})}, "old"))
    (folder / "rows/new.jsonl").write_text((folder / "rows/blimp.jsonl").read_text().replace("0.0", "1.0"))
    content = json.loads((folder / "results.json").read_text())
    tasks = {"blimp": {"metrics": {}, "notes": [], "rows": "rows/new.jsonl"}}
    content["models"].append({"name": "new", "tasks": tasks})
    (folder / "results.json").write_text(json.dumps(content))
    compare.run(Config(models=[str(folder)], output_dir=str(tmp_path / "out")))
    overall, _ = read(tmp_path / "out")["items"]["against"]["new"]
    assert overall["differences"][0]["difference"]["value"] == pytest.approx(2 / 3)


def test_unequal_items_and_lonely_folders_are_refused(tmp_path) -> None:
    one = evaluated(tmp_path / "one", {"blimp": blimp({"a": [1.0, 0.0]})})
    two = evaluated(tmp_path / "two", {"blimp": blimp({"a": [1.0]})})
    three = evaluated(tmp_path / "three", {"blimp": blimp({"b": [1.0, 0.0]})})
    four = evaluated(tmp_path / "four", {"loss": [{"document": 0, "nats": 1.0, "bytes": 3}]})
    output = str(tmp_path / "out")
    for models, error, match in (
        ([one, two], DataError, r"unequal items \(2 and 1\)"),
        ([one, three], DataError, "in row 1 paradigm is 'a' and 'b'"),
        ([one, four], ConfigError, "share no task that can be compared: blimp, and loss"),
        ([one], ConfigError, "holds one model; name a second"),
        ([one, "seedling"], ConfigError, "give the folders as --results A,B"),
    ):
        with pytest.raises(error, match=match) as caught:
            compare.run(Config(models=models, output_dir=output))
        assert "\n" not in str(caught.value) and not Path(output).exists()
    five = evaluated(tmp_path / "five", {"blimp": blimp({"a": [1.0, 0.0]})})
    for folder, spaced in ((one, "false"), (five, "true")):
        Path(folder, "config.yaml").write_text(f"models: [m]\nblimp: {{leading_space: {spaced}}}\n")
    with pytest.raises(DataError, match=r"scored unlike: blimp.leading_space is False and True"):
        compare.run(Config(models=[one, five], output_dir=output))
    (tmp_path / "two/results.json").write_text("{}")
    with pytest.raises(DataError, match="is not what evaluate writes"):
        compare.run(Config(models=[one, two], output_dir=output))
    with pytest.raises(ConfigError, match="is no evaluate folder"):
        compare.run(Config(results=f"{one},seedling", output_dir=output))


# --- people ------------------------------------------------------------------------------------------------


def study(folder: Path, kind="pair", **options) -> Store:
    tuples = tuple(make_tuple(f"p{i}", (f"old {i}", f"new {i}"), ("before", "after")) for i in range(6))
    return Store.create(folder, Study(kind=kind, tuples=tuples, overlap=2, **options))


def judge(store: Store, answers) -> None:
    """Each annotator answers whatever comes, by answers(name, number of the prompt)."""
    for name in ("ann", "bob"):
        token = store.add_annotator(name).token
        while (task := store.next_task(token)) is not None:
            store.answer(
                token,
                task.task_id,
                f"{name}-{task.task_id}".replace(".", "-"),
                answers(name, int(task.prompt[1:])),
            )


def test_a_study_of_pairs_gives_win_rates(tmp_path) -> None:
    with study(tmp_path / "study") as store:
        judge(store, lambda name, i: Answer(tie=True) if i == 0 else Answer(best=int(i < 5 or name == "bob")))
    compare.run(Config(people=str(tmp_path / "study"), output_dir=str(tmp_path / "out")))
    found = read(tmp_path / "out")["people"]
    (rate,) = found["win_rates"]
    assert (found["sources"], found["judgements"], found["prompts"], found["raters"]) == (
        ["after", "before"],
        12,
        6,
        2,
    )
    # "before" against "after": 2 ties, ann prefers the old one once, everything else is lost.
    assert (rate["wins"], rate["ties"], rate["losses"]) == (1, 2, 9)
    assert rate["rate"]["value"] == pytest.approx(2 / 12)
    assert rate["raters"]["ann"]["rate"] == pytest.approx(1.5 / 6)
    assert "ties counted as half" in (tmp_path / "out/report.html").read_text()


def test_ratings_are_compared_by_criterion(tmp_path) -> None:
    with study(tmp_path / "study", kind="rating", criteria=("grammar", "plot")) as store:
        judge(store, lambda name, i: Answer(ratings=((4, 4), (2, 3 + (name == "bob")))))
    compare.run(Config(people=str(tmp_path / "study"), output_dir=str(tmp_path / "out")))
    found = read(tmp_path / "out")["people"]
    assert found["means"]["plot"]["before"]["value"] == 2.0
    assert found["means"]["plot"]["after"]["value"] == 3.5
    apart = {each["criterion"]: each["difference"]["value"] for each in found["ratings"]}
    assert apart == {"grammar": 0.0, "plot": -1.5}  # before less after, in the order of names
    assert found["win_rates"] == []


def test_an_export_takes_its_sources_from_the_samples(tmp_path) -> None:
    rows = [
        {
            "prompt": f"p{i}",
            "candidates": [f"old {i}", f"new {i}"],
            "best": 1,
            "annotator": "ann",
            "tuple_id": f"t{i}",
        }
        for i in range(4)
    ]
    rows.append(rows[0])  # the same person on the same tuple: a hidden repeat
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [
        {"prompt": f"p{i}", "completion": f"{word} {i}", "source": source}
        for i in range(3)
        for word, source in (("old", "before"), ("new", "after"))
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    given = {"people": str(tmp_path / "out.jsonl"), "output_dir": str(tmp_path / "cmp")}
    compare.run(Config(people_samples=str(tmp_path / "samples.jsonl"), **given))
    found = read(tmp_path / "cmp")["people"]
    (rate,) = found["win_rates"]
    assert (rate["wins"], rate["losses"]) == (0, 3)
    assert rate["rate"]["low"] == 0.0 and rate["rate"]["high"] > 0.4  # three prompts are not certainty
    assert any(note.endswith("no known source: 1 of 5.") for note in found["notes"])
    assert any(note.endswith("means: 1.") for note in found["notes"])
    assert any("one rater" in note for note in found["notes"])


def test_sources_stand_in_the_order_of_the_models(tmp_path) -> None:
    with study(tmp_path / "study") as store:
        judge(store, lambda name, i: Answer(best=1))
    given = []
    for name in ("before", "after"):
        rows = [{"prompt": "p", "completion": f"{name} {i}"} for i in range(2)]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given.append(str(path))
    compare.run(Config(models=given, people=str(tmp_path / "study"), output_dir=str(tmp_path / "out")))
    (rate,) = read(tmp_path / "out")["people"]["win_rates"]
    assert (rate["left"], rate["right"], rate["wins"], rate["losses"]) == ("before", "after", 12, 0)
    # Six prompts of one mind: Wilson's interval of six of six, not certainty.
    assert rate["rate"]["high"] == 1.0 and 0.5 < rate["rate"]["low"] < 0.7


def test_judgements_without_two_sources_are_refused(tmp_path) -> None:
    row = {"prompt": "p", "candidates": ["a", "b"], "best": 0}
    (tmp_path / "out.jsonl").write_text(json.dumps(row) + "\n")
    given = {"people": str(tmp_path / "out.jsonl"), "output_dir": str(tmp_path / "cmp")}
    with pytest.raises(DataError, match="0 source is named in 0 judgements, and a comparison needs two"):
        compare.run(Config(**given))
    with pytest.raises(DataError, match="people_samples .* not found"):
        compare.run(Config(people_samples=str(tmp_path / "none.jsonl"), **given))
    with pytest.raises(ConfigError, match="give people as well"):
        Config(models=["a", "b"], people_samples="x").check()
