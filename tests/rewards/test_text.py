from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from talltree.errors import RewardError
from talltree.rewards.text import DistinctN, Keyword, Length, Regex, Repetition


def test_length() -> None:
    assert Length()(["Once upon", ""], [" a  time,\nsaid", ""]) == [3, 0]
    assert Length("characters")(["Once upon", ""], [" a  time,\nsaid", ""]) == [14, 0]


@pytest.mark.parametrize(
    ("n", "completion", "repeated", "distinct"),
    [
        (3, "a b c a b c", 1 / 4, 3 / 4),  # abc bca cab abc
        (2, "A b. a 'B!", 1 / 3, 2 / 3),  # ab ba ab
        (1, "no no no no", 3 / 4, 1 / 4),
        (2, "one two three", 0, 1),
        (3, "one two", 0, 0),  # no n-gram: neither repeated nor varied
        (1, "", 0, 0),
        (1, "don't don’t", 1 / 2, 1 / 2),
    ],
)
def test_repetition_and_distinct_n(n: int, completion: str, repeated: float, distinct: float) -> None:
    assert Repetition(n)(["a b c"], [completion]) == [pytest.approx(repeated)]
    assert DistinctN(n)(["a b c"], [completion]) == [pytest.approx(distinct)]


def test_repetition_spans_are_the_later_occurrences() -> None:
    #                                    0123456789012345678901
    assert Repetition(2).spans("12345", "he ran. He ran, he ran") == [(5 + 8, 5 + 22)]
    assert Repetition(2).spans("", "he ran home") == []


def test_regex() -> None:
    text = "A cat, a Cat.\ncatcat"
    assert Regex("cat")([""], [text]) == [3]
    assert Regex("cat", ignore_case=True)([""], [text]) == [4]
    assert Regex("cat", at_most=1)(["", ""], [text, "dog"]) == [1, 0]
    assert Regex("^cat")([""], [text]) == [1]
    assert Regex("x*")([""], ["axxa"]) == [1]  # empty matches do not count
    assert Regex("cat")(["cat"], [" dog"]) == [0]  # the prompt does not count
    assert Regex("cat").spans("ab", text) == [(4, 7), (16, 19), (19, 22)]
    assert Regex("cat", at_most=1).spans("ab", text) == [(4, 7)]


def test_keyword() -> None:
    reward = Keyword(["dragon", "red egg"])
    completions = ["A Dragon, a dragon!", "dragons", "red\n egg. dragon", ""]
    assert reward(["dragon"] * 4, completions) == [1, 0, 2, 0]
    assert reward.spans("dragon", " a dragon, a dragon") == [(9, 15)]  # the first one earned it
    assert Keyword(["C++"])([""], ["in C++ now"]) == [1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Length("tokens"), "length: unit 'tokens' is unknown; use 'words' or 'characters'"),
        (lambda: Repetition(0), "repetition: n 0 is not a whole number of at least 1"),
        (lambda: Repetition("3"), "repetition: n '3' is not a whole number of at least 1"),
        (lambda: DistinctN(True), "distinct_n: n True is not a whole number of at least 1"),
        (lambda: DistinctN(1.5), "distinct_n: n 1.5 is not a whole number of at least 1"),
        (lambda: Regex("("), "regex: pattern '(' does not compile: missing ), unterminated subpattern"),
        (lambda: Regex(""), "regex: pattern '' is not a text"),
        (lambda: Regex(3), "regex: pattern 3 is not a text"),
        (lambda: Regex("a", ignore_case=1), "regex: ignore_case 1 is not True or False"),
        (lambda: Regex("a", at_most=0), "regex: at_most 0 is not a whole number of at least 1"),
        (lambda: Keyword([]), "keyword: words [] is not a list of texts"),
        (lambda: Keyword("dragon"), "keyword: words 'dragon' is not a list of texts"),
        (lambda: Keyword(["a", " "]), "keyword: ' ' in words is not a text"),
        (lambda: Keyword(["a", 1]), "keyword: 1 in words is not a text"),
        (lambda: Keyword(["a", "A"]), "keyword: words ['a', 'A'] names a word twice"),
    ],
)
def test_bad_parameters_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RewardError, match=re.escape(message)):
        make()
