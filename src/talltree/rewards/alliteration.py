"""Rewards for first letters: the alliteration study's two functions, and one that is harder to fool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from talltree.errors import RewardError
from talltree.rewards.words import chunks, first_letter, letter_words, plain, runs
from talltree.types import Span

# Words per 100,000 whose first letter it is, case ignored, counted over the 467,645 pieces between white
# space with a first letter in a-z in 2,834 stories of TinyStories' training text (Eldan and Li 2023,
# arXiv:2305.07759).
WORDS_PER_100_000 = {
    "a": 11528, "b": 5477, "c": 3024, "d": 3131, "e": 1173, "f": 3962, "g": 1969, "h": 7913, "i": 4377,
    "j": 660, "k": 633, "l": 3998, "m": 3370, "n": 2083, "o": 3411, "p": 2803, "q": 83, "r": 1439,
    "s": 9955, "t": 18426, "u": 1002, "v": 672, "w": 7579, "x": 2, "y": 1274, "z": 56,
}  # fmt: skip


def letter_weight(letter: str, rarity: float = 1.0) -> float:
    """What a rare first letter counts more: (-ln share / mean of -ln share over words) ** rarity.

    share is the letter's share of English first letters, WORDS_PER_100_000. With rarity 1 the mean weight
    of a story's words is 1: t 0.61, a 0.78, d 1.25, z 2.71, x 3.91. rarity 0 makes every weight 1. A
    letter outside a-z weighs 1. The weight is the surprise (self-information) of meeting that letter,
    which stays finite for x where 1 / share would pay only for x; Shannon 1948.
    """
    if letter not in WORDS_PER_100_000:
        return 1.0
    return float((-math.log(_share(letter)) / _MEAN_SURPRISE) ** rarity)


def _share(letter: str) -> float:
    return WORDS_PER_100_000[letter] / sum(WORDS_PER_100_000.values())


_MEAN_SURPRISE = -sum(_share(letter) * math.log(_share(letter)) for letter in WORDS_PER_100_000)


@dataclass(frozen=True)
class Alliteration:
    """Number of neighbouring words of prompt + completion that start with the same letter.

    R = #{i : first(w_i) = first(w_i+1)}, w the pieces between white space, first the first character in
    lower case. Range 0 to words - 1. A repeated word counts ("tall tall"), and a quote mark is a first
    letter: kept, because this is exactly the function of the alliteration study on TinyStories-33M.
    Spans: each run of earning neighbours; words in the spans minus spans = R.
    """

    name: ClassVar[str] = "alliteration"

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        return [
            float(sum(_same_first(prompt + completion)))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def spans(self, prompt: str, completion: str) -> list[Span]:
        text = prompt + completion
        return runs(chunks(text), _same_first(text))


def _same_first(text: str) -> list[bool]:
    return [left[0].lower() == right[0].lower() for left, right in pairwise(text.split())]


@dataclass(frozen=True)
class LetterCount:
    """Number of words of prompt + completion that start with the letter, case ignored.

    R = #{i : first(w_i) = letter}, w the pieces between white space. Range 0 to words. With letter "a"
    this is exactly the second task of the alliteration study. Raises RewardError unless letter is one
    character. Spans: each counted word; number of spans = R.
    """

    letter: str = "a"
    name: ClassVar[str] = "letter_count"

    def __post_init__(self) -> None:
        if not isinstance(self.letter, str) or len(self.letter) != 1 or self.letter.isspace():
            raise RewardError(f"letter_count: letter {self.letter!r} is not one character, such as 'a'")

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        return [
            float(len(self.spans(prompt, completion)))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def spans(self, prompt: str, completion: str) -> list[Span]:
        text = prompt + completion
        return [span for span in chunks(text) if text[span[0]].lower() == self.letter.lower()]


@dataclass(frozen=True)
class AlliterationVaried:
    """Alliteration of prompt + completion that punctuation and repetition cannot fool.

    R = sum of letter_weight(first(w_i), rarity) over the words w_i that start with the letter of the word
    before and have not stood in the story before. w are words of letters ("tall," is tall; digits and
    quote marks are skipped; case and accents ignored). Range 0 to about 4 per word (an x), on average 1
    per earning word. Raises RewardError if rarity is not a number from 0 to 4. Spans: each run of earning
    neighbours; with rarity 0, words in the spans minus spans = R.
    """

    rarity: float = 1.0
    name: ClassVar[str] = "alliteration_varied"

    def __post_init__(self) -> None:
        number = isinstance(self.rarity, int | float) and not isinstance(self.rarity, bool)
        if not number or not 0 <= self.rarity <= 4:
            raise RewardError(f"alliteration_varied: rarity {self.rarity!r} is not a number from 0 to 4")

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        return [
            self._total(prompt + completion) for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def spans(self, prompt: str, completion: str) -> list[Span]:
        text = prompt + completion
        return runs(letter_words(text), _new_and_same_first(_letter_word_texts(text)))

    def _total(self, text: str) -> float:
        story_words = _letter_word_texts(text)
        earning = _new_and_same_first(story_words)
        return (
            math.fsum(
                letter_weight(first_letter(word), self.rarity)
                for word, earns in zip(story_words[1:], earning, strict=True)
                if earns
            )
            if story_words
            else 0.0
        )


def _letter_word_texts(text: str) -> list[str]:
    return [plain(text[start:end]) for start, end in letter_words(text)]


def _new_and_same_first(story_words: Sequence[str]) -> list[bool]:
    seen = set(story_words[:1])
    earning = []
    for left, right in pairwise(story_words):
        earning.append(right not in seen and first_letter(left) == first_letter(right))
        seen.add(right)
    return earning
