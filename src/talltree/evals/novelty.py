"""What a text copies: its longest run of words found in a corpus, its n-grams found there or in the prompt.

A suffix automaton of the texts reads the corpus once, so the corpus is never in memory and runs of every
length are found exactly. Words are runs of letters and digits in lower case; punctuation is ignored, and no
run crosses the border between two documents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

_WORD = re.compile(r"\w+")
ROOT = 0


def words(text: str) -> list[str]:
    """The words that runs are made of."""
    return _WORD.findall(text.lower())


def copied_from_prompt(prompt: str, completion: str, n: int) -> float | None:
    """Share of the completion's word n-grams that stand in its prompt; None where it has none.

    Ziegler et al. 2019 report it: people can come to reward copying.
    """
    ours, theirs = words(completion), words(prompt)
    grams = [tuple(ours[at : at + n]) for at in range(len(ours) - n + 1)]
    known = {tuple(theirs[at : at + n]) for at in range(len(theirs) - n + 1)}
    return sum(gram in known for gram in grams) / len(grams) if grams else None


class Copied(NamedTuple):
    """For each word of a text, the length of the longest run ending with it that stands in the corpus."""

    runs: list[int]

    @property
    def longest(self) -> int:
        """Words in the longest copied run; 0 for none."""
        return max(self.runs, default=0)

    def share(self, n: int) -> float | None:
        """Share of the text's word n-grams that stand in the corpus; None where the text has none."""
        grams = len(self.runs) - n + 1
        return sum(run >= n for run in self.runs) / grams if grams > 0 else None


class _Automaton(NamedTuple):
    """Suffix automaton: transitions, suffix link and longest run of each state. Blumer et al. 1985."""

    next: list[dict[Any, int]]
    link: list[int]
    longest: list[int]


def copied(
    texts: Sequence[str], corpus: Iterable[str], heard: Callable[[int], None] | None = None
) -> tuple[list[Copied], int]:
    """What each text copies from the documents of `corpus`, and how many words those have.

    heard is told the number of words of each document that has been read.
    """
    ours = [words(text) for text in texts]
    # A number of its own after each text lets no run reach from one text into the next.
    automaton = _automaton([item for number, each in enumerate(ours) for item in (*each, number)])
    best = [0] * len(automaton.link)
    total = 0
    for document in corpus:
        theirs = words(document)
        _read(automaton, theirs, best)
        total += len(theirs)
        if heard is not None:
            heard(len(theirs))
    _spread(automaton, best)
    return [_runs(automaton, each, best) for each in ours], total


def _read(automaton: _Automaton, document: Sequence[str], best: list[int]) -> None:
    """Raises best[state] to the longest run of the state that ends anywhere in the document."""
    state, length = ROOT, 0
    for word in document:
        while state != ROOT and word not in automaton.next[state]:
            state = automaton.link[state]
            length = automaton.longest[state]
        if word not in automaton.next[state]:
            continue
        state, length = automaton.next[state][word], length + 1
        best[state] = max(best[state], length)


def _spread(automaton: _Automaton, best: list[int]) -> None:
    """Where a run occurs, so do the shorter ones that end it: those of the states its links lead to."""
    for state in sorted(range(1, len(best)), key=automaton.longest.__getitem__, reverse=True):
        if best[state] and (shorter := automaton.link[state]) != ROOT:
            best[shorter] = automaton.longest[shorter]


def _runs(automaton: _Automaton, text: Sequence[str], best: Sequence[int]) -> Copied:
    found = []
    state = ROOT
    for word in text:
        state = automaton.next[state][word]
        known = state
        while known != ROOT and not best[known]:
            known = automaton.link[known]
        found.append(best[known])
    return Copied(found)


def _automaton(items: Sequence[Any]) -> _Automaton:
    grown = _Automaton([{}], [-1], [0])
    last = ROOT
    for item in items:
        last = _extend(grown, last, item)
    return grown


def _extend(grown: _Automaton, last: int, item: Any) -> int:
    after, link, longest = grown
    new = _add(grown, {}, longest[last] + 1, ROOT)
    state = last
    while state != -1 and item not in after[state]:
        after[state][item] = new
        state = link[state]
    if state == -1:
        return new
    old = after[state][item]
    if longest[old] == longest[state] + 1:
        link[new] = old
        return new
    clone = _add(grown, dict(after[old]), longest[state] + 1, link[old])
    while state != -1 and after[state].get(item) == old:
        after[state][item] = clone
        state = link[state]
    link[old] = link[new] = clone
    return new


def _add(grown: _Automaton, after: dict[Any, int], longest: int, link: int) -> int:
    grown.next.append(after)
    grown.link.append(link)
    grown.longest.append(longest)
    return len(grown.link) - 1
