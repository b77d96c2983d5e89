"""Rewards for the text of the completion: length, n-grams, patterns and keywords."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from talltree.errors import RewardError
from talltree.rewards.words import chunks, merged, plain, words
from talltree.types import Span


@dataclass(frozen=True)
class Length:
    """Length of the completion in words (pieces between white space) or characters.

    R = count. Range 0 upward; an empty completion is 0. Give it a negative weight to punish length. The
    prompt is not counted. Raises RewardError for another unit. It offers no spans.
    """

    unit: str = "words"
    name: ClassVar[str] = "length"

    def __post_init__(self) -> None:
        if self.unit not in ("words", "characters"):
            raise RewardError(f"length: unit {self.unit!r} is unknown; use 'words' or 'characters'")

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        if self.unit == "characters":
            return [float(len(completion)) for completion in completions]
        return [float(len(chunks(completion))) for completion in completions]


@dataclass(frozen=True)
class Repetition:
    """Share of the completion's word n-grams that have stood in it before.

    R = 1 - distinct n-grams / n-grams, words without punctuation and case. Range 0 to 1 (never quite 1);
    0 with fewer than n words. Meant for a negative weight. Raises RewardError if n is not an integer of
    at least 1. Spans: the n-grams that repeat an earlier one. The n-gram share of Welleck et al. 2020
    (arXiv:1908.04319), seq-rep-n.
    """

    n: int = 3
    name: ClassVar[str] = "repetition"

    def __post_init__(self) -> None:
        _check_positive("repetition", "n", self.n)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        return [
            1.0 - len(set(grams)) / len(grams) if grams else 0.0 for grams in _all_ngrams(completions, self.n)
        ]

    def spans(self, prompt: str, completion: str) -> list[Span]:
        positions = words(completion)
        seen: set[tuple[str, ...]] = set()
        repeated = []
        for first, gram in enumerate(ngrams(completion, self.n)):
            if gram in seen:
                repeated.append((positions[first][0], positions[first + self.n - 1][1]))
            seen.add(gram)
        return _shifted(merged(repeated), len(prompt))


@dataclass(frozen=True)
class DistinctN:
    """Share of the completion's word n-grams that are distinct.

    R = distinct n-grams / n-grams, words without punctuation and case. Range 0 to 1; 0 with fewer than n
    words, so that an empty story is not the most varied one. One story at a time: the metric
    diversity/distinct_n pools a whole batch. Raises RewardError if n is not an integer of at least 1.
    It offers no spans. Li et al. 2016, arXiv:1510.03055.
    """

    n: int = 2
    name: ClassVar[str] = "distinct_n"

    def __post_init__(self) -> None:
        _check_positive("distinct_n", "n", self.n)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        return [len(set(grams)) / len(grams) if grams else 0.0 for grams in _all_ngrams(completions, self.n)]


@dataclass(frozen=True)
class Regex:
    """Number of matches of a regular expression in the completion, at most at_most of them.

    R = min(matches, at_most), matches that do not overlap and are not empty; at_most=1 gives 0 or 1.
    Range 0 upward. Python's re syntax; ^ and $ match at the lines' ends. Raises RewardError for a pattern
    that does not compile. Spans: each counted match; number of spans = R.
    """

    pattern: str
    ignore_case: bool = False
    at_most: int | None = None
    name: ClassVar[str] = "regex"

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or not self.pattern:
            raise RewardError(f"regex: pattern {self.pattern!r} is not a text, such as 'dragons?'")
        if not isinstance(self.ignore_case, bool):
            raise RewardError(f"regex: ignore_case {self.ignore_case!r} is not True or False")
        if self.at_most is not None:
            _check_positive("regex", "at_most", self.at_most)
        try:
            self._compiled()
        except (re.error, OverflowError, RecursionError) as error:
            raise RewardError(f"regex: pattern {self.pattern!r} does not compile: {error}") from error

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        return [float(len(self.spans("", completion))) for completion in completions]

    def spans(self, prompt: str, completion: str) -> list[Span]:
        matches = [match.span() for match in self._compiled().finditer(completion) if match.group()]
        return _shifted(matches[: self.at_most], len(prompt))

    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern, re.MULTILINE | (re.IGNORECASE if self.ignore_case else re.NOFLAG))


@dataclass(frozen=True)
class Keyword:
    """Number of the listed words that stand in the completion at least once.

    R = #{word in words : the completion has it}, whole words, case ignored; a listed phrase may have
    spaces. Range 0 to len(words); saying a word twice earns nothing more. Raises RewardError if words is
    empty, not a list of texts, or names a word twice. Spans: the first place of each word that stands
    there; number of spans = R unless listed phrases overlap.
    """

    words: Sequence[str]
    name: ClassVar[str] = "keyword"

    def __post_init__(self) -> None:
        listed = self.words
        if not isinstance(listed, list | tuple) or not listed:
            raise RewardError(f"keyword: words {listed!r} is not a list of texts, such as ['dragon', 'egg']")
        for word in listed:
            if not isinstance(word, str) or not word.strip():
                raise RewardError(f"keyword: {word!r} in words is not a text with a word in it")
        if len({_phrase(word).casefold() for word in listed}) < len(listed):
            raise RewardError(f"keyword: words {listed!r} names a word twice; remove one")
        object.__setattr__(self, "words", tuple(listed))

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        return [float(len(self._places(completion))) for completion in completions]

    def spans(self, prompt: str, completion: str) -> list[Span]:
        return _shifted(merged(self._places(completion)), len(prompt))

    def _places(self, completion: str) -> list[Span]:
        found = (re.search(_phrase(word), completion, re.IGNORECASE) for word in self.words)
        return [match.span() for match in found if match]


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """The text's word n-grams in order, without punctuation and case; none with fewer than n words."""
    plain_words = [plain(text[start:end]) for start, end in words(text)]
    return [tuple(plain_words[first : first + n]) for first in range(len(plain_words) - n + 1)]


def _all_ngrams(completions: Sequence[str], n: int) -> list[list[tuple[str, ...]]]:
    return [ngrams(completion, n) for completion in completions]


def _phrase(word: str) -> str:
    return r"(?<!\w)" + r"\s+".join(re.escape(part) for part in word.split()) + r"(?!\w)"


def _shifted(spans: Sequence[Span], offset: int) -> list[Span]:
    return [(start + offset, end + offset) for start, end in spans]


def _check_positive(reward: str, key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RewardError(f"{reward}: {key} {value!r} is not a whole number of at least 1")
