"""Calling a reward, checking what it returns, and adding several up."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from talltree.errors import RewardError
from talltree.rewards.user_code import beginning, blamed_on, one_line
from talltree.rewards.words import merged
from talltree.types import Reward, Span

_BATCH = ("prompts", "completions")


class Term(NamedTuple):
    """One part of a weighted sum; the name is the component's."""

    weight: float
    name: str
    reward: Reward


@dataclass(frozen=True)
class WeightedSum:
    """Sum of rewards: R = sum over terms of weight * R_term.

    A completion that any term does not score (None) is not scored: a missing part is not a part of 0. A
    term of weight 0 is computed and recorded without counting. Spans: those of the terms of positive
    weight. Raises RewardError as `score` does.
    """

    name: str
    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        names = [term.name for term in self.terms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a weighted sum needs terms with different names, not {names}")

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        return score(self, prompts, completions, columns)[0]

    def spans(self, prompt: str, completion: str) -> list[Span]:
        paid = [term.reward for term in self.terms if term.weight > 0]
        return merged([span for reward in paid for span in spans(reward, prompt, completion)])


def name_of(reward: Reward) -> str:
    """The reward's `name` if it has one, else its function's name, else its class's."""
    name = getattr(reward, "name", None)
    return name if isinstance(name, str) and name else getattr(reward, "__name__", type(reward).__name__)


def score(
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> tuple[list[float | None], dict[str, list[float | None]]]:
    """The batch's N rewards and each component's N rewards, every value a finite float or None.

    The components are a WeightedSum's terms before their weights, else the one reward under its name.
    columns are the dataset's, N values each; a reward gets those that its signature names, or all of them
    if it takes **columns. Raises RewardError, in one line, if the reward raises, needs a column that is not
    there, or returns another length, type, NaN or infinity; ValueError if columns are not N long.
    """
    short = {key: len(values) for key, values in columns.items() if len(values) != len(completions)}
    if len(prompts) != len(completions) or short:
        raise ValueError(f"{len(prompts)} prompts, {len(completions)} completions, columns of {short} values")
    if not isinstance(reward, WeightedSum):
        totals = _evaluated(name_of(reward), reward, prompts, completions, columns)
        return totals, {name_of(reward): totals}
    components = {
        term.name: _evaluated(term.name, term.reward, prompts, completions, columns) for term in reward.terms
    }
    weights = [term.weight for term in reward.terms]
    totals = [_total(weights, row) for row in zip(*components.values(), strict=True)]
    for index, (total, completion) in enumerate(zip(totals, completions, strict=True)):
        if total is not None and not math.isfinite(total):
            raise RewardError(f"reward {reward.name} adds up to {total} for {_which(index, completion)}")
    return totals, components


def spans(reward: Reward, prompt: str, completion: str) -> list[Span]:
    """The ranges of prompt + completion that earned the reward, sorted and apart; [] if it names none.

    Raises RewardError if the reward's own `spans` raises or returns anything but pairs within the text.
    """
    offered = getattr(reward, "spans", None)
    if offered is None:
        return []
    if isinstance(reward, WeightedSum):
        return reward.spans(prompt, completion)
    name, size = name_of(reward), len(prompt) + len(completion)
    with blamed_on(f"spans of reward {name}", _file(offered)):
        found = [tuple(span) for span in offered(prompt, completion)]
    for span in found:
        whole = len(span) == 2 and all(isinstance(x, int) and not isinstance(x, bool) for x in span)
        if not whole or not 0 <= span[0] < span[1] <= size:
            raise RewardError(
                f"spans of reward {name}: {one_line(repr(span))} is not a pair start < end within the "
                f"{size} characters of prompt + completion"
            )
    return merged(found)


def _evaluated(
    name: str,
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> list[float | None]:
    positional, keywords = _arguments(name, reward, prompts, completions, columns)
    with blamed_on(f"reward {name}", _file(reward)):
        returned = reward(*positional, **keywords)
    values = _as_list(name, returned)
    if len(values) != len(completions):
        raise RewardError(
            f"reward {name} returned {len(values)} values for {len(completions)} completions; "
            "it must return one for each"
        )
    return [_number(name, i, value, completions[i]) for i, value in enumerate(values)]


def _arguments(
    name: str,
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the call passes: prompts and completions by name where the signature names them, else by place."""
    clash = [key for key in _BATCH if key in columns]
    if clash:
        raise RewardError(f"the data's column {clash[0]!r} clashes with the reward's own argument; rename it")
    # Lists of its own: a reward that sorts or clears what it is given changes nothing for the next one.
    batch = {"prompts": list(prompts), "completions": list(completions)}
    data = {key: list(values) for key, values in columns.items()}
    try:
        parameters = list(inspect.signature(reward).parameters.values())
    except (ValueError, TypeError):  # written in C: its signature cannot be read
        return tuple(batch.values()), {}
    placed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    takes_places = len(placed) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    by_name = any(p.name in _BATCH for p in named) or (takes_all and not takes_places and not placed)
    if not by_name and not takes_places:
        raise RewardError(
            f"reward {name} must take prompts and completions, as f(prompts, completions, **columns)"
        )
    available = data if not by_name else batch | data
    wanted = named if by_name else [p for p in named if p not in placed[:2]]
    for parameter in wanted:
        if parameter.default is parameter.empty and parameter.name not in available:
            have = ", ".join(sorted(columns)) or "none"
            raise RewardError(
                f"reward {name} needs the column {parameter.name!r}, which the data lacks; "
                f"columns there: {have}"
            )
    names = available if takes_all else [p.name for p in wanted if p.name in available]
    return () if by_name else tuple(batch.values()), {key: available[key] for key in names}


def _as_list(name: str, returned: object) -> list[Any]:
    if isinstance(returned, list | tuple):
        return list(returned)
    # NumPy arrays, torch tensors and pandas series, told by what they offer so that none need be imported.
    to_list, dimensions = getattr(returned, "tolist", None), getattr(returned, "ndim", None)
    if callable(to_list) and dimensions == 1:
        return list(to_list())
    shape = "" if dimensions is None else f" of {dimensions} dimensions"
    raise RewardError(
        f"reward {name} returned {_article(type(returned).__name__)}{shape}; it must return a list of "
        "numbers or None, one for each completion"
    )


def _number(name: str, index: int, value: object, completion: str) -> float | None:
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
        value = value.item()  # type: ignore[attr-defined]  # a NumPy or torch scalar
    if value is None:
        return None
    which = _which(index, completion)
    if isinstance(value, bool) or not isinstance(value, int | float):
        shown = one_line(repr(value), 60)
        raise RewardError(
            f"reward {name} returned {shown} ({type(value).__name__}), not a number or None, for {which}"
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    if not math.isfinite(number):
        raise RewardError(f"reward {name} returned {number} for {which}; return a finite number or None")
    return number


def _total(weights: Sequence[float], row: Sequence[float | None]) -> float | None:
    products = [weight * value for weight, value in zip(weights, row, strict=True) if value is not None]
    return sum(products) if len(products) == len(row) else None


def _which(index: int, completion: str) -> str:
    return f"completion {index} ({beginning(completion)})"


def _article(noun: str) -> str:
    return noun if noun == "NoneType" else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _file(code: Any) -> str | None:
    function = getattr(code, "__func__", code)
    if not hasattr(function, "__code__"):
        function = type(code).__call__
    return getattr(getattr(function, "__code__", None), "co_filename", None)
