"""Near-duplicates: sets of runs and their similarity against sets made by hand; planted copies are found."""

import random

import numpy as np
import pytest

from talltree.data.near_duplicates import find, jaccard, shingles

WORDS = [f"w{n}" for n in range(500)]


def text(seed, length=120):
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def runs_by_hand(string):
    words = string.lower().replace(",", " ").replace(".", " ").split()
    return {tuple(words[n : n + 5]) for n in range(len(words) - 4)}


def test_similarity_is_that_of_the_sets_of_five_word_runs():
    texts = [text(1), text(1)[:300] + " " + text(2)[:200], "One, two. THREE four five", "one two three four"]
    found = shingles(texts)
    sets = [found.of(number) for number in range(4)]
    by_hand = [runs_by_hand(each) for each in texts]
    assert [len(each) for each in sets] == [len(each) for each in by_hand]
    assert [len(sets[0]), len(sets[2]), len(sets[3])] == [116, 1, 0]
    expected = len(by_hand[0] & by_hand[1]) / len(by_hand[0] | by_hand[1])
    assert 0 < expected < 1
    assert jaccard(sets[0], sets[1]) == pytest.approx(expected)
    again = shingles(["x " * 3, "one two three FOUR, five"])
    assert np.array_equal(again.of(1), sets[2])


def test_no_run_crosses_from_one_document_into_the_next():
    assert shingles(["a b c", "d e f g", "h"]).hashes.size == 0
    assert shingles(["a b c d e", "f g h i j"]).ends.tolist() == [1, 2]


def test_planted_copies_are_found_and_nothing_else():
    held_out = [("validation", text(n)) for n in range(40)] + [("test", text(n)) for n in range(40, 60)]
    train = [text(n) for n in range(1000, 1300)]
    changed = text(7).split()
    changed[60] = "another"  # 5 of 116 runs differ: J = 111 / 121
    train[17] = " ".join(changed)
    train[200] = text(45).upper().replace(" ", ", ")
    held_out.append(("test", text(3) + " and the end of it all"))
    held_out.append(("test", "too short"))
    report = find(held_out, train)
    assert {name: (each["pairs"], each["documents"]) for name, each in report["pairs"].items()} == {
        "train-validation": (1, 1),
        "train-test": (1, 1),
        "validation-test": (1, 1),
    }
    example = report["pairs"]["train-validation"]["examples"][0]
    assert example["similarity"] == pytest.approx(111 / 121, abs=1e-3)
    assert example["held_out"] == text(7)[:100]
    assert report["pairs"]["train-test"]["examples"][0]["similarity"] == 1.0
    assert (report["held_out_compared"], report["held_out_too_short"]) == (61, 1)


def test_the_threshold_decides_and_nothing_to_compare_is_no_error():
    half = text(1, 60) + " " + text(2, 60)  # shares about 56 of 116 runs with either
    assert find([("validation", text(1, 60))], [half], threshold=0.7)["pairs"] == {}
    assert find([("validation", "short")], ["also short"])["pairs"] == {}
    assert find([], [])["held_out_compared"] == 0


def test_the_rate_at_which_a_pair_is_found_is_that_of_the_formula():
    # 1 - (1 - J^4)^16 at J = 0.5 is 0.644; 300 pairs: deviation 0.028.
    found = 0
    for n in range(300):
        words = random.Random(n).choices(WORDS, k=84)
        one, other = " ".join(words), " ".join([*words[:57], *random.Random(-1 - n).choices(WORDS, k=27)])
        assert len(runs_by_hand(one) & runs_by_hand(other)) / len(
            runs_by_hand(one) | runs_by_hand(other)
        ) == pytest.approx(0.5, abs=0.02)
        found += bool(find([("validation", one)], [other], threshold=0.3)["pairs"])
    assert 0.55 < found / 300 < 0.74
