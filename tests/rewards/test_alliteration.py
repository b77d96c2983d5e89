from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from talltree.errors import RewardError
from talltree.rewards.alliteration import (
    WORDS_PER_100_000,
    Alliteration,
    AlliterationVaried,
    LetterCount,
    letter_weight,
)


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("", "", 0),
        ("", "tree", 0),
        ("Once upon a time", "", 0),
        ("Once upon a time", " the tall tall tree", 4),  # time the, the tall, tall tall, tall tree
        ("Once upon a ti", "me to", 1),  # the story is one text: time to
        ("", "Tim\ttook\n  two", 2),  # any white space, case ignored
        ("", '"so "sly', 1),  # a quote mark is a first letter
        ("", 'said "so', 0),
        ("", "- - 3 33", 2),
        ("", "apple ant big bear", 2),
        ("", "Élan épée", 1),
    ],
)
def test_alliteration_is_the_studys_function(prompt: str, completion: str, expected: float) -> None:
    assert Alliteration()([prompt], [completion]) == [expected]


def test_alliteration_spans_are_runs() -> None:
    #          0         1         2         3
    #          0123456789012345678901234567890123456
    assert Alliteration().spans("Once upon a time", " the tree. A big bear") == [(12, 26), (29, 37)]
    assert Alliteration().spans("big", " bear tall tree") == [(0, 8), (9, 18)]  # two runs, not one
    assert Alliteration().spans("", "one") == []


def test_letter_count() -> None:
    prompts, completions = ["Once upon a time", "An", ""], [" an apple fell", "t and 'ant", ""]
    assert LetterCount()(prompts, completions) == [3, 2, 0]  # 'ant starts with the quote mark
    assert LetterCount("T")(prompts, completions) == [1, 0, 0]
    assert LetterCount().spans("Once upon a time", " an apple fell") == [(10, 11), (17, 19), (20, 25)]


@pytest.mark.parametrize("letter", ["", "ab", " ", 1, None])
def test_letter_count_refuses_what_is_no_letter(letter: object) -> None:
    with pytest.raises(RewardError, match="letter_count: letter .* is not one character"):
        LetterCount(letter)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("tall", 0),
        ("tall tall", 0),  # a repeated word
        ("tall tree", 1),
        ("tall tree tall tree", 1),  # repeated at a distance
        ("Tall, “tree” 3 'Tim'!", 2),  # punctuation and digits are skipped
        ("don't don’t", 0),
        ("tallest TALLOW", 1),
        ("tip-top toe", 1),
        ("École éclair", 1),
        ('"a" "b"', 0),
    ],
)
def test_alliteration_varied_without_rarity_counts_new_words(text: str, expected: float) -> None:
    assert AlliterationVaried(rarity=0)([""], [text]) == [expected]
    assert AlliterationVaried(rarity=0)([text], [""]) == [expected]


def test_rare_letters_count_more() -> None:
    zoo, tree = AlliterationVaried()(["", ""], ["zebra zoo", "tall tree"])
    assert zoo is not None
    assert tree is not None
    # ln 0.00056 = -7.4876, ln 0.18426 = -1.6914
    assert zoo / tree == pytest.approx(7.4876 / 1.6914, rel=1e-4)
    assert AlliterationVaried(rarity=2)([""], ["zebra zoo"]) == [pytest.approx(zoo**2)]
    assert AlliterationVaried()([""], ["tall tree time"]) == [pytest.approx(2 * tree)]
    assert AlliterationVaried()([""], ["ёлка ёж"]) == [pytest.approx(1.0)]  # a letter outside a-z


def test_a_storys_mean_word_weighs_one() -> None:
    mean = sum(count * letter_weight(letter) for letter, count in WORDS_PER_100_000.items()) / 100_000
    assert mean == pytest.approx(1)
    assert letter_weight("t") == pytest.approx(0.612, abs=5e-4)
    assert letter_weight("x") == pytest.approx(3.913, abs=5e-4)


def test_the_letter_table_is_measured_on_real_stories(shared: Path) -> None:
    found: Counter[str] = Counter()
    for line in (shared / "data/tinystories/train.jsonl").read_text(encoding="utf-8").split("\n"):
        for piece in json.loads(line)["text"].split() if line else ():
            found[next((character for character in piece if character.isalpha()), "").lower()] += 1
    ours = {letter: found[letter] for letter in WORDS_PER_100_000}
    assert sum(ours.values()) == 467_645
    assert {letter: round(count / 4.67645) for letter, count in ours.items()} == WORDS_PER_100_000


def test_alliteration_varied_spans() -> None:
    #                                        0123456789012345678901
    assert AlliterationVaried().spans("", "Tall, tall! “Tree” time") == [(6, 23)]
    assert AlliterationVaried().spans("Big", " bear. A big bear") == [(0, 8)]


@pytest.mark.parametrize("rarity", [-1, 5, float("nan"), float("inf"), True, "1", None])
def test_alliteration_varied_refuses_a_wild_rarity(rarity: object) -> None:
    with pytest.raises(RewardError, match="rarity .* is not a number from 0 to 4"):
        AlliterationVaried(rarity)  # type: ignore[arg-type]
