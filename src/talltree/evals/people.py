"""What people's judgements say of two sources: win rates and ratings, with intervals over prompts and raters.

Prompts and raters are both samples: other prompts and other people would have answered otherwise. The
intervals are of crossed random effects by the method of moments, without a distribution assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from talltree.evals.results import Metric
from talltree.evals.statistics import CONFIDENCE, wilson


class Choice(NamedTuple):
    """One answer to "which is better": 1 where the second source won, 0.5 for a tie, 0 where it lost."""

    prompt: str
    rater: str
    value: float


class Rating(NamedTuple):
    """One rating of one text, of whichever source."""

    prompt: str
    rater: str
    value: float


class WinRate(NamedTuple):
    """How often the second source was preferred; a tie counts as half, and is counted apart as well.

    p_value: against 1/2, None where there is no interval. raters: each rater's own win rate and answers.
    """

    rate: Metric
    wins: int
    losses: int
    ties: int
    prompts: int
    raters: dict[str, tuple[float, int]]
    p_value: float | None

    @property
    def rater_spread(self) -> float | None:
        """Standard deviation of the raters' own win rates; None for one rater."""
        rates = [rate for rate, _ in self.raters.values()]
        return float(np.std(rates, ddof=1)) if len(rates) > 1 else None


class Spread(NamedTuple):
    """Standard error of an estimate, and the degrees of freedom of the t distribution to use with it."""

    error: float
    freedom: float


def win_rate(choices: Sequence[Choice]) -> WinRate:
    """The second source's win rate, with a 95% interval over prompts and raters.

    Where every answer is the same, the interval is Wilson's, each prompt counted once (each rater, where
    there is one prompt). Raises ValueError for no choices.
    """
    if not choices:
        raise ValueError("a win rate needs at least one choice")
    values = np.array([choice.value for choice in choices])
    rate, n = float(values.mean()), len(choices)
    prompts = [choice.prompt for choice in choices]
    raters = [choice.rater for choice in choices]
    spread = crossed_spread((values - rate) / n, prompts, raters)
    low = high = p_value = None
    if spread is not None and spread.error > 0:
        low, high = (min(max(bound, 0.0), 1.0) for bound in _bounds(rate, spread))
        p_value = _p_value(rate - 0.5, spread)
    elif spread is not None:
        independent = max(len(set(prompts)), 1) if len(set(prompts)) > 1 else len(set(raters))
        low, high = wilson(rate * independent, independent)
        low, high = (low if rate > 0 else 0.0), (high if rate < 1 else 1.0)  # not a rounding away from it
        p_value = float(stats.binomtest(round(rate * independent), independent).pvalue)
    own = {name: [choice.value for choice in choices if choice.rater == name] for name in sorted(set(raters))}
    return WinRate(
        Metric(rate, low, high, n, "share of answers"),
        int(np.sum(values > 0.5)),
        int(np.sum(values < 0.5)),
        int(np.sum(values == 0.5)),
        len(set(prompts)),
        {name: (sum(given) / len(given), len(given)) for name, given in own.items()},
        p_value,
    )


def mean_rating(ratings: Sequence[Rating]) -> Metric:
    """Mean of the ratings, with a 95% interval over prompts and raters. Raises ValueError for none."""
    if not ratings:
        raise ValueError("a mean rating needs at least one rating")
    values = np.array([rating.value for rating in ratings])
    mean, n = float(values.mean()), len(ratings)
    spread = crossed_spread((values - mean) / n, [r.prompt for r in ratings], [r.rater for r in ratings])
    low, high = (None, None) if spread is None else _bounds(mean, spread)
    return Metric(mean, low, high, n, "points")


def rating_difference(left: Sequence[Rating], right: Sequence[Rating]) -> tuple[Metric, float | None]:
    """Mean of right - mean of left, paired through the prompts and raters that both have, and its p-value.

    Raises ValueError where a side has no ratings.
    """
    if not left or not right:
        raise ValueError("both sources need at least one rating")
    means = [float(np.mean([rating.value for rating in side])) for side in (left, right)]
    influence = [
        sign * (rating.value - mean) / len(side)
        for side, mean, sign in ((left, means[0], -1.0), (right, means[1], 1.0))
        for rating in side
    ]
    both = [*left, *right]
    difference = means[1] - means[0]
    spread = crossed_spread(influence, [r.prompt for r in both], [r.rater for r in both])
    if spread is None:
        return Metric(difference, None, None, len(both), "points"), None
    low, high = _bounds(difference, spread)
    return Metric(difference, low, high, len(both), "points"), _p_value(difference, spread)


def crossed_spread(
    influence: Sequence[float] | np.ndarray, prompts: Sequence[str], raters: Sequence[str]
) -> Spread | None:
    """Standard error of a mean over crossed prompts and raters, each answer's influence on it given.

    V_g = G/(G-1) * sum over groups of (sum of the group's influences)^2, for prompts, for raters and for
    prompt x rater cells; V = V_cells + max(V_prompts - V_cells, 0) + max(V_raters - V_cells, 0): what prompts
    add, what raters add, and the rest once. Degrees of freedom V^2 / (V_prompts^2 / (prompts - 1) +
    V_raters^2 / (raters - 1)). With one rater only prompts are drawn from, and the other way round; None with
    one of each. Cameron, Gelbach and Miller 2011; Satterthwaite 1946.
    """
    values = np.asarray(influence, dtype=float)
    by_prompt, prompt_count = _group_variance(values, prompts)
    by_rater, rater_count = _group_variance(values, raters)
    if prompt_count < 2 and rater_count < 2:
        return None
    if rater_count < 2:
        return Spread(math.sqrt(by_prompt), prompt_count - 1)
    if prompt_count < 2:
        return Spread(math.sqrt(by_rater), rater_count - 1)
    by_cell, _ = _group_variance(values, list(zip(prompts, raters, strict=True)))
    total = by_cell + max(by_prompt - by_cell, 0.0) + max(by_rater - by_cell, 0.0)
    if total == 0:
        return Spread(0.0, min(prompt_count, rater_count) - 1)
    parts = by_prompt**2 / (prompt_count - 1) + by_rater**2 / (rater_count - 1)
    freedom = total**2 / parts if parts > 0 else float(len(values) - 1)
    return Spread(math.sqrt(total), freedom)


def _group_variance(values: np.ndarray, groups: Sequence[object]) -> tuple[float, int]:
    """Variance of the sum of influences where groups are drawn, and the number of groups; 0 for one."""
    number = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    count = len(number)
    if count < 2:
        return 0.0, count
    sums = np.bincount([number[name] for name in groups], values, count)
    return float(count / (count - 1) * np.sum(sums**2)), count


def _bounds(value: float, spread: Spread) -> tuple[float, float]:
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, spread.freedom)) * spread.error
    return value - half, value + half


def _p_value(difference: float, spread: Spread) -> float:
    if spread.error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * stats.t.sf(abs(difference) / spread.error, spread.freedom))
