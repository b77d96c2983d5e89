"""Self-BLEU, near-duplicates and repetition, worked by hand."""

import math

import pytest

from talltree.evals.variety import near_duplicate_share, repetition, self_bleu


def test_equal_texts_have_self_bleu_one_and_strangers_nearly_none():
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1.0)
    # Not one n-gram of four words is matched: precisions 0.1/4, 0.1/3, 0.1/2, 0.1/1.
    expected = (0.1**4 / 24) ** 0.25
    assert self_bleu(["a b c d", "w x y z"]) == pytest.approx(expected)
    assert self_bleu(["a b"]) == 0.0
    assert self_bleu([]) == 0.0


def test_self_bleu_by_hand():
    # "a b c d" against "a b c x y": precisions 3/4, 2/3, 1/2 and 0.1/1; brevity exp(1 - 5/4).
    one = math.exp(-0.25) * (3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25
    # "a b c x y" against "a b c d": 3/5, 2/4, 1/3, 0.1/2; longer than its reference.
    other = (3 / 5 * 2 / 4 * 1 / 3 * 0.1 / 2) ** 0.25
    assert self_bleu(["a b c d", "a b c x y"]) == pytest.approx((one + other) / 2)


def test_self_bleu_clips_counts_by_the_best_other_text():
    # "a a" against "a" and "a b": one `a` of two is clipped away, no pair matches: (1/2 * 0.1/1)^(1/2).
    first = (0.5 * 0.1) ** 0.5
    second = 1.0  # "a" stands in both others; the nearest length 2 costs exp(1 - 2)
    third = (0.5 * 0.1) ** 0.5  # `a` matches, `b` does not; the pair does not
    found = self_bleu(["a a", "a", "a b"])
    assert found == pytest.approx((first + second * math.exp(-1) + third) / 3)


def test_a_text_without_words_counts_as_nothing():
    assert self_bleu(["", "a"]) == pytest.approx((0 + 0.1) / 2)


def test_near_duplicates_by_hand():
    # Runs of five: abcde bcdef | abcde bcdef cdefg: 2 of 3 shared, a similarity of 0.667.
    texts = ["A b, c d e f.", "a b c d e f g", "p q r s t u"]
    assert near_duplicate_share(texts, threshold=0.6) == 2 / 3
    assert near_duplicate_share(texts, threshold=0.7) == 0.0
    assert near_duplicate_share(["x", "x", "y z"]) == 2 / 3  # too short for a run, but equal
    assert near_duplicate_share([]) == 0.0


def test_repetition_by_hand():
    assert repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5)  # abcd bcda cdab dabc abcd
    assert repetition("a b c d") == 0.0
    assert repetition("a b c") is None
    assert repetition("a a a", n=1) == pytest.approx(2 / 3)
