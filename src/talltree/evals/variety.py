"""How alike the texts of a set are to each other, and how much one text repeats itself.

Words are split on white space for self-BLEU and repetition. Each measure depends on how many texts are in
the set, so compare only sets of one size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from talltree.data.near_duplicates import shingles

EPSILON = 0.1
"""What an n-gram order without a match counts as, in matches: Chen and Cherry 2014, method 1."""


def self_bleu(texts: Sequence[str], order: int = 4) -> float:
    """Mean BLEU of each text against all others as references: 1 where all are equal, near 0 where none are.

    Clipped precisions of 1 to `order` words, as far as the text is long, their geometric mean with equal
    weights, and the brevity penalty against the reference of nearest length. 0 for fewer than two texts and
    for a text without words. Zhu et al. 2018, arXiv:1802.01886.
    """
    if len(texts) < 2:
        return 0.0
    words = [text.split() for text in texts]
    counts = [[_grams(each, n) for each in words] for n in range(1, order + 1)]
    best = [_two_highest(of_order) for of_order in counts]
    lengths = Counter(map(len, words))
    return math.fsum(
        _bleu([of_order[at] for of_order in counts], best, at, len(words[at]), lengths)
        for at in range(len(texts))
    ) / len(texts)


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))


_Highest = dict[tuple[str, ...], tuple[int, int, int]]
"""N-gram -> (highest count in a text, that text, highest count in any other text)."""


def _two_highest(counts: Sequence[Counter[tuple[str, ...]]]) -> _Highest:
    found: _Highest = {}
    for at, of_text in enumerate(counts):
        for gram, count in of_text.items():
            first, holder, second = found.get(gram, (0, -1, 0))
            if count > first:
                found[gram] = (count, at, first)
            elif count > second:
                found[gram] = (first, holder, count)
    return found


def _bleu(
    counts: Sequence[Counter[tuple[str, ...]]],
    best: Sequence[_Highest],
    at: int,
    length: int,
    lengths: Counter[int],
) -> float:
    if not length:
        return 0.0
    logs = []
    for of_text, highest in zip(counts, best, strict=True):
        if not of_text:
            break
        matched = 0
        for gram, count in of_text.items():
            first, holder, second = highest[gram]
            matched += min(count, second if holder == at else first)
        logs.append(math.log((matched or EPSILON) / of_text.total()))
    others = lengths - Counter([length])
    nearest = min(others, key=lambda other: (abs(other - length), other))
    brevity = min(0.0, 1 - nearest / length)
    return math.exp(brevity + math.fsum(logs) / len(logs))


def near_duplicate_share(texts: Sequence[str], threshold: float = 0.7) -> float:
    """Share of texts with a near twin: Jaccard similarity of their sets of runs of five words >= threshold.

    An equal text is one, too, however short; lower case, punctuation ignored. Every two texts that share a
    run are compared, so nothing is missed. 0 for no texts.
    """
    if not texts:
        return 0.0
    runs = shingles(texts)
    sets = [set(runs.of(number).tolist()) for number in range(len(texts))]
    holders: dict[int, list[int]] = {}
    for number, hashes in enumerate(sets):
        for each in hashes:
            holders.setdefault(each, []).append(number)
    equal = Counter(texts)
    twins = 0
    for number, hashes in enumerate(sets):
        common = Counter(other for each in hashes for other in holders[each] if other != number)
        twins += equal[texts[number]] > 1 or any(
            both >= threshold * (len(hashes) + len(sets[other]) - both) for other, both in common.items()
        )
    return twins / len(texts)


def repetition(text: str, n: int = 4) -> float | None:
    """1 - different word n-grams / word n-grams of one text; None where it has fewer than n words.

    Welleck et al. 2020, arXiv:1908.04319.
    """
    grams = _grams(text.split(), n)
    return 1 - len(grams) / grams.total() if grams else None
