"""How varied a set of texts is. Pure functions of strings; words are split on white space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Diversity(NamedTuple):
    """Shares from 0 to 1: distinct words and word pairs of all texts pooled, and distinct texts."""

    distinct_1: float
    distinct_2: float
    unique: float


def diversity(texts: Sequence[str]) -> Diversity:
    """distinct-n of the pooled texts and the share of different ones.

    distinct-n falls as more text is pooled, so compare only sets of one size. 0 for no texts. Li et al. 2016,
    arXiv:1510.03055.
    """
    unique = len(set(texts)) / len(texts) if texts else 0.0
    return Diversity(distinct_n(texts, 1), distinct_n(texts, 2), unique)


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different word n-grams / word n-grams, all texts pooled, none across texts; 0 where there is none."""
    grams = [gram for text in texts for gram in _grams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def near_duplicates(texts: Sequence[str], n: int = 3, threshold: float = 0.5) -> float:
    """Share of texts with a near twin: at least `threshold` of their word n-grams occur in one other text.

    An exact duplicate counts. Texts shorter than n words count only as exact duplicates.
    """
    if not texts:
        return 0.0
    sets = [set(_grams(text.split(), n)) for text in texts]
    exact = Counter(texts)
    holders: dict[tuple[str, ...], list[int]] = {}
    for index, grams in enumerate(sets):
        for gram in grams:
            holders.setdefault(gram, []).append(index)
    twins = 0
    for index, grams in enumerate(sets):
        shared = Counter(other for gram in grams for other in holders[gram] if other != index)
        nearest = max(shared.values(), default=0)
        twins += exact[texts[index]] > 1 or (bool(grams) and nearest >= threshold * len(grams))
    return twins / len(texts)


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
