"""Which rows train, stop and are scored, planted leaks among them, and how texts are cut."""

import pytest

from talltree.errors import ConfigError, ContractError, DataError
from talltree.evals.classification_items import (
    Item,
    TaskData,
    Text,
    carve,
    check_apart,
    cut_to_fit,
    label_of,
    majority,
)
from talltree.evals.finetune_options import FinetuneOptions


def item(identity, text=None, label=0, group=None):
    text = text or identity
    return Item(identity, (Text((text,)),), label, group or text)


TRAIN = [item(f"train:{i}", group=f"passage {i // 3}") for i in range(60)]
SCORED = [item(f"validation:{i}") for i in range(10)]


def test_stopping_rows_come_out_of_train_in_whole_groups() -> None:
    carved = carve(TaskData(TRAIN, {"": SCORED}), 0.1, seed=12)
    assert (len(carved.fit), len(carved.stop), carved.left_out) == (54, 6, 0)
    assert {each.group for each in carved.fit}.isdisjoint(each.group for each in carved.stop)
    assert sorted(each.id for each in carved.fit + carved.stop) == sorted(each.id for each in TRAIN)
    check_apart(carved.fit, carved.stop, SCORED)


def test_the_seed_draws_the_stopping_rows() -> None:
    data = TaskData(TRAIN, {"": SCORED})
    twelve, again, other = (carve(data, 0.1, seed).stop for seed in (12, 12, 13))
    assert twelve == again
    assert twelve != other


def test_fewer_rows_are_whole_groups_too() -> None:
    carved = carve(TaskData(TRAIN, {"": SCORED}), 0.25, 12, max_rows=14)
    assert (len(carved.fit), len(carved.stop)) == (9, 3)  # four groups of three


def test_one_text_cannot_be_fitted_and_kept_apart() -> None:
    train = [item(f"train:{i}", group="the same") for i in range(5)]
    with pytest.raises(DataError, match="train.jsonl: 5 training rows share one text"):
        carve(TaskData(train, {"": SCORED}, ("train.jsonl",)), 0.1, 12)


def test_training_rows_that_are_scored_are_left_out_and_counted() -> None:
    leaked = [item(f"train:{60 + i}", f"validation:{i}") for i in range(4)]
    carved = carve(TaskData(TRAIN + leaked, {"": SCORED[:5], "mismatched": SCORED[5:]}), 0.1, 12)
    assert carved.left_out == 4
    check_apart(carved.fit, carved.stop, SCORED)


def test_the_dev_split_in_place_of_train_is_refused() -> None:
    copied = [item(f"train:{i}", each.id) for i, each in enumerate(SCORED)]
    with pytest.raises(DataError, match="dev.jsonl: all 10 training rows are scored rows as well"):
        carve(TaskData(copied, {"": SCORED}, ("dev.jsonl",)), 0.1, 12)


@pytest.mark.parametrize(
    ("fit", "stop", "scored", "message"),
    [
        (TRAIN + SCORED, [], SCORED, "row validation:0 is both fitted and scored"),
        (TRAIN, SCORED[3:4], SCORED, "row validation:3 is both stopping and scored"),
        (TRAIN, TRAIN[:1], SCORED, "row train:0 is both fitted and stopping"),
        (
            [item("train:99", "validation:7")],
            [],
            SCORED,
            "row train:99 is fitted, but row validation:7, which is scored, has the same texts",
        ),
    ],
)
def test_planted_leaks_are_found(fit, stop, scored, message) -> None:
    with pytest.raises(ContractError, match=message):
        check_apart(fit, stop, scored)


def test_majority_is_the_most_frequent_label_and_the_smallest_of_equals() -> None:
    assert majority([item("a", label=1), item("b", label=1), item("c", label=0)]) == 1
    assert majority([item("a", label=2), item("b", label=1)]) == 1


def of_words(most):
    return lambda text: len(text.split()) <= most


@pytest.mark.parametrize(
    ("shorten", "most", "expected"),
    [
        (0, 7, ("a b c d\nx y z", 0)),
        (0, 6, ("a b c\nx y z", 1)),
        (0, 4, ("a\nx y z", 3)),
        (0, 3, ("\nx y z", 4)),
        (0, 2, ("\nx y", 5)),  # the premise is gone, so the other gives way
        (1, 6, ("a b c d\nx y", 1)),
        (1, 3, ("a b c\n", 4)),
    ],
)
def test_the_premise_gives_way_word_by_word(shorten, most, expected) -> None:
    assert cut_to_fit(Text(("a b c d", "x y z"), shorten), of_words(most)) == expected


def test_white_space_inside_what_is_kept_stays_as_it_is() -> None:
    assert cut_to_fit(Text(("a  b\tc d",)), of_words(3)) == ("a  b\tc", 1)


def test_a_text_of_which_no_word_fits_is_refused() -> None:
    with pytest.raises(DataError, match="not a word of 'a b' fits"):
        cut_to_fit(Text(("a b",)), lambda text: False)


@pytest.mark.parametrize(("value", "expected"), [(1, 1), (True, 1), (False, 0), ("yes", 1), ("no", 0)])
def test_labels_are_numbers_truth_values_or_names(value, expected) -> None:
    assert label_of(value, ("no", "yes"), "f, line 1") == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "f, line 1: label -1 means that the labels of this split are hidden"),
        (2, r"f, line 1: label 2 is none of 0 \(no\), 1 \(yes\)"),
        ("maybe", "label 'maybe' is none of"),
        (None, "label None is none of"),
        (1.0, "label 1.0 is none of"),
    ],
)
def test_another_label_is_refused(value, message) -> None:
    with pytest.raises(DataError, match=message):
        label_of(value, ("no", "yes"), "f, line 1")


def test_the_defaults_are_those_of_the_challenge() -> None:
    options = FinetuneOptions()
    found = (options.learning_rate, options.batch_size, options.max_epochs, options.patience, options.seeds)
    assert found == (5e-5, 64, 10, 10, [12])


@pytest.mark.parametrize(
    ("seeds", "message"), [([], "seeds is empty"), ([12, 13, 12], "seeds names 12 twice")]
)
def test_no_seed_and_a_repeated_one_are_refused(seeds, message) -> None:
    with pytest.raises(ConfigError, match=message):
        FinetuneOptions(seeds=seeds).check()
