"""Where a gold reward comes from: a reward, or people's judgements of the very samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from talltree import rewards
from talltree.data.preferences import pairs, read_preferences
from talltree.errors import DataError, RewardError
from talltree.stages.fresh import Completion
from talltree.stages.overopt.sources import BASE
from talltree.types import Prompt, Reward

Sampled = Mapping[str, Sequence[Completion]]
"""Source name -> its completions."""


class Values(NamedTuple):
    """A reward's values: (prompt, value) of every one that is known, by source.

    per_sample: for each source one value a completion, None where there is none, or None where the values are
    not of single completions (win rates), so that best-of-n cannot be scored.
    """

    by_source: dict[str, list[tuple[str, float]]]
    per_sample: dict[str, list[float | None]] | None


def scored(spec: str, sampled: Sampled, prompts: Sequence[Prompt]) -> Values:
    """The values of a reward. Raises RewardError where it scores nothing of a source."""
    reward = rewards.load(spec)
    rows = {prompt.text: prompt.row for prompt in prompts}
    return _values({name: _score(reward, spec, each, rows) for name, each in sampled.items()}, sampled)


def _score(
    reward: Reward, spec: str, completions: Sequence[Completion], rows: Mapping[str, Mapping[str, Any]]
) -> list[float | None]:
    prompts = [each.prompt for each in completions]
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = {name: [rows.get(prompt, {}).get(name) for prompt in prompts] for name in names}
    found = rewards.score(reward, prompts, [each.completion for each in completions], columns)[0]
    if all(value is None for value in found):
        raise RewardError(f"the reward {spec} scored none of {len(found)} completions (None for each)")
    return found


def _values(per_sample: dict[str, list[float | None]], sampled: Sampled) -> Values:
    by_source = {
        name: [
            (each.prompt, value)
            for each, value in zip(sampled[name], values, strict=True)
            if value is not None
        ]
        for name, values in per_sample.items()
    }
    return Values(by_source, per_sample)


def judged(path: str, sampled: Sampled) -> Values:
    """People's judgements: mean ratings of single completions, or win rates against the reference.

    Ratings where there are any: a completion's gold is its mean over raters. Otherwise pairs of a
    checkpoint's completion and the reference's: 1 where the checkpoint's was preferred, 0.5 for a tie, and
    the reference itself is 0.5; a text that several sources wrote belongs to none. Raises DataError where
    nothing of it is about these samples.
    """
    judgements = read_preferences(path, ignore=("sources", "criterion", "repeat"))
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
        return _known(_values(per_sample, sampled), path, sampled)
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
            f"judgements {Path(path)} say nothing of {without[0]} ({len(without)} of {len(sampled)} sources "
            "have no judged completion); judge each source's against the reference's, or rate them"
        )
    return values
