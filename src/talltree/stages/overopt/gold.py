"""The values of a reward on the samples: of the proxy, and of a gold reward that is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from talltree import rewards
from talltree.errors import RewardError
from talltree.stages.fresh import Completion
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


def scored(
    spec: str, sampled: Sampled, prompts: Sequence[Prompt], missing_end: float | None = None
) -> Values:
    """The values of a reward; missing_end instead for a completion without its required end, as in training.

    Raises RewardError where it scores nothing of a source.
    """
    reward = rewards.load(spec)
    rows = {prompt.text: prompt.row for prompt in prompts}
    return values_of(
        {name: _score(reward, spec, each, rows, missing_end) for name, each in sampled.items()}, sampled
    )


def _score(
    reward: Reward,
    spec: str,
    completions: Sequence[Completion],
    rows: Mapping[str, Mapping[str, Any]],
    missing_end: float | None,
) -> list[float | None]:
    prompts = [each.prompt for each in completions]
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = {name: [rows.get(prompt, {}).get(name) for prompt in prompts] for name in names}
    found = rewards.score(reward, prompts, [each.completion for each in completions], columns)[0]
    if all(value is None for value in found):
        raise RewardError(f"the reward {spec} scored none of {len(found)} completions (None for each)")
    if missing_end is None:
        return found
    return [value if each.ended else missing_end for value, each in zip(found, completions, strict=True)]


def values_of(per_sample: dict[str, list[float | None]], sampled: Sampled) -> Values:
    """One value a completion, or None, by source."""
    by_source = {
        name: [
            (each.prompt, value)
            for each, value in zip(sampled[name], values, strict=True)
            if value is not None
        ]
        for name, values in per_sample.items()
    }
    return Values(by_source, per_sample)
