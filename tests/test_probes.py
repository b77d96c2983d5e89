"""Coherence probes: what the spoilers do to a text, and the share that they are counted by."""

import math
import re

import pytest

from talltree.evals.probes import PROBES, probe, repeated_text, shuffled_sentences, swapped_names

STORY = " Tom met Lily. He gave Lily a ball. Then Tom went home.\n\nLily was sad. The end."


def test_shuffled_sentences_are_the_same_sentences_in_another_order():
    bad = shuffled_sentences(STORY, 0)
    assert bad != STORY and len(bad) == len(STORY)
    assert sorted(re.findall(r"[A-Z][^.]*\.", bad)) == sorted(re.findall(r"[A-Z][^.]*\.", STORY))
    assert bad.startswith(" ") and bad.count("\n\n") == 1
    assert shuffled_sentences(STORY, 0) == bad
    assert len({shuffled_sentences(STORY, seed) for seed in range(20)}) > 3
    assert shuffled_sentences("One. Two.", 0) is None
    assert shuffled_sentences("No. No. No.", 0) is None


def test_swapped_names_change_every_second_mention():
    # Mentions in order: Tom, Lily, Lily, Tom, Lily; every second one becomes the other name.
    assert swapped_names(STORY, 0) == (
        " Tom met Tom. He gave Lily a ball. Then Lily went home.\n\nLily was sad. The end."
    )
    assert swapped_names(" Then Tom ran. Now Tom sat.", 0) is None  # one name
    assert swapped_names(" I saw I was late. It was I.", 0) is None
    assert swapped_names(" He met Tom and Ann.", 0) is None  # nobody is mentioned again
    assert swapped_names(" the cat sat. The cat ran. A Cat is a cat.", 0) is None  # a word, not a name


def test_repeated_text_says_the_first_half_twice():
    assert repeated_text(" One. Two. Three. Four.", 0) == " One. Two. One. Two."
    assert repeated_text(" One. Two. Three.\n", 0) == " One. Two. One.\n"
    assert repeated_text(" One.", 0) is None
    assert repeated_text("", 0) is None


def test_the_share_counts_originals_that_score_higher():
    completions = [" One. Two. Three. Four.", " Five. Six.", " Alone.", " Ants. Bees. Cats. Dogs."]
    scored = {" One. Two. Three. Four.": 2.0, " One. Two. One. Two.": 1.0, " Five. Five.": 0.5}

    def score(prompts, texts):
        assert len(prompts) == len(texts)
        return [scored.get(text, 0.5) for text in texts]

    found = probe("repeated_text", score, ["p"] * 4, completions)
    # One win, a draw (which is no win) and a draw; one text has nothing to repeat.
    assert (found.name, found.mean, found.texts) == ("repeated_text", pytest.approx(1 / 3), 3)
    # Wilson's interval of 1 of 3, z = 1.959964.
    z2 = 1.959964**2
    middle, half = 1 / 3 + z2 / 6, 1.959964 * math.sqrt(2 / 27 + z2 / 36)
    assert found.low == pytest.approx((middle - half) / (1 + z2 / 3), abs=1e-6)
    assert found.high == pytest.approx((middle + half) / (1 + z2 / 3), abs=1e-6)
    assert probe("repeated_text", score, ["p"], [" Alone."]) is None
    assert set(PROBES) == {"shuffled_sentences", "swapped_names", "repeated_text"}
