"""Where the words of a text stand, as character spans."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from talltree.types import Span

_CHUNK = re.compile(r"\S+")
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_LETTER_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def chunks(text: str) -> list[Span]:
    """Spans of the pieces between white space, punctuation included: the pieces of str.split()."""
    return [match.span() for match in _CHUNK.finditer(text)]


def words(text: str) -> list[Span]:
    """Spans of the words: runs of letters and digits with inner apostrophes, punctuation left out."""
    return [match.span() for match in _WORD.finditer(text)]


def letter_words(text: str) -> list[Span]:
    """Spans of the words made of letters, with inner apostrophes and hyphens; digits are no words."""
    return [match.span() for match in _LETTER_WORD.finditer(text)]


def plain(word: str) -> str:
    """The word without case and with straight apostrophes, so that "Don’t" and "don't" are one word."""
    return word.replace("’", "'").casefold()


def first_letter(word: str) -> str:
    """The first letter without case and accent: "É" -> "e"; a letter that has no base stays itself."""
    return unicodedata.normalize("NFKD", word[0])[0].casefold()


def runs(word_spans: Sequence[Span], earning: Sequence[bool]) -> list[Span]:
    """Joins earning neighbours into runs: earning[i] says that words i and i + 1 earned together.

    W words and W - 1 flags -> one span from the first word's start to the last word's end of each
    maximal run, so that the words of the spans minus the spans are the earning pairs.
    """
    found: list[Span] = []
    open_run = False
    for (start, _), (_, end), earns in zip(word_spans, word_spans[1:], earning, strict=False):
        if earns:
            found.append((found.pop()[0] if open_run else start, end))
        open_run = earns
    return found


def merged(spans: Sequence[Span]) -> list[Span]:
    """Sorted union of the spans: those that overlap become one, those that only touch stay apart."""
    union: list[Span] = []
    for start, end in sorted(spans):
        if union and start < union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        else:
            union.append((start, end))
    return union
