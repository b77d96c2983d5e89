"""Syllables and Flesch's formulas, worked by hand."""

import pytest

from talltree.evals.readability import readability, syllables


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("the", 1), ("tree", 1), ("time", 1), ("once", 1), ("upon", 2), ("little", 2), ("table", 2),
        ("whole", 1), ("wanted", 2), ("jumped", 1), ("horses", 2), ("boxes", 2), ("times", 1),
        ("wishes", 2), ("churches", 2), ("beautiful", 3), ("happy", 2), ("Mummy's", 2), ("I", 1), ("hmm", 1),
        ("be", 1), ("Elephant", 3),
    ],
)  # fmt: skip
def test_syllables_by_the_stated_rule(word, count):
    assert syllables(word) == count


def test_readability_by_hand():
    # 9 words, 2 sentences, 11 syllables (hap-py, wan-ted): w/s = 4.5, y/w = 11 / 9.
    found = readability("The happy cat sat. It wanted to go home.")
    assert found.grade == pytest.approx(0.39 * 4.5 + 11.8 * 11 / 9 - 15.59)
    assert found.ease == pytest.approx(206.835 - 1.015 * 4.5 - 84.6 * 11 / 9)


def test_no_words_have_no_readability():
    assert readability("") is None
    assert readability("123 !?") is None
