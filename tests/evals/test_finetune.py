"""A task from its files to its metrics, on a tiny model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from talltree.errors import ConfigError, DataError
from talltree.evals import classification, finetune
from talltree.evals.finetune import TASKS, SeedResult, read_task, run_seed, run_task, summarise_seeds
from talltree.evals.finetune_options import FinetuneOptions

from ..tiny import llama, save

FAST = {"learning_rate": 5e-3, "batch_size": 12, "max_epochs": 10}


def write(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sentence(i, label):
    return f"w{3 + 5 * label} w{10 + i % 5} w{15 + i % 7} w{1 + i % 2}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save(tmp_path_factory.mktemp("model"), llama()))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """CoLA whose sentences are acceptable where they begin with w8; two training rows are scored, too."""
    folder = tmp_path_factory.mktemp("data")
    rows = [{"sentence": sentence(i, int(i % 3 > 0)), "label": int(i % 3 > 0)} for i in range(120)]
    write(folder / "cola.train.jsonl", rows[:90])
    write(folder / "cola.valid.jsonl", [*rows[90:], *rows[:2]])
    return folder


@pytest.fixture(scope="module")
def learnt(model, data):
    heard: list[str] = []
    result = run_task("glue:cola", model, data, FinetuneOptions(**FAST), heard.append)
    return result, heard


def test_a_separable_task_is_learnt_to_the_last_item(learnt) -> None:
    result, _ = learnt
    assert result.metrics["matthews"].value == pytest.approx(1.0)
    accuracy = result.metrics["accuracy"]
    assert (accuracy.value, accuracy.n, accuracy.unit) == (1.0, 32, "share")


def test_beside_it_stands_the_majority_of_the_training_rows(learnt) -> None:
    """21 of the 32 scored rows have label 1, which two thirds of the training rows have."""
    result, _ = learnt
    assert result.metrics["majority/accuracy"].value == pytest.approx(21 / 32)
    assert result.metrics["majority/matthews"].value == 0.0
    low, high = result.metrics["majority/accuracy"][1:3]
    assert low < 21 / 32 < high


def test_every_prediction_is_a_row(learnt, data) -> None:
    result, _ = learnt
    given = [json.loads(line) for line in (data / "cola.valid.jsonl").read_text().splitlines()]
    assert [row["item"] for row in result.rows] == [f"validation:{i}" for i in range(32)]
    assert [row["label"] for row in result.rows] == [row["label"] for row in given]
    for row in result.rows:
        assert row["prediction"] == int(row["logits"][1] > row["logits"][0])
        assert (row["task"], row["seed"], row["part"], row["cut_words"]) == ("glue:cola", 12, "", 0)
    assert json.loads(json.dumps(result.rows)) == result.rows


def test_notes_say_what_was_trained_on_and_what_one_seed_means(learnt) -> None:
    notes = " ".join(learnt[0].notes)
    assert "of 90 training rows" in notes
    assert "One seed (12): intervals are over items and leave out what another seed would change." in notes
    assert "training rows have the texts of a scored row and were left out" in notes


def test_progress_names_task_and_seed(learnt) -> None:
    _, heard = learnt
    assert len(heard) == 11  # the start and ten epochs
    assert all(line.startswith("glue:cola, seed 12: ") for line in heard)


def test_no_scored_row_is_trained_on_by_id_and_by_text(model, data, monkeypatch) -> None:
    """What the loop is really given, against the dev file: the defect of training on it would show here."""
    given = {}

    def spy(classifier, fit, stop, *rest):
        given["trained"] = {tuple(item.ids[0]) for item in (*fit, *stop)}
        return fine_tune(classifier, fit, stop, *rest)

    fine_tune = classification.fine_tune
    monkeypatch.setattr(classification, "fine_tune", spy)
    run_seed("glue:cola", model, data, FinetuneOptions(**{**FAST, "max_epochs": 1}), 12, lambda line: None)
    lines = (data / "cola.valid.jsonl").read_text().splitlines()
    dev = {tuple(int(word[1:]) for word in json.loads(line)["sentence"].split()) for line in lines}
    assert len(given["trained"]) > 50
    assert given["trained"].isdisjoint(dev)


def test_the_dev_file_in_place_of_train_is_refused(model, data, tmp_path) -> None:
    for name in ("cola.train.jsonl", "cola.valid.jsonl"):
        (tmp_path / name).write_text((data / "cola.valid.jsonl").read_text())
    with pytest.raises(DataError, match="all 32 training rows are scored rows as well"):
        run_task("glue:cola", model, tmp_path, FinetuneOptions(), lambda line: None)


@pytest.fixture(scope="module")
def two_seeds(model, data):
    options = FinetuneOptions(**{**FAST, "max_epochs": 2}, seeds=[12, 13])
    quiet = [run_seed("glue:cola", model, data, options, seed, lambda line: None) for seed in options.seeds]
    return options, quiet


def test_seeds_are_kept_apart_and_averaged(two_seeds) -> None:
    _, results = two_seeds
    both = summarise_seeds(results)
    alone = [summarise_seeds([result]).metrics["accuracy"].value for result in results]
    assert both.metrics["accuracy"].value == pytest.approx(sum(alone) / 2)
    assert [row["seed"] for row in both.rows] == [12] * 32 + [13] * 32
    assert results[0].rows[0]["logits"] != results[1].rows[0]["logits"]
    assert any(note.startswith("2 seeds (12, 13): figures are their mean") for note in both.notes)


def test_the_same_seed_gives_the_same_bits(model, data, two_seeds) -> None:
    options, (first, _) = two_seeds
    again = run_seed("glue:cola", model, data, options, 12, lambda line: None)
    assert again == first


def test_a_result_survives_json(two_seeds) -> None:
    _, results = two_seeds
    kept = [SeedResult(**json.loads(json.dumps(result._asdict()))) for result in results]
    assert summarise_seeds(kept) == summarise_seeds(results)


def test_long_texts_are_cut_and_counted_never_silently(model, tmp_path) -> None:
    """Nine tokens of room: the premise of the second scored row loses 3 of its 8 words, one row's none."""
    rows = [
        {"sentence1": f"w{1 + i} w2 w3", "sentence2": f"w4 w{5 + i % 9}", "label": i % 2} for i in range(12)
    ]
    long = {"sentence1": " ".join(f"w{i}" for i in range(1, 9)), "sentence2": "w9 w9 w9 w9", "label": 1}
    write(tmp_path / "rte.train.jsonl", [*rows[:10], {**long, "sentence2": "w9 w9 w9 w8"}])
    write(tmp_path / "rte.valid.jsonl", [*rows[10:11], long])
    result = run_task(
        "glue:rte", model, tmp_path, FinetuneOptions(max_length=9, max_epochs=1), lambda line: None
    )
    assert [row["cut_words"] for row in result.rows] == [0, 3]
    assert result.metrics["cut"] == (1.0, None, None, 2, "items")
    assert result.metrics["train/cut"] == (1.0, None, None, 11, "items")
    (note,) = [note for note in result.notes if "Longer than" in note]
    assert note == (
        "Longer than 9 tokens, so words were cut off: 1 of 2 scored rows and 1 of 11 training rows."
    )


def test_choices_and_parts_have_their_own_metrics(model, tmp_path) -> None:
    copa = [
        {
            "premise": f"w{1 + i}",
            "question": "effect",
            "choice1": "w3 w4",
            "choice2": "w5 w6",
            "label": i % 2,
        }
        for i in range(12)
    ]
    write(tmp_path / "copa.train.jsonl", copa[:9])
    write(tmp_path / "copa.valid.jsonl", copa[9:])
    options = FinetuneOptions(max_epochs=1)
    result = run_task("glue:copa", model, tmp_path, options, lambda line: None)
    assert [len(row["logits"]) for row in result.rows] == [2, 2, 2]
    mnli = [{"premise": f"w{1 + i}", "hypothesis": "w3", "label": i % 3} for i in range(15)]
    write(tmp_path / "mnli.train.jsonl", mnli[:9])
    write(tmp_path / "mnli.valid.jsonl", mnli[9:12])
    write(tmp_path / "mnli-mm.valid.jsonl", mnli[12:])
    result = run_task("glue:mnli", model, tmp_path, options, lambda line: None)
    assert {"accuracy", "mismatched/accuracy", "majority/accuracy", "mismatched/majority/accuracy"} <= set(
        result.metrics
    )
    assert [row["part"] for row in result.rows] == [""] * 3 + ["mismatched"] * 3
    assert result.metrics["accuracy"].n == 3


def test_a_task_is_a_question_by_name() -> None:
    assert len(TASKS) == 13 + 35
    assert TASKS["glue:cola"] == "is a sentence acceptable?"
    assert finetune.measures_of("glue:mrpc") == ("f1", "accuracy")
    assert finetune.measures_of("msgs:main_verb_control") == ("matthews", "accuracy")


def test_an_unknown_task_and_too_long_a_length_are_one_line(model, data) -> None:
    with pytest.raises(ConfigError, match=r"^task 'glue:colla' is not known; nearest is glue:cola$"):
        run_task("glue:colla", model, data, FinetuneOptions(), lambda line: None)
    with pytest.raises(ConfigError, match="max_length 65 is more than the 64 tokens"):
        run_task("glue:cola", model, data, FinetuneOptions(max_length=65), lambda line: None)


def test_nothing_here_loads_torch_before_a_task_runs() -> None:
    import subprocess
    import sys

    code = "import sys, talltree.evals.finetune; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_real_model_learns_a_real_feature_of_the_surface(stories260K, shared) -> None:
    """Is `the` in the sentence? 200 rows and 36 updates at a high rate; chance is a correlation of 0."""
    whole = read_task("msgs:lexical_content_the_control", shared / "data")
    few = replace(whole, scored={part: items[:60] for part, items in whole.scored.items()})
    options = FinetuneOptions(max_epochs=3, batch_size=16, learning_rate=3e-3, max_train_rows=200)
    result = run_seed("msgs:lexical_content_the_control", str(stories260K), few, options, 12, lambda _: None)
    metrics = summarise_seeds([result]).metrics
    assert metrics["in_domain/matthews"].value > 0.5
    assert metrics["majority/matthews"].value == 0.0
    assert (metrics["accuracy"].n, len(result.rows)) == (60, 120)
