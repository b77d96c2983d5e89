"""Coherence probes: a text and a spoiled copy of it with the same words or length; the copy must score lower.

Each spoiler is a pure function of the text and a seed, and gives None where a text offers nothing to spoil.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from talltree.data.sentences import sentence_ends
from talltree.evals.statistics import wilson

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_NO_NAMES = frozenset({"I", "I'm", "I’m", "I'll", "I’ll", "I've", "I’ve", "I'd", "I’d"})


class Probe(NamedTuple):
    """Share of texts that score above their spoiled copy, with Wilson's 95% interval; equal scores lose."""

    name: str
    mean: float
    low: float
    high: float
    texts: int


def shuffled_sentences(text: str, seed: int) -> str | None:
    """The sentences in another order, joined by the white space that stood between them; None below three."""
    pieces, gaps = _sentences(text)
    if len(set(pieces)) < 3:
        return None
    generator = random.Random(f"{seed} {text}")
    order = list(pieces)
    while order == pieces:
        generator.shuffle(order)
    return _joined(order, gaps)


def swapped_names(text: str, seed: int) -> str | None:
    """Every second mention of a name replaced by the next of the text's other names; None below two names.

    A name is a capitalised word that stands within a sentence, too, and never in lower case; two names are
    needed of which one is mentioned again.
    """
    starts = {match.start() for end in (0, *_ends(text)) if (match := _WORD.search(text, end))}
    words = list(_WORD.finditer(text))
    lower = {match[0] for match in words if match[0][0].islower()}
    names = {
        match[0]
        for match in words
        if match.start() not in starts
        and match[0][0].isupper()
        and match[0] not in _NO_NAMES
        and match[0].lower() not in lower
        and not match[0].isupper()
    }
    mentions = [match for match in words if match[0] in names]
    known = list(dict.fromkeys(match[0] for match in mentions))
    if len(known) < 2 or len(mentions) < 3:
        return None
    pieces, place = [], 0
    for number, match in enumerate(mentions):
        other = known[(known.index(match[0]) + 1) % len(known)]
        pieces += [text[place : match.start()], other if number % 2 else match[0]]
        place = match.end()
    return "".join([*pieces, text[place:]])


def repeated_text(text: str, seed: int) -> str | None:
    """The second half of the sentences replaced by the first half again: the length is about the same.

    None below two sentences.
    """
    pieces, gaps = _sentences(text)
    half = (len(pieces) + 1) // 2
    again = [*pieces[:half], *pieces[: len(pieces) - half]]
    return None if again == pieces else _joined(again, gaps)


PROBES: Mapping[str, Callable[[str, int], str | None]] = {
    "shuffled_sentences": shuffled_sentences,
    "swapped_names": swapped_names,
    "repeated_text": repeated_text,
}


def probe(
    name: str,
    score: Callable[[Sequence[str], Sequence[str]], Sequence[float]],
    prompts: Sequence[str],
    completions: Sequence[str],
    seed: int = 0,
) -> Probe | None:
    """One probe over some texts; completions are spoiled, prompts left as they are.

    score(prompts, completions) gives a number each. None where no completion offers anything to spoil.
    """
    pairs = [(p, c, PROBES[name](c, seed)) for p, c in zip(prompts, completions, strict=True)]
    spoiled = [(p, c, bad) for p, c, bad in pairs if bad is not None]
    if not spoiled:
        return None
    asked = [p for p, _, _ in spoiled]
    good, bad = (score(asked, [each[side] for each in spoiled]) for side in (1, 2))
    wins = sum(one > other for one, other in zip(good, bad, strict=True))
    return Probe(name, wins / len(spoiled), *wilson(wins, len(spoiled)), len(spoiled))


def _ends(text: str) -> list[int]:
    return sentence_ends(text)


def _sentences(text: str) -> tuple[list[str], list[str]]:
    """The sentences, and the white space before each of them and after the last."""
    pieces, gaps, place = [], [], 0
    for end in _ends(text):
        start = place + len(text[place:end]) - len(text[place:end].lstrip())
        gaps.append(text[place:start])
        pieces.append(text[start:end])
        place = end
    return pieces, [*gaps, text[place:]]


def _joined(pieces: Sequence[str], gaps: Sequence[str]) -> str:
    return "".join(gap + piece for gap, piece in zip(gaps, pieces, strict=False)) + gaps[-1]
