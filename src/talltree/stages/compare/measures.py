"""The measures of a set of completions: of each completion alone, and of all of them pooled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from talltree import rewards
from talltree.errors import ConfigError, RewardError
from talltree.evals.stories import MEANS, SET_UNITS, SETS, describe
from talltree.stages.fresh import Completion
from talltree.stages.named import split_list
from talltree.types import Reward

COPIED_FROM_PROMPT = 4
"""Words of the runs that are looked for in the prompt, as `evaluate` has it."""
KL = "kl"
JUDGE = "judge_nats_per_token"

Columns = Mapping[str, Mapping[str, Any]]
"""Prompt text -> the other columns of its row."""


class Single(NamedTuple):
    """A measure of one completion: None where it has none."""

    name: str
    unit: str
    values: list[float | None]


class Pooled(NamedTuple):
    """A measure of a set of completions."""

    name: str
    unit: str
    of_texts: Callable[[Sequence[str]], float]


def load_rewards(specs: str) -> dict[str, Reward]:
    """The rewards of a comma-separated list, by what they are called there. Raises RewardError."""
    found: dict[str, Reward] = {}
    for spec in split_list(specs):
        if spec in found:
            raise ConfigError(f"rewards names {spec!r} twice; leave one out")
        found[spec] = rewards.load(spec)
    return found


def single(
    completions: Sequence[Completion],
    scorers: Mapping[str, Reward],
    columns: Columns,
    judged: Sequence[float | None] | None,
) -> list[Single]:
    """Rewards, KL, what a judge finds, and the story measures of every completion, in its order.

    A measure that no completion has is left out. judged: nats a token under the judge. Raises RewardError.
    """
    prompts = [each.prompt for each in completions]
    texts = [each.completion for each in completions]
    names = dict.fromkeys(name for row in columns.values() for name in row)
    data = {name: [columns.get(prompt, {}).get(name) for prompt in prompts] for name in names}
    found = []
    for name, reward in scorers.items():
        values = rewards.score(reward, prompts, texts, data)[0]
        if all(value is None for value in values):
            raise RewardError(f"the reward {name} scored none of {len(values)} completions (None for each)")
        found.append(Single(name, "reward", values))
    found.append(Single(KL, "nats / sequence", [each.kl for each in completions]))
    if judged is not None:
        found.append(Single(JUDGE, "nats / token", list(judged)))
    rows = describe([each._asdict() for each in completions], None, COPIED_FROM_PROMPT, COPIED_FROM_PROMPT)
    for name, unit in MEANS.items():
        values = [None if row.get(name) is None else float(row[name]) for row in rows]
        found.append(Single(name, unit, values))
    return [each for each in found if any(value is not None for value in each.values)]


def pooled() -> list[Pooled]:
    """The story measures of whole sets, each set of texts measured once."""
    return [Pooled(name, SET_UNITS[name], _remembered(measure)) for name, measure in SETS.items()]


def _remembered(of_texts: Callable[[Sequence[str]], float]) -> Callable[[Sequence[str]], float]:
    """The same function: a jackknife asks for each side of the same block several times."""
    found = cache(of_texts)
    return lambda texts: found(tuple(texts))


def by_prompt(completions: Sequence[Completion], values: Sequence[float | None]) -> dict[str, list[float]]:
    """The values of each prompt, in the order of prompts; those that are None are left out."""
    groups: dict[str, list[float]] = {each.prompt: [] for each in completions}
    for each, value in zip(completions, values, strict=True):
        if value is not None:
            groups[each.prompt].append(value)
    return groups


def texts_by_prompt(completions: Sequence[Completion]) -> dict[str, list[str]]:
    """The completions of each prompt."""
    groups: dict[str, list[str]] = {}
    for each in completions:
        groups.setdefault(each.prompt, []).append(each.completion)
    return groups
