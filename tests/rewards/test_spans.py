"""Spans tie to the reward by each reward's stated rule, on seeded random texts."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from talltree import rewards
from talltree.errors import RewardError
from talltree.types import Reward, Span

PIECES = [
    *["tall", "Tree", "the", "big", "Bear", "a", "An", "apple", "zebra", "zoo", "don't", "don’t", "tip-top"],
    *["3", "33", "école", "Élan", "İ", "ß", "ёж", "x_y", ""],
    *" \n\t\u00a0\u2028\x1c,.!?\"“”'’-",
]


def stories(seed: int, count: int = 300) -> Iterator[tuple[str, str]]:
    """Random prompts and completions, some empty, cut anywhere."""
    generator = random.Random(seed)
    for _ in range(count):
        spaced = generator.random() < 0.7
        text = (" " if spaced else "").join(generator.choices(PIECES, k=generator.randrange(40)))
        cut = generator.randrange(len(text) + 1)
        yield text[:cut], text[cut:]


def value(reward: Reward, prompt: str, completion: str) -> float:
    total = rewards.score(reward, [prompt], [completion], {})[0][0]
    assert total is not None
    return total


SPECS = [
    "alliteration",
    "letter_count",
    "letter_count(letter='t')",
    "alliteration_varied",
    "repetition(n=1)",
    "repetition(n=2)",
    "regex(pattern='[aeiou]+')",
    "regex(pattern='t', at_most=2)",
    "keyword(words=['tree', 'bear', 'tip-top'])",
    "sentiment",
    "2*alliteration + letter_count - 3*repetition(n=1) + keyword(words=['tree', 'bear'])",
]


@pytest.mark.parametrize("spec", SPECS)
def test_spans_are_sorted_apart_and_within_the_text(spec: str) -> None:
    reward, some = rewards.load(spec), 0
    for prompt, completion in stories(0):
        found = rewards.spans(reward, prompt, completion)
        some += len(found)
        assert all(0 <= start < end <= len(prompt + completion) for start, end in found)
        assert all(left[1] <= right[0] for left, right in pairwise(found))
    assert some > 0 or spec == "sentiment"


def test_words_minus_spans_are_the_alliterations() -> None:
    reward = rewards.load("alliteration")
    for prompt, completion in stories(1):
        text = prompt + completion
        found = rewards.spans(reward, prompt, completion)
        assert sum(len(text[a:b].split()) - 1 for a, b in found) == value(reward, prompt, completion)
        assert all(not text[a].isspace() and not text[b - 1].isspace() for a, b in found)
        for a, b in found:
            assert len({word[0].lower() for word in text[a:b].split()}) == 1


def test_words_minus_spans_are_the_varied_alliterations() -> None:
    reward = rewards.load("alliteration_varied(rarity=0)")
    word = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
    for prompt, completion in stories(2):
        text = prompt + completion
        found = rewards.spans(reward, prompt, completion)
        assert sum(len(word.findall(text[a:b])) - 1 for a, b in found) == value(reward, prompt, completion)


@pytest.mark.parametrize(
    "spec",
    [
        "letter_count",
        "regex(pattern='t')",
        "regex(pattern='[aeiou]+', at_most=3)",
        "keyword(words=['tree', 'bear', 'tip-top', 'apple'])",
    ],
)
def test_the_number_of_spans_is_the_count(spec: str) -> None:
    reward = rewards.load(spec)
    for prompt, completion in stories(3):
        assert len(rewards.spans(reward, prompt, completion)) == value(reward, prompt, completion)


def test_repetition_marks_exactly_the_repeated_ngrams() -> None:
    generator = random.Random(4)
    for n in (1, 2, 3):
        reward = rewards.load(f"repetition(n={n})")
        for _ in range(60):
            said = generator.choices("abc", k=generator.randrange(12))
            grams = [said[i : i + n] for i in range(len(said) - n + 1)]
            again = [i for i, gram in enumerate(grams) if gram in grams[:i]]
            marked = {i + k for i in again for k in range(n)}
            found = rewards.spans(reward, "ab", " ".join(said))
            assert {i for i in range(len(said)) if any(a <= 2 + 2 * i < b for a, b in found)} == marked
            assert value(reward, "ab", " ".join(said)) == pytest.approx(len(again) / max(len(grams), 1))


def test_a_sum_marks_what_its_positive_parts_earned() -> None:
    #                  0123456789012345678
    prompt, completion = "an ant", " and bob ran, ran"
    both = "letter_count + 2*alliteration - 9*repetition(n=1) + 0*letter_count(letter='b')"
    assert rewards.spans(rewards.load(both), prompt, completion) == [(0, 10), (15, 23)]
    assert rewards.spans(rewards.load("-alliteration"), prompt, completion) == []


def test_a_reward_without_spans_offers_none() -> None:
    for spec in ("length", "distinct_n"):
        assert rewards.spans(rewards.load(spec), "a", " b") == []


def user_reward(spans: Any) -> Reward:
    def mine(prompts: Any, completions: Any) -> Any:
        return [0.0 for _ in completions]

    mine.spans = spans  # type: ignore[attr-defined]
    return mine  # type: ignore[return-value]


def test_a_users_spans_are_sorted_and_joined_where_they_overlap() -> None:
    offered: list[Any] = [[4, 6], (0, 2), (1, 3), (3, 4)]
    assert rewards.spans(user_reward(lambda p, c: offered), "abc", "def") == [(0, 3), (3, 4), (4, 6)]


@pytest.mark.parametrize(
    "offered", [(0, 7), (-1, 2), (2, 2), (3, 1), (0.0, 2.0), (True, 2), (1, 2, 3), (1,), ("a", "b")]
)
def test_a_users_bad_span_is_named(offered: Span) -> None:
    message = (
        f"spans of reward mine: {re.escape(repr(offered))} is not a pair start < end within the 6 characters"
    )
    with pytest.raises(RewardError, match=message):
        rewards.spans(user_reward(lambda p, c: [offered]), "abc", "def")


def test_spans_that_raise_are_named() -> None:
    with pytest.raises(
        RewardError, match=r"spans of reward mine raised ZeroDivisionError: .* \(test_spans.py:\d+\)"
    ):
        rewards.spans(user_reward(lambda p, c: [1 / 0]), "abc", "def")
    with pytest.raises(RewardError, match="spans of reward mine raised TypeError"):
        rewards.spans(user_reward(lambda p, c: None), "abc", "def")
