"""From samples and their rewards to measured points, fitted curves and advice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from talltree.evals import overoptimisation
from talltree.evals.bestofn import best_of_n_kl, pseudo_values, sizes
from talltree.evals.comparison import MANY_PROMPTS
from talltree.evals.overoptimisation import Fit, Kind, Points
from talltree.evals.results import Metric
from talltree.evals.statistics import cluster_mean
from talltree.evals.verdict import figure, with_interval
from talltree.stages.fresh import Completion
from talltree.stages.overopt.gold import Values
from talltree.stages.overopt.sources import BASE, Source

FEW_POINTS = 2
LINE = 120

Pairs = Sequence[tuple[str, float]]
"""(prompt, value) of samples."""


class Point(NamedTuple):
    """One measured place: its label, step or n, KL in nats, and units of proxy and gold (see `units`)."""

    label: str
    at: int
    kl: np.ndarray
    proxy: np.ndarray
    gold: np.ndarray


class Curve(NamedTuple):
    """A run's checkpoints, or best-of-n, in the order of step or n; base: the reference's gold units."""

    name: str
    kind: Kind
    points: list[Point]
    base: np.ndarray
    paired: bool


def units(values: Pairs, prompts: Sequence[str], by_prompt: bool) -> np.ndarray:
    """What intervals are made from: each prompt's mean, or every value with its prompt's own level taken out.

    Either way the mean over units is the mean over prompts of their means.
    """
    groups = [[value for prompt, value in values if prompt == each] for each in prompts]
    groups = [group for group in groups if group]
    means = [math.fsum(group) / len(group) for group in groups]
    if by_prompt:
        return np.array(means)
    middle = math.fsum(means) / len(means)
    shifted = [value - mean + middle for group, mean in zip(groups, means, strict=True) for value in group]
    return np.array(shifted)


def common_prompts(*parts: Mapping[str, Pairs]) -> list[str]:
    """The prompts of which every source has a value in every part, in their order."""
    every = [dict.fromkeys(prompt for prompt, _ in values) for part in parts for values in part.values()]
    return [prompt for prompt in every[0] if all(prompt in each for each in every)]


def run_curve(
    name: str,
    sources: Sequence[Source],
    sampled: Mapping[str, Sequence[Completion]],
    proxy: Values,
    gold: Values,
) -> Curve:
    """The checkpoints of one run; with MANY_PROMPTS or more shared prompts, units are prompts."""
    names = [BASE, *(source.name for source in sources)]
    prompts = common_prompts({name: gold.by_source[name] for name in names})
    by_prompt = len(prompts) >= MANY_PROMPTS

    def of(values: Mapping[str, Pairs], source: str) -> np.ndarray:
        return units(values[source], prompts, by_prompt)

    kl = {
        source.name: [(each.prompt, each.kl) for each in sampled[source.name] if each.kl is not None]
        for source in sources
    }
    points = [
        Point(
            f"step {source.step}",
            source.step,
            of(kl, source.name),
            of(proxy.by_source, source.name),
            of(gold.by_source, source.name),
        )
        for source in sources
    ]
    return Curve(name, "rl", points, of(gold.by_source, BASE), by_prompt)


def best_of_curve(
    completions: Sequence[Completion],
    proxy: Sequence[float | None],
    gold: Sequence[float | None],
    largest: int,
) -> Curve | None:
    """Best-of-n of the reference for n up to `largest`, over prompts with more scored samples than that.

    Units are prompts where there are MANY_PROMPTS, else the draws' pseudo-values. None where no prompt has
    enough.
    """
    groups: dict[str, tuple[list[float], list[float]]] = {}
    for each, of_proxy, of_gold in zip(completions, proxy, gold, strict=True):
        if of_proxy is not None and of_gold is not None:
            group = groups.setdefault(each.prompt, ([], []))
            group[0].append(of_proxy)
            group[1].append(of_gold)
    groups = {prompt: group for prompt, group in groups.items() if len(group[0]) > largest}
    if not groups:
        return None
    by_prompt = len(groups) >= MANY_PROMPTS
    prompts = list(groups)
    points = []
    for n in sizes(largest):
        found = [
            units(
                [
                    (prompt, float(value))
                    for prompt, group in groups.items()
                    for value in pseudo_values(group[0], group[place], n)
                ],
                prompts,
                by_prompt,
            )
            for place in (0, 1)
        ]
        points.append(Point(f"n = {n}", n, np.array([best_of_n_kl(n)] * len(found[0])), *found))
    return Curve("best-of-n", "bon", points, points[0].gold, True)


def fitted(curve: Curve) -> Fit | None:
    """The fit of a curve, None where fewer than two points of it have KL above 0."""
    different = {round(float(point.kl.mean()), 9) for point in curve.points if point.kl.mean() > 0}
    if len(different) < FEW_POINTS:
        return None
    points = Points(
        [point.kl for point in curve.points], [point.gold for point in curve.points], curve.base, curve.paired
    )
    return overoptimisation.fit_points(curve.kind, points)


def mean_of(values: np.ndarray, unit: str) -> Metric:
    """The mean over units with its bootstrap interval."""
    return cluster_mean([[float(value)] for value in values], unit)


def as_json(curve: Curve, fit: Fit | None) -> dict[str, Any]:
    """A curve, its fit and its advice as plain JSON values."""
    return {
        "name": curve.name,
        "kind": curve.kind,
        "base_gold": mean_of(curve.base, "gold").as_json(),
        "points": [
            {
                "label": point.label,
                "at": point.at,
                "d": math.sqrt(max(float(point.kl.mean()), 0.0)),
                "kl": mean_of(point.kl, "nats / sequence").as_json(),
                "proxy": mean_of(point.proxy, "proxy").as_json(),
                "gold": mean_of(point.gold, "gold").as_json(),
            }
            for point in curve.points
        ],
        "fit": None if fit is None else _fit_json(fit, float(curve.base.mean())),
        "advice": advice(curve, fit),
    }


def _fit_json(fit: Fit, base: float) -> dict[str, Any]:
    """The fit, and its curve as LINE points of gold reward, for drawing."""
    d = np.linspace(0, fit.largest_d, LINE)
    gold = base + overoptimisation.gains(fit.kind, d, _coefficients(fit))
    return {
        "line": {"d": d.tolist(), "gold": gold.tolist()},
        "formula": overoptimisation.FORMULAS[fit.kind],
        **{
            key: value.as_json() if isinstance(value, Metric) else value
            for key, value in fit._asdict().items()
        },
    }


def advice(curve: Curve, fit: Fit | None) -> list[str]:
    """Where to stop, in sentences that say no more than the fit and its intervals show."""
    best = max(curve.points, key=lambda point: float(point.gold.mean()))
    last = curve.points[-1]
    measured = (
        f"The highest gold measured is {with_interval(mean_of(best.gold, 'gold'))} at {best.label}, "
        f"{figure(float(best.kl.mean()))} nats; the reference's is "
        f"{with_interval(mean_of(curve.base, 'gold'))}."
    )
    if fit is None:
        return [f"{curve.name}: too few points with KL above 0 for a fit.", measured]
    largest = fit.largest_d**2
    if fit.peak_d is None or fit.peak_gain is None or fit.fall is None:
        sentence = (
            f"{curve.name}: no gold peak within the range, up to {figure(largest)} nats; the fitted gold "
            "still rises there"
        )
        if float(overoptimisation.gains(fit.kind, [fit.largest_d], _coefficients(fit))[0]) <= 0:
            sentence = (
                f"{curve.name}: fitted gold ends no higher than the reference's, at {figure(largest)} nats"
            )
        if fit.peak_share > 0.05:
            sentence += f", though in {fit.peak_share:.0%} of the resamples it has a peak before that"
        return [f"{sentence}.", measured]
    peak = fit.peak_d.value
    near = min(curve.points, key=lambda point: abs(math.sqrt(max(float(point.kl.mean()), 0.0)) - peak))
    where = f"{figure(peak**2)} nats (d {with_interval(fit.peak_d)}; nearest: {near.label})"
    if fit.fall.low is not None and fit.fall.low > 0:
        rest = (
            f"Stop near {where}. Beyond it the fitted gold falls by {with_interval(fit.fall)} up to "
            f"{last.label}, while the proxy goes from {figure(float(near.proxy.mean()))} to "
            f"{figure(float(last.proxy.mean()))}."
        )
    else:
        rest = (
            f"The fitted gold peaks near {where}, but a fall after it is not shown: "
            f"{with_interval(fit.fall)} up to {last.label}. Treat the peak as a guess."
        )
    return [f"{curve.name}: {rest}", measured]


def _coefficients(fit: Fit) -> overoptimisation.Coefficients:
    return overoptimisation.Coefficients(fit.alpha.value, fit.beta.value)
