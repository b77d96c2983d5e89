"""Mixed signals: which rows are trained on, which are scored, and under which label."""

import json

import pytest

from talltree.errors import DataError
from talltree.evals import msgs

ALL = ("main_verb", "syntactic_category", "control_raising", "irregular_form", "antonym")


def row(sentence, linguistic, surface, condition, paradigm):
    return {
        "sentence": sentence,
        "condition": condition,
        "linguistic_feature_label": linguistic,
        "surface_feature_label": surface,
        "paradigmID": paradigm,
    }


PAIR_TRAIN = [row("The cat is eating.", 1, 1, "training", 7), row("A cat eats.", 0, 0, "training", 7)]
PAIR_TEST = [
    row("The dog is eating.", 1, 1, "training", 0),
    row("A dog eats.", 0, 0, "training", 0),
    row("A bird is flying.", 1, 0, "test", 0),
    row("The bird flies.", 0, 1, "test", 0),
    row("The bird is flying.", 1, 1, "control", 0),
    row("A bird flies.", 0, 0, "control", 0),
]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))


def test_ten_controls_and_twenty_five_pairs() -> None:
    assert len(msgs.CONTROLS) == 10
    assert len(msgs.PAIRS) == 25
    assert set(msgs.TASKS) == set(msgs.CONTROLS) | set(msgs.PAIRS)
    assert {one for one, _ in msgs.PAIRS.values()} == set(ALL)


def test_a_pair_is_scored_by_the_linguistic_label_where_the_two_disagree(tmp_path) -> None:
    folder = tmp_path / "main_verb_lexical_content_the"
    write(folder / "train.jsonl", PAIR_TRAIN)
    write(folder / "test.jsonl", PAIR_TEST)
    # What disambiguates in training stands in files of its own and is not read.
    write(folder / "inoculating.jsonl", [row("A cat is eating.", 1, 0, "control", 7)])
    data = msgs.read("main_verb_lexical_content_the", tmp_path)
    assert [(item.texts[0].joined, item.label) for item in data.train] == [
        ("The cat is eating.", 1),
        ("A cat eats.", 0),
    ]
    scored = {
        part: [(item.texts[0].joined, item.label, item.id) for item in items]
        for part, items in data.scored.items()
    }
    assert scored == {
        "": [("A bird is flying.", 1, "test:2"), ("The bird flies.", 0, "test:3")],
        "in_domain": [("The dog is eating.", 1, "test:0"), ("A dog eats.", 0, "test:1")],
        "out_of_domain": [("The bird is flying.", 1, "test:4"), ("A bird flies.", 0, "test:5")],
    }
    assert data.notes == ()
    assert {item.group for item in data.train} == {"paradigm 7"}


def test_a_surface_learner_is_right_everywhere_but_where_it_counts(tmp_path) -> None:
    """The label `the is in it` scores 1 in and out of domain and -1 on the part that counts."""
    from talltree.evals.classification_metrics import confusion, matthews

    write(tmp_path / "main_verb_lexical_content_the/train.jsonl", PAIR_TRAIN)
    write(tmp_path / "main_verb_lexical_content_the/test.jsonl", PAIR_TEST)
    data = msgs.read("main_verb_lexical_content_the", tmp_path)
    found = {}
    for part, items in data.scored.items():
        the = [int("the" in item.texts[0].joined.lower().split()) for item in items]
        found[part] = float(matthews(confusion([item.label for item in items], the, 2)))
    assert found == pytest.approx({"": -1.0, "in_domain": 1.0, "out_of_domain": 1.0})


def test_a_surface_control_takes_the_surface_label(tmp_path) -> None:
    write(
        tmp_path / "msgs/lexical_content_the_control/train.jsonl", [row("The cat.", None, 1, "training", 3)]
    )
    test = [row("A cat.", None, 0, "training", 0), row("The dog.", None, 1, "test", 0)]
    write(tmp_path / "msgs/lexical_content_the_control/test.jsonl", test)
    data = msgs.read("lexical_content_the_control", tmp_path)
    assert [item.label for item in data.train] == [1]
    assert {part: [item.label for item in items] for part, items in data.scored.items()} == {
        "": [1],
        "in_domain": [0],
    }


@pytest.mark.parametrize(
    ("task", "folder"),
    [
        ("relative_position_control", "relative_token_position_control"),
        ("main_verb_relative_position", "main_verb_relative_token_position"),
        ("syntactic_category_absolute_token_position", "syntactic_category_absolute_position"),
        ("irregular_form_title_case", "irregular_form_titlecase"),
        ("antonym_length", "antonyms_length"),
    ],
)
def test_a_folder_may_have_the_other_name_of_a_feature(task, folder, tmp_path) -> None:
    both = None if task.endswith("_control") else 1
    write(tmp_path / folder / "train.jsonl", [row("The cat.", 1, both, "training", 3)])
    write(tmp_path / folder / "test.jsonl", [row("The dog.", 1, both and 0, "test", 0)])
    assert [item.texts[0].joined for item in msgs.read(task, tmp_path).scored[""]] == ["The dog."]


def test_flat_files_with_a_label_alone_are_a_control_without_conditions(tmp_path) -> None:
    rows = [{"sentence": "The cat is eating.", "label": 1}, {"sentence": "The cat eats.", "label": 0}]
    write(tmp_path / "msgs_filtered/main_verb_control.train.json", rows)
    write(tmp_path / "msgs_filtered/main_verb_control.test.json", rows[::-1])
    data = msgs.read("main_verb_control", tmp_path)
    assert [item.label for item in data.scored[""]] == [0, 1]
    assert data.train[0].group == "The cat is eating."


def test_training_rows_that_are_not_ambiguous_are_said(tmp_path) -> None:
    folder = tmp_path / "main_verb_lexical_content_the"
    write(folder / "train.jsonl", [*PAIR_TRAIN, row("A cat is eating.", 1, 0, "control", 7)])
    write(folder / "test.jsonl", PAIR_TEST)
    (note,) = msgs.read("main_verb_lexical_content_the", tmp_path).notes
    assert note.startswith("1 of 3 training rows are not ambiguous")


def refusal(name, folder):
    with pytest.raises(DataError) as caught:
        msgs.read(name, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_data_says_what_to_fetch_and_where_it_was_looked_for(tmp_path) -> None:
    said = refusal("main_verb_length", tmp_path)
    assert said.startswith("msgs:main_verb_length has no train data: looked for main_verb_length.train.jsonl")
    assert str(tmp_path / "msgs") in said
    assert "fetch msgs.zip from the folder data of https://github.com/nyu-mll/msgs" in said
    assert "msgs:main_verb_length is in no dataset of the hub" in refusal("main_verb_length", None)


def test_test_rows_that_settle_nothing_are_refused(tmp_path) -> None:
    folder = tmp_path / "main_verb_lexical_content_the"
    write(folder / "train.jsonl", PAIR_TRAIN)
    write(folder / "test.jsonl", PAIR_TEST[:2])
    said = refusal("main_verb_lexical_content_the", tmp_path)
    assert "none of its 2 rows is one where linguistic and surface feature disagree" in said


def test_a_row_without_a_label_is_named(tmp_path) -> None:
    folder = tmp_path / "main_verb_control"
    write(folder / "train.jsonl", [row("The cat.", None, None, "training", 3)])
    write(folder / "test.jsonl", [row("The dog.", 1, None, "test", 0)])
    assert "line 1: label None is none of" in refusal("main_verb_control", tmp_path)


def test_the_five_tasks_at_hand_are_read(shared) -> None:
    """600 training rows each; 600 test rows a condition, all of the files' lines accounted for."""
    names = ("main_verb_control", "syntactic_category_control", "lexical_content_the_control")
    for name in names:
        data = msgs.read(name, shared / "data")
        assert len(data.train) == 600
        assert {part: len(items) for part, items in data.scored.items()} == {"": 600, "in_domain": 600}
    for name in ("main_verb_lexical_content_the", "syntactic_category_lexical_content_the"):
        data = msgs.read(name, shared / "data")
        assert len(data.train) == 600
        parts = {"": 600, "in_domain": 600, "out_of_domain": 600}
        assert {part: len(items) for part, items in data.scored.items()} == parts
        assert data.notes == ()
