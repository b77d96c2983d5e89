"""One model against another on the same prompts: difference, interval, test, and what may be said of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from talltree.evals import significance
from talltree.evals.results import Metric
from talltree.evals.seeds import CERTAIN, OverSeeds, over_seeds
from talltree.evals.statistics import (
    CONFIDENCE,
    JACKKNIFE_BLOCKS,
    RESAMPLES,
    cluster_mean,
    jackknife,
    macro_average,
    ratio,
    within_0_and_1,
)

MANY_PROMPTS = 10
"""From so many prompts on, prompts are what is drawn anew; with fewer, they are fixed and draws are."""
LEVEL = 0.05

Values = Mapping[str, Sequence[float]]
"""The values of one measure by prompt: one number a completion."""
Texts = Mapping[str, Sequence[str]]
"""The completions by prompt."""


class Seeds(NamedTuple):
    """The figure of each training (or fine-tuning) seed of both sides, and their difference over seeds."""

    left: dict[str, float]
    right: dict[str, float]
    apart: OverSeeds


class Difference(NamedTuple):
    """One measure of two models: both values, right - left with its interval and tests.

    p_value: two-sided, None where there is no test; p_holm: corrected for all measures of its family, filled
    in by `corrected`. clusters: prompts, or items. over: what the interval is over, in words. seeds: None
    where nothing was trained more than once, nor is known of it.
    """

    measure: str
    left: Metric
    right: Metric
    difference: Metric
    p_value: float | None
    p_holm: float | None
    clusters: int
    over: str
    test: str
    seeds: Seeds | None = None


def of_completions(measure: str, unit: str, left: Values, right: Values, seed: int = 0) -> Difference:
    """A measure of single completions, averaged within each prompt, then over prompts.

    With MANY_PROMPTS or more, paired by prompt: percentile bootstrap over prompts and a sign-flip test of the
    prompts' differences. With fewer, for exactly these prompts: bootstrap and permutation of the completions
    within each. A prompt without a value on either side is left out. Raises ValueError where none is left.
    """
    shared = [prompt for prompt in left if left[prompt] and right.get(prompt)]
    before, after = ([list(side[prompt]) for prompt in shared] for side in (left, right))
    if not shared:
        raise ValueError(f"{measure}: no prompt has values on both sides")
    n = sum(map(len, before)) + sum(map(len, after))
    apart = [_mean(b) - _mean(a) for a, b in zip(before, after, strict=True)]
    one, two = (_side(groups, unit, seed) for groups in (before, after))
    if len(shared) >= MANY_PROMPTS:
        found = cluster_mean([[each] for each in apart], unit, seed)._replace(n=n)
        p_value: float | None = significance.sign_flip(apart, seed)
        test, over = "sign flips of prompts", "prompts"
    else:
        bounds = significance.within_prompts(before, after, RESAMPLES, CONFIDENCE, seed)
        low, high = (None, None) if bounds is None else bounds
        found = Metric(math.fsum(apart) / len(apart), low, high, n, unit)
        p_value = None if bounds is None else significance.permutation(before, after, seed)
        test, over = "permutation of completions", _these(len(shared))
    return Difference(measure, one, two, found, p_value, None, len(shared), over, test)


def of_sets(
    measure: str, unit: str, of_texts: Callable[[Sequence[str]], float], left: Texts, right: Texts
) -> Difference:
    """A measure of all completions of a model pooled, such as distinct-n, with the paired jackknife.

    Blocks of prompts are left out on both sides at once; with fewer than MANY_PROMPTS, single completions are
    blocked instead, for exactly these prompts. The test is the jackknife's t. Raises ValueError where the
    sides do not have the same prompts.
    """
    if set(left) != set(right) or not left:
        raise ValueError(f"{measure}: both sides need the same prompts, at least one")
    pairs: list[list[tuple[str, str]]] = [
        list(zip(left[prompt], right[prompt], strict=True)) for prompt in left
    ]
    over = "prompts"
    if len(pairs) < MANY_PROMPTS:
        over = _these(len(pairs))
        pairs = [[pair] for group in pairs for pair in group]

    def side(place: int) -> Callable[[Sequence[tuple[str, str]]], float]:
        return lambda chosen: of_texts([pair[place] for pair in chosen])

    def apart(chosen: Sequence[tuple[str, str]]) -> float:
        return side(1)(chosen) - side(0)(chosen)

    found = jackknife(apart, pairs, unit)
    blocks = min(len(pairs), JACKKNIFE_BLOCKS)
    one, two = (jackknife(side(place), pairs, unit) for place in (0, 1))
    one, two = (_possible(each) for each in (one, two))
    p_value = _jackknife_p(found, blocks)
    return Difference(measure, one, two, found, p_value, None, len(left), over, "jackknife t")


def of_items(
    measure: str, left: Mapping[str, Sequence[float]], right: Mapping[str, Sequence[float]], seed: int = 0
) -> Difference:
    """Items won (1, 0, or 0.5 for a tie) by two models, in groups such as BLiMP's paradigms, item by item.

    The figure is the mean over groups of each group's share; the bootstrap draws pairs of outcomes anew
    within each group. One group of ones and zeros is tested by McNemar's exact test, everything else by sign
    flips of the items' differences, each weighed as its group's mean weighs it. Raises ValueError for
    unequal items.
    """
    if not left or {name: len(each) for name, each in left.items()} != {
        name: len(each) for name, each in right.items()
    }:
        raise ValueError(f"{measure}: both sides need the same items, at least one")
    apart = {name: [b - a for a, b in zip(left[name], right[name], strict=True)] for name in left}
    unit = "share of items"
    found = macro_average(list(apart.values()), unit, seed)
    one, two = (macro_average(list(side.values()), unit, seed) for side in (left, right))
    every = [each for group in apart.values() for each in group]
    if len(left) == 1 and set(every) <= {-1.0, 0.0, 1.0}:
        test, p_value = "McNemar", significance.mcnemar(every.count(1.0), every.count(-1.0))
    else:
        test = "sign flips of items"
        weighed = [each / len(group) for group in apart.values() for each in group if each]
        p_value = significance.sign_flip(weighed, seed)
    return Difference(measure, one, two, found, p_value, None, len(every), "items", test)


def of_ratios(
    measure: str,
    unit: str,
    left: Sequence[float],
    right: Sequence[float],
    sizes: Sequence[float],
    over: str,
    seed: int = 0,
) -> Difference:
    """Sum of right / sum of sizes less sum of left / sum of sizes, over clusters such as documents.

    The interval is `statistics.ratio`'s, the test flips the signs of the clusters' differences.
    """
    apart = [b - a for a, b in zip(left, right, strict=True)]
    n = len(apart)
    one, two = (ratio(side, sizes, unit, n) for side in (left, right))
    p_value = significance.sign_flip(apart, seed) if n > 1 else None
    found = ratio(apart, sizes, unit, n)
    return Difference(measure, one, two, found, p_value, None, n, over, "sign flips of clusters")


def of_seeds(measure: str, unit: str, left: Mapping[str, float], right: Mapping[str, float]) -> Difference:
    """A measure of two settings, each trained with several seeds: the figure of each model by its name.

    Means over models. With CERTAIN or more models on a side their t interval, and Welch's interval and test
    of the difference; a side of one model is taken as it is. With two models on a side, or one on both,
    there is neither interval nor test of the difference. Raises ValueError for an empty side. Welch 1947.
    """
    if not left or not right:
        raise ValueError(f"{measure}: both sides need at least one model")
    sides = [list(side.values()) for side in (left, right)]
    means = [over_seeds(values) for values in sides]
    one, two = (
        _possible(
            Metric(each.mean, *((each.low, each.high) if each.kind == "t" else (None, None)), each.n, unit)
        )
        for each in means
    )
    apart, n = two.value - one.value, one.n + two.n
    low = high = p_value = None
    if {one.n, two.n} != {1} and all(count == 1 or count >= CERTAIN for count in (one.n, two.n)):
        errors = [_squared_error(values) for values in sides]
        error = math.sqrt(sum(errors))
        low = high = apart
        if error > 0:
            freedom = sum(errors) ** 2 / sum(
                each**2 / (len(values) - 1)
                for each, values in zip(errors, sides, strict=True)
                if len(values) > 1
            )
            half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
            low, high = apart - half, apart + half
            p_value = float(2 * stats.t.sf(abs(apart) / error, freedom))
        elif apart == 0:
            p_value = 1.0
    spread = OverSeeds(apart, low, high, min(one.n, two.n), "" if low is None else "t")
    found = Metric(apart, low, high, n, unit)
    seeds = Seeds(dict(left), dict(right), spread)
    return Difference(measure, one, two, found, p_value, None, n, "training seeds", "Welch's t", seeds)


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """The same with Holm's correction over all that have a test: they are one family."""
    tested = [i for i, each in enumerate(differences) if each.p_value is not None]
    adjusted = significance.holm([p for each in differences if (p := each.p_value) is not None])
    by_place = dict(zip(tested, adjusted, strict=True))
    return [each._replace(p_holm=by_place.get(i)) for i, each in enumerate(differences)]


def is_shown(each: Difference) -> bool:
    """Whether a difference may be claimed: the interval leaves out 0 and Holm's p-value is at most LEVEL.

    Where there are several seeds, what is known over them has to leave out 0 as well.
    """
    if each.p_holm is None or each.p_holm > LEVEL or not _leaves_out_0(each.difference[1:3]):
        return False
    return each.seeds is None or each.seeds.apart.low is None or _leaves_out_0(each.seeds.apart[1:3])


def as_json(each: Difference) -> dict[str, Any]:
    """A difference as plain JSON values, with what may be said of it: shown, hinted or not shown."""
    said = "shown" if is_shown(each) else "hinted" if is_hinted(each) else "not shown"
    metrics = {name: getattr(each, name).as_json() for name in ("left", "right", "difference")}
    seeds = None if each.seeds is None else each.seeds._asdict() | {"apart": each.seeds.apart._asdict()}
    return {**each._asdict(), **metrics, "seeds": seeds, "label": named(each.measure), "said": said}


def named(measure: str) -> str:
    """A measure's name for people: kl is KL from the reference, underscores are spaces.

    A reward of the user's own, a file or a folder, keeps its name and loses what is above it.
    """
    if "/" in measure and not any(sign in measure for sign in " (*"):
        *above, last = measure.rstrip("/").split("/")
        return "/".join([*above[-1:], last]) if ".py:" not in last else last
    if ".py:" in measure or "/" in measure:
        return measure
    return "KL from the reference" if measure == "kl" else measure.replace("_", " ")


def is_hinted(each: Difference) -> bool:
    """Whether the interval leaves out 0 but the corrected test does not bear it out."""
    return _leaves_out_0(each.difference[1:3]) and not is_shown(each)


def _leaves_out_0(interval: tuple[float | None, ...]) -> bool:
    low, high = interval
    return low is not None and high is not None and (low > 0 or high < 0)


def _squared_error(values: Sequence[float]) -> float:
    """s^2 / n of a mean; 0 for one value."""
    n = len(values)
    return float(np.var(values, ddof=1)) / n if n > 1 else 0.0


def _side(groups: Sequence[Sequence[float]], unit: str, seed: int) -> Metric:
    if len(groups) >= MANY_PROMPTS:
        return cluster_mean(groups, unit, seed)
    return macro_average(groups, unit, seed)


def _possible(metric: Metric) -> Metric:
    """A model's own figure, a share kept between 0 and 1; differences have no such bounds."""
    is_share = metric.unit.startswith("share") or metric.unit.endswith("0 to 1")
    return within_0_and_1(metric) if is_share else metric


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _these(prompts: int) -> str:
    return "completions of this one prompt" if prompts == 1 else f"completions of these {prompts} prompts"


def _jackknife_p(found: Metric, blocks: int) -> float | None:
    if found.low is None or found.high is None:
        return None
    error = (found.high - found.low) / 2 / float(stats.t.ppf((1 + CONFIDENCE) / 2, blocks - 1))
    if error == 0:
        return 1.0 if found.value == 0 else None
    return float(2 * stats.t.sf(np.abs(found.value) / error, blocks - 1))
