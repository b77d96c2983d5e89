"""Gold by people: their judgements of the very samples, and the pairs that they are to judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from talltree.annotation.exchange import read_judgements
from talltree.annotation.store import Store
from talltree.data.preferences import Judgement, pairs
from talltree.errors import DataError
from talltree.stages.overopt.gold import Sampled, Values, values_of
from talltree.stages.overopt.sources import BASE


def judged(path: str, sampled: Sampled) -> Values:
    """People's judgements: mean ratings of single completions, or win rates against the reference.

    Ratings where there are any: a completion's gold is its mean over raters. Otherwise pairs of a
    checkpoint's completion and the reference's: 1 where the checkpoint's was preferred, 0.5 for a tie, and
    the reference itself is 0.5; a text that several sources wrote belongs to none. path: a study folder, or
    what was exported from one. Raises DataError where nothing of it is about these samples.
    """
    judgements = read(path)
    ratings: dict[tuple[str, str], list[float]] = {}
    for each in judgements:
        for text, value in zip(each.candidates, each.ratings or (), strict=False):
            ratings.setdefault((each.prompt, text), []).append(value)
    if ratings:
        per_sample = {
            name: [
                float(np.mean(found)) if (found := ratings.get((each.prompt, each.completion))) else None
                for each in completions
            ]
            for name, completions in sampled.items()
        }
        return _known(values_of(per_sample, sampled), path, sampled)
    wrote = _writers(sampled)
    by_source: dict[str, list[tuple[str, float]]] = {name: [] for name in sampled}
    for each in judgements:
        names = [wrote.get((each.prompt, text)) for text in each.candidates]
        if each.tie and len(names) == 2 and BASE in names:
            _note(by_source, names, 0, 1, each.prompt, 0.5)
        for winner, loser in pairs(each):
            _note(by_source, names, winner, loser, each.prompt, 1.0)
    by_source[BASE] = [(prompt, 0.5) for values in by_source.values() for prompt, _ in values]
    return _known(Values(by_source, None), path, sampled)


def read(given: str) -> list[Judgement]:
    """The judgements of a study folder or an export; a hidden repeat is the same opinion once more.

    Raises DataError where there are none, and what the store and the readers raise.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        with Store.open(path) as store:
            judgements = store.judgements()
        if not judgements:
            raise DataError(
                f"judgements {given}: nobody has judged yet; serve it with talltree annotate serve"
            )
    else:
        judgements = read_judgements(path, ignore=("sources", "criterion", "repeat"))
    first: dict[object, Judgement] = {}
    for number, each in enumerate(judgements):
        first.setdefault((each.annotator, each.tuple_id) if each.tuple_id else number, each)
    return list(first.values())


def pairs_to_judge(sampled: Sampled) -> list[dict[str, Any]]:
    """Rows of two candidates, the reference's and a checkpoint's n-th completion of a prompt, for annotate.

    What could not be counted is left out: pairs with a text that two sources wrote, or an empty one. The
    first pair of every checkpoint comes before the second of any, so that the first so many are of all.
    """
    wrote = _writers(sampled)
    texts: dict[str, dict[str, list[str]]] = {}
    for name, completions in sampled.items():
        for each in completions:
            texts.setdefault(name, {}).setdefault(each.prompt, []).append(each.completion)
    found: list[tuple[int, dict[str, Any]]] = []
    seen: set[tuple[str, ...]] = set()
    for name in (name for name in sampled if name != BASE):
        number = 0
        for prompt, ours in texts[name].items():
            for pair in zip(texts[BASE].get(prompt, []), ours, strict=False):
                is_new = (prompt, *pair) not in seen
                if is_new and all(text.strip() and (prompt, text) in wrote for text in pair):
                    seen.add((prompt, *pair))
                    row = {"prompt": prompt, "candidates": list(pair), "sources": [BASE, name]}
                    found.append((number, row))
                    number += 1
    return [row for _, row in sorted(found, key=lambda each: each[0])]


def _writers(sampled: Sampled) -> dict[tuple[str, str], str]:
    """(prompt, completion) -> its source; a text that two sources wrote tells nothing and is left out."""
    found: dict[tuple[str, str], set[str]] = {}
    for name, completions in sampled.items():
        for each in completions:
            found.setdefault((each.prompt, each.completion), set()).add(name)
    return {text: names.pop() for text, names in found.items() if len(names) == 1}


def _note(
    by_source: dict[str, list[tuple[str, float]]],
    names: Sequence[str | None],
    winner: int,
    loser: int,
    prompt: str,
    worth: float,
) -> None:
    """Enters a pair of a checkpoint and the reference under the checkpoint."""
    won, lost = names[winner], names[loser]
    if lost == BASE and won not in (None, BASE):
        by_source[str(won)].append((prompt, worth))
    elif won == BASE and lost not in (None, BASE):
        by_source[str(lost)].append((prompt, 1.0 - worth))


def _known(values: Values, path: str, sampled: Sampled) -> Values:
    without = [name for name in sampled if not values.by_source[name]]
    if without:
        raise DataError(
            f"judgements {path} say nothing of {without[0]} ({len(without)} of {len(sampled)} sources "
            "have no judged completion); judge each source's against the reference's, or rate them"
        )
    return values
