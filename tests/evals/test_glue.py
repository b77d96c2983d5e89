"""The fields of each of the 13 tasks, in every layout that files come in, and what missing data says."""

import json

import pytest

from talltree.errors import DataError
from talltree.evals import classification_data, glue
from talltree.evals.classification_items import Text

HUB_ROWS = {
    "cola": {"sentence": "Sue slept the bed.", "label": 0, "idx": 3},
    "sst2": {"sentence": "a joy from start to end ", "label": 1, "idx": 0},
    "mrpc": {"sentence1": "Rain fell .", "sentence2": "It rained .", "label": 1, "idx": 9},
    "qqp": {"question1": "What is tea?", "question2": "How is tea made?", "label": 0, "idx": 1},
    "mnli": {"premise": "He ran.", "hypothesis": "He sat.", "label": 2, "idx": 5},
    "qnli": {"question": "Who ran?", "sentence": "He ran.", "label": 0, "idx": 5},
    "rte": {"sentence1": "Rain fell.", "sentence2": "It rained.", "label": 0, "idx": 5},
    "boolq": {"question": "is tea hot", "passage": "Tea is hot.", "idx": 0, "label": 1},
    "cb": {"premise": "I doubt he ran.", "hypothesis": "he ran", "idx": 4, "label": 2},
    "copa": {
        "premise": "The cup fell.",
        "choice1": "It broke.",
        "choice2": "It flew.",
        "question": "effect",
        "idx": 2,
        "label": 0,
    },
    "multirc": {
        "paragraph": "Tom ran. Ann sat.",
        "question": "Who ran?",
        "answer": "Ann",
        "idx": {"paragraph": 0, "question": 1, "answer": 2},
        "label": 0,
    },
    "wic": {
        "word": "bank",
        "sentence1": "A river bank.",
        "sentence2": "A bank loan.",
        "start1": 8,
        "start2": 2,
        "end1": 12,
        "end2": 6,
        "idx": 0,
        "label": 0,
    },
    "wsc": {
        "text": "Ann thanked Sue because she helped.",
        "span1_index": 2,
        "span2_index": 4,
        "span1_text": "Sue",
        "span2_text": "she",
        "idx": 0,
        "label": 1,
    },
}
EXPECTED = {
    "cola": ([Text(("Sue slept the bed.",))], "Sue slept the bed.", "unacceptable"),
    "sst2": ([Text(("a joy from start to end ",))], "a joy from start to end ", "positive"),
    "mrpc": ([Text(("Rain fell .", "It rained ."), 0)], "Rain fell .", "equivalent"),
    "qqp": ([Text(("What is tea?", "How is tea made?"), 0)], "What is tea?", "not_duplicate"),
    "mnli": ([Text(("He ran.", "He sat."), 0)], "He ran.", "contradiction"),
    "qnli": ([Text(("Who ran?", "He ran."), 1)], "Who ran?", "entailment"),
    "rte": ([Text(("Rain fell.", "It rained."), 0)], "Rain fell.", "entailment"),
    "boolq": ([Text(("is tea hot", "Tea is hot."), 1)], "Tea is hot.", "yes"),
    "cb": ([Text(("I doubt he ran.", "he ran"), 0)], "I doubt he ran.", "neutral"),
    "copa": (
        [
            Text(("The cup fell.", "What came of it? So:", "It broke."), 0),
            Text(("The cup fell.", "What came of it? So:", "It flew."), 0),
        ],
        "The cup fell.",
        "choice1",
    ),
    "multirc": ([Text(("Who ran?", "Ann", "Tom ran. Ann sat."), 2)], "Tom ran. Ann sat.", "no"),
    "wic": (
        [Text(('Does "bank" mean the same here and there?', "A river bank.", "A bank loan."), 1)],
        "bank",
        "no",
    ),
    "wsc": (
        [Text(('Here, does "she" stand for "Sue"?', "Ann thanked Sue because she helped."), 1)],
        "Ann thanked Sue because she helped.",
        "yes",
    ),
}


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def with_label(name, label):
    return {**HUB_ROWS[name], "label": label}


def test_all_thirteen_tasks_are_here() -> None:
    assert set(glue.TASKS) == set(HUB_ROWS) == set(EXPECTED)
    assert len(glue.TASKS) == 13


@pytest.mark.parametrize("name", sorted(HUB_ROWS))
def test_the_fields_of_a_hub_row(name, tmp_path) -> None:
    write(tmp_path / f"{name}.train.jsonl", HUB_ROWS[name])
    write(tmp_path / f"{name}.valid.jsonl", HUB_ROWS[name])
    data = glue.read(name, tmp_path)
    texts, group, label = EXPECTED[name]
    for items, identity in ((data.train, "train:0"), (data.scored[""], "validation:0")):
        assert [(list(item.texts), item.group, item.id) for item in items] == [(texts, group, identity)]
        assert glue.TASKS[name].labels[items[0].label] == label
    assert data.sources == (f"{name}.train.jsonl", f"{name}.valid.jsonl")


def test_the_cause_is_asked_for_in_other_words_than_the_effect(tmp_path) -> None:
    for split in ("train", "validation"):
        write(tmp_path / "copa" / f"{split}.jsonl", {**HUB_ROWS["copa"], "question": "cause"})
    (item,) = glue.read("copa", tmp_path).train
    assert item.texts[1].joined == "The cup fell.\nWhy? Because:\nIt flew."


def test_answers_to_one_question_are_a_block(tmp_path) -> None:
    rows = [HUB_ROWS["multirc"], {**HUB_ROWS["multirc"], "answer": "Tom", "label": 1}]
    rows.append({**HUB_ROWS["multirc"], "question": "Who sat?"})
    write(tmp_path / "multirc.train.jsonl", *rows)
    write(tmp_path / "multirc.valid.jsonl", *rows)
    first, second, third = glue.read("multirc", tmp_path).train
    assert first.block == second.block != third.block
    assert first.group == third.group


LAYOUTS = [
    "rte.{split}.jsonl",
    "glue/rte.{split}.jsonl",
    "glue_filtered/rte.{split}.json",
    "glue/rte/{split}.jsonl",
    "rte/{split}.jsonl",
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("called", ["valid", "validation", "val", "dev"])
def test_the_layouts_of_local_files(layout, called, tmp_path) -> None:
    write(tmp_path / layout.format(split="train"), with_label("rte", 1))
    write(tmp_path / layout.format(split=called), with_label("rte", 0))
    data = glue.read("rte", tmp_path)
    assert ([item.label for item in data.train], [item.label for item in data.scored[""]]) == ([1], [0])


def test_a_clone_of_the_hubs_repository(tmp_path) -> None:
    from datasets import Dataset

    for split, labels in (("train", [0, 1, 1]), ("validation", [1, 0])):
        path = tmp_path / "super_glue" / "wsc.fixed" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list([with_label("wsc", label) for label in labels]).to_parquet(path)
    data = glue.read("wsc", tmp_path)
    assert [item.label for item in data.train] == [0, 1, 1]
    assert [item.label for item in data.scored[""]] == [1, 0]
    assert data.sources == ("super_glue/wsc.fixed/train", "super_glue/wsc.fixed/validation")


def test_mnli_is_scored_on_both_its_validation_splits(tmp_path) -> None:
    write(tmp_path / "mnli.train.jsonl", with_label("mnli", 1))
    write(tmp_path / "mnli.valid.jsonl", with_label("mnli", 0))
    assert set(glue.read("mnli", tmp_path).scored) == {""}
    write(tmp_path / "mnli-mm.valid.jsonl", with_label("mnli", 2))
    data = glue.read("mnli", tmp_path)
    assert {part: [item.label for item in items] for part, items in data.scored.items()} == {
        "": [0],
        "mismatched": [2],
    }
    assert data.scored["mismatched"][0].id == "mismatched:0"


@pytest.mark.parametrize("name", sorted(HUB_ROWS))
def test_the_hub_is_asked_for_the_right_configuration_and_splits(name, monkeypatch) -> None:
    """The library's own loading stands behind it; here it only hears what is asked."""
    asked = []

    def load(source, dataset):
        asked.append((dataset, source.config_name, source.split))
        return [HUB_ROWS[name]]

    monkeypatch.setattr(classification_data, "load_dataset", load)
    data = glue.read(name, None)
    superglue = {"boolq", "cb", "copa", "multirc", "wic", "wsc"}
    config = "wsc.fixed" if name == "wsc" else name
    splits = (
        ["train", "validation_matched", "validation_mismatched"]
        if name == "mnli"
        else ["train", "validation"]
    )
    dataset = "aps/super_glue" if name in superglue else "nyu-mll/glue"
    assert asked == [(dataset, config, split) for split in splits]
    assert list(data.train[0].texts) == EXPECTED[name][0]


def test_a_dataset_of_the_hub_is_read_through_the_library(tmp_path, monkeypatch) -> None:
    """A local folder with configurations stands for the hub: same loading, same rows."""
    from datasets import Dataset

    for split, label in (("train", 1), ("validation", 0)):
        path = tmp_path / "cola" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        Dataset.from_list([with_label("cola", label)]).to_parquet(path)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: cola\n  data_files:\n  - split: train\n    path: cola/train-*\n"
        "  - split: validation\n    path: cola/validation-*\n---\n"
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(glue.TASKS, "cola", glue.TASKS["cola"]._replace(dataset=str(tmp_path)))
    data = glue.read("cola", None)
    assert ([item.label for item in data.train], [item.label for item in data.scored[""]]) == ([1], [0])


def refusal(name, folder):
    with pytest.raises(DataError) as caught:
        glue.read(name, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_training_data_says_what_to_fetch_and_where_it_was_looked_for(tmp_path) -> None:
    write(tmp_path / "qqp.valid.jsonl", HUB_ROWS["qqp"])
    said = refusal("qqp", tmp_path)
    assert said.startswith("glue:qqp has no train data: looked for qqp.train.jsonl, qqp/train.jsonl and")
    assert str(tmp_path) in said
    assert str(tmp_path / "glue") in said
    assert "fetch configuration qqp of the dataset nyu-mll/glue" in said


def test_a_missing_folder_and_unusable_rows_are_one_line_each(tmp_path) -> None:
    assert refusal("cola", tmp_path / "none") == (
        f"data folder {tmp_path / 'none'} does not exist; give the folder that holds the tasks' files"
    )
    write(tmp_path / "cola.valid.jsonl", HUB_ROWS["cola"])
    train = tmp_path / "cola.train.jsonl"
    cases = [
        ({"sentence": "A.", "label": -1}, "line 1: label -1 means that the labels of this split are hidden"),
        ({"sentence": "A.", "label": 7}, "line 1: label 7 is none of 0 (unacceptable), 1 (acceptable)"),
        ({"sentence": 3, "label": 1}, "line 1: column `sentence` is int, a string is needed"),
        ({"text": "A.", "label": 1}, "line 1: column `sentence` is missing; columns there: text, label"),
        ({"sentence": "A."}, "line 1: column `label` is missing; columns there: sentence"),
    ]
    for row, expected in cases:
        write(train, row)
        assert f"{train}, {expected}" in refusal("cola", tmp_path)
    train.write_text("{not json}\n")
    assert f"{train}, line 1: not JSON" in refusal("cola", tmp_path)
    train.write_text("\n")
    assert refusal("cola", tmp_path) == "cola.train.jsonl holds no rows; fetch it again"


def test_a_damaged_parquet_file_is_one_line(tmp_path) -> None:
    path = tmp_path / "cola" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1 nothing")
    assert refusal("cola", tmp_path).startswith(f"{path} cannot be read as parquet: ")


def test_a_choice_that_asks_for_neither_cause_nor_effect_is_refused(tmp_path) -> None:
    write(tmp_path / "copa.train.jsonl", {**HUB_ROWS["copa"], "question": "why"})
    write(tmp_path / "copa.valid.jsonl", HUB_ROWS["copa"])
    assert "question 'why' is neither cause nor effect" in refusal("copa", tmp_path)


def test_the_files_at_hand_are_read(shared) -> None:
    """Four of them come with training rows; the counts are those of the files' lines."""
    counts = {"cola": (8551, 522), "mrpc": (3668, 204), "rte": (2490, 139), "wsc": (554, 52)}
    for name, (train, valid) in counts.items():
        data = glue.read(name, shared / "data")
        assert (len(data.train), len(data.scored[""])) == (train, valid)
    for name in ("boolq", "mnli", "multirc", "qnli", "qqp", "sst2"):
        assert f"glue:{name} has no train data" in refusal(name, shared / "data")
