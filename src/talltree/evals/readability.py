"""Readability of English: Flesch and Kincaid's formulas, with a stated rule for syllables.

Syllables of a word: its groups of neighbouring vowels a e i o u y, but for a silent final e (not after a
consonant and l: "little" has two), a silent -ed (not after t or d: "wanted" has two) and a silent -es (not
after s, x, z, c, g, sh, ch: "horses" has two); at least one. Words are runs of letters and apostrophes,
sentences those of `talltree.data.sentences`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from talltree.data.sentences import sentence_ends

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_VOWELS = re.compile(r"[aeiouy]+")
_SILENT_E = re.compile(r"[^aeiouyl]e\Z|[aeiouy]le\Z")
_SILENT_ED = re.compile(r"[^aeiouytd]ed\Z")
_SILENT_ES = re.compile(r"[^aeiouysxzcg](?<![sc]h)es\Z")


class Readability(NamedTuple):
    """US school grade (higher is harder) and reading ease (higher is easier)."""

    grade: float
    ease: float


def syllables(word: str) -> int:
    """How many syllables the rule above finds in a word."""
    letters = re.sub(r"['’]", "", word.lower())
    groups = len(_VOWELS.findall(letters))
    is_silent = any(rule.search(letters) for rule in (_SILENT_E, _SILENT_ED, _SILENT_ES))
    return max(groups - is_silent, 1)


def readability(text: str) -> Readability | None:
    """Flesch-Kincaid grade 0.39 w/s + 11.8 y/w - 15.59 and reading ease 206.835 - 1.015 w/s - 84.6 y/w.

    w words, s sentences, y syllables. None for a text without a word. Kincaid et al. 1975; Flesch 1948.
    """
    words = _WORD.findall(text)
    if not words:
        return None
    words_a_sentence = len(words) / len(sentence_ends(text))
    syllables_a_word = sum(map(syllables, words)) / len(words)
    return Readability(
        0.39 * words_a_sentence + 11.8 * syllables_a_word - 15.59,
        206.835 - 1.015 * words_a_sentence - 84.6 * syllables_a_word,
    )
