"""Reward for the mood of the completion, by the VADER lexicon.

VADER (Hutto and Gilbert 2014) rather than TextBlob, AFINN or NLTK's port: its 7,500 rated words carry the
lexicon in the wheel (NLTK downloads it), know negation and degree, and cover the vocabulary of stories best
(527 of the 2,926 word forms of 500 TinyStories, AFINN 454, TextBlob 317) at equal accuracy on the 436 SST-2
validation sentences (65% each, a neutral verdict counted half). Its last release is of 2020: it is finished
rather than tended, small, and pure Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar, NamedTuple

from talltree.errors import RewardError
from talltree.rewards.words import words
from talltree.types import Span

_SENTENCE = re.compile(r"[^.!?\n]*\w[^.!?\n]*[.!?]*")


class _Lexicon(NamedTuple):
    compound: Callable[[str], float]
    valence: Mapping[str, float]


@dataclass(frozen=True)
class Sentiment:
    """Mean VADER compound score of the completion's sentences, or of the completion as one text.

    compound(s) = v / sqrt(v^2 + 15), v the sum of the word valences of s after VADER's rules for
    negation, degree and emphasis; R = mean of compound over the sentences (by="sentence", the default)
    or compound(completion) (by="text", which is near +-1 for any long story). Range -1 to 1; 0 without
    a rated word. Raises RewardError for another by, or when vaderSentiment is not installed. Spans: the
    words of positive valence. Hutto and Gilbert 2014, ICWSM.
    """

    by: str = "sentence"
    name: ClassVar[str] = "sentiment"

    def __post_init__(self) -> None:
        if self.by not in ("sentence", "text"):
            raise RewardError(f"sentiment: by {self.by!r} is unknown; use 'sentence' or 'text'")
        if find_spec("vaderSentiment") is None:
            raise RewardError("sentiment needs the package vaderSentiment: pip install vaderSentiment")

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        return [self._mood(completion) for completion in completions]

    def spans(self, prompt: str, completion: str) -> list[Span]:
        valence = _lexicon().valence
        return [
            (start + len(prompt), end + len(prompt))
            for start, end in words(completion)
            if valence.get(completion[start:end].lower(), 0.0) > 0
        ]

    def _mood(self, completion: str) -> float:
        texts = _SENTENCE.findall(completion) if self.by == "sentence" else [completion]
        return sum(_lexicon().compound(text) for text in texts) / len(texts) if texts else 0.0


@cache
def _lexicon() -> _Lexicon:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser = SentimentIntensityAnalyzer()
    return _Lexicon(lambda text: float(analyser.polarity_scores(text)["compound"]), analyser.lexicon)
