"""Which charts a study gets: curves in small multiples, the frontier, heat maps, interactions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from talltree.evals.seeds import OverSeeds, interval_words, over_seeds
from talltree.report import study_draw as draw
from talltree.report.charts import Chart, smoothing
from talltree.report.study_facts import Curve, Setting, StudyFacts, curve, setting_label, short
from talltree.report.words import figure, number, share

LINES = len(draw.COLOURS)
MOST_PAIRS = 3
"""Pairs of factors that get heat maps."""


class Measure(NamedTuple):
    """A metric of metrics.jsonl or an outcome of summary.json: its title and its unit."""

    key: str
    title: str
    unit: str
    is_share: bool = False


CURVES = (
    Measure("reward/mean", "Reward", "a story"),
    Measure("kl/sequence", "KL", "nats / sequence"),
    Measure("diversity/distinct_2", "Word pairs that differ", "share", True),
    Measure("completion/length", "Length", "tokens"),
    Measure("loss/validation", "Held-out loss", "nats / token"),
    Measure("loss/train", "Training loss", "nats / token"),
    Measure("accuracy/validation", "Held-out accuracy", "share", True),
)
OUTCOMES = (
    Measure("after.reward", "Reward", "a story"),
    Measure("after.kl", "KL", "nats / sequence"),
    Measure("after.kl_per_token", "KL per token", "nats / token"),
    Measure("after.distinct_2", "distinct-2", "share", True),
    Measure("after.unique", "Unique", "share", True),
    Measure("after.length", "Length", "tokens"),
    Measure("after.accuracy", "Accuracy", "share", True),
    Measure("after.loss", "Held-out loss", "nats / token"),
    Measure("final.loss", "Held-out loss", "nats / token"),
    Measure("final.bits_per_byte", "Bits per byte", "bits / byte"),
    # Of the last round. Every trial has a reward model of its own, so rewards of two are not compared first.
    Measure("rounds.rlhf/policy_preferred", "Policy preferred", "share", True),
    Measure("rounds.rlhf/reward_accuracy", "Reward model's accuracy", "share", True),
    Measure("rounds.rlhf/kl", "KL", "nats / sequence"),
    Measure("rounds.rlhf/reward_after", "Reward by its own model", "a story"),
)
"""What tables and charts show of a summary, where it is there; else its first numbers."""
OF_THE_CLOCK = "wall_time_seconds"
FEW = 6


def measures(facts: StudyFacts) -> list[Measure]:
    """The outcomes that the study's trials have, in the order of OUTCOMES."""
    there = {key: None for trial in facts.trials for key in trial.outcomes}
    known = [measure for measure in OUTCOMES if measure.key in there]
    return known or [Measure(key, key, "") for key in [each for each in there if each != OF_THE_CLOCK][:FEW]]


def write(measure: Measure, value: OverSeeds | None) -> tuple[str, str]:
    """A figure and its interval as words, the second empty where there is none."""
    if value is None:
        return "not measured", ""
    word = share if measure.is_share else figure(measure.unit)
    if value.low is None or value.high is None:
        return word(value.mean), ""
    return word(value.mean), f"{word(value.low)} to {word(value.high)}"


# Curves


class Panel(NamedTuple):
    """One of the small multiples: its title, its lines, and what is grey behind them."""

    title: str
    settings: Sequence[Setting]
    labels: Sequence[str]
    behind: Sequence[Setting]


def panels(facts: StudyFacts) -> list[Panel]:
    """At most LINES lines a panel: all in one, by all factors but one, or one setting each."""
    settings = list(facts.settings)
    if len(settings) <= LINES:
        return [Panel("", settings, [setting.label for setting in settings], [])]
    inner = next((name for name in reversed([*facts.factors]) if len(facts.factors[name]) <= LINES), None)
    if inner is None or len(facts.factors) < 2:
        return [
            Panel(setting.label, [setting], [""], [each for each in settings if each is not setting])
            for setting in settings
        ]
    outer = {name: levels for name, levels in facts.factors.items() if name != inner}
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(setting_label(setting.levels, outer), []).append(setting)
    only = {inner: facts.factors[inner]}
    return [
        Panel(title, group, [setting_label(each.levels, only) for each in group], [])
        for title, group in groups.items()
    ]


def curves(facts: StudyFacts) -> Iterator[tuple[Measure, str, list[Chart]]]:
    """Each metric that the trials have: what its bands are, and its panels on one scale."""
    for measure in CURVES:
        longest = max((len(trial.rows) for trial in facts.trials), default=0)
        window = smoothing(longest)
        drawn = {id(setting): curve(setting, measure.key, window) for setting in facts.settings}
        known = [each for each in drawn.values() if each is not None]
        if not known or max(len(each.steps) for each in known) < 2:
            continue
        if len({value for each in known for value in each.mean}) == 1:  # nothing to see
            continue
        limits, end = _limits(known, measure.is_share), max(each.steps[-1] for each in known)
        charts = []
        for panel in panels(facts):
            lines = [
                found._replace(label=label)
                for setting, label in zip(panel.settings, panel.labels, strict=True)
                if (found := drawn[id(setting)]) is not None
            ]
            behind = [found for setting in panel.behind if (found := drawn[id(setting)]) is not None]
            if lines:
                svg = draw.bands(lines, behind, measure.unit, measure.is_share, limits, end)
                charts.append(Chart(panel.title or measure.title, "", _told(measure, lines), svg))
        words = interval_words([each.kind for each in known])
        words += f"; means over {window} neighbouring steps" if window > 1 else ""
        yield measure, words, charts


def _limits(known: Sequence[Curve], is_share: bool) -> tuple[float, float]:
    """One y scale for all panels: all of the means, and of the bands as much as leaves those readable."""
    if is_share:
        return -0.02, 1.04
    means = [value for each in known for value in each.mean]
    low, high = min(means), max(means)
    room = 0.6 * (high - low) or 1.0
    edges = [value for each in known for value in (*each.low, *each.high)]
    low, high = (
        max(low - room, min([low, *edges])),
        min(high + room, max([high, *edges])),
    )
    rim = 0.04 * (high - low) or 0.5
    return low - rim, high + rim


def _told(measure: Measure, lines: Sequence[Curve]) -> str:
    word = share if measure.is_share else figure(measure.unit)
    parts = [
        f"{line.label + ': ' if line.label else ''}{word(line.mean[0])} at step {line.steps[0]} to "
        f"{word(line.mean[-1])} at step {line.steps[-1]}"
        for line in lines
    ]
    return f"{measure.title} ({measure.unit}) by step, mean over seeds: {'; '.join(parts)}."


# What each nat bought


def points(facts: StudyFacts) -> list[draw.Point]:
    """The settings that have reward and KL; chosen are those that no other beats in both."""
    found = []
    for setting in facts.settings:
        pairs = [
            (trial.outcomes["after.kl"], trial.outcomes["after.reward"])
            for trial in setting.finished
            if {"after.kl", "after.reward"} <= trial.outcomes.keys()
        ]
        if pairs:
            found.append(
                draw.Point(setting.label, [kl for kl, _ in pairs], [reward for _, reward in pairs], False)
            )
    return [point._replace(is_chosen=not any(_beats(other, point) for other in found)) for point in found]


def _beats(one: draw.Point, other: draw.Point) -> bool:
    (kl, reward), (least, most) = one.mean, other.mean
    return kl <= least and reward >= most and (kl, reward) != (least, most)


def frontier(facts: StudyFacts) -> Chart | None:
    """The settings on the plane of KL and reward; None where fewer than two have both."""
    found = points(facts)
    if len(found) < 2:
        return None
    before = [trial.outcomes["before.reward"] for trial in facts.trials if "before.reward" in trial.outcomes]
    base = (0.0, sum(before) / len(before)) if before else None
    chosen = ", ".join(
        f"{point.label} (reward {number(point.mean[1])} at {number(point.mean[0])} nats)"
        for point in sorted(found, key=lambda point: point.mean)
        if point.is_chosen
    )
    caption = "filled: no other setting earns more for less; small dots are seeds, fresh samples"
    alt = f"Reward against KL of {len(found)} settings; on the frontier: {chosen}."
    return Chart("Reward for KL", caption, alt, draw.frontier(found, base, "reward"))


# Factors


def _mean_at(facts: StudyFacts, levels: Mapping[str, str], key: str) -> OverSeeds | None:
    """An outcome over all finished trials that have these levels, whatever their other factors and seeds."""
    values = [
        trial.outcomes[key]
        for trial in facts.trials
        if trial.state == "finished"
        and key in trial.outcomes
        and all(trial.setting.get(name) == level for name, level in levels.items())
    ]
    return over_seeds(values) if values else None


def heat_maps(facts: StudyFacts) -> list[Chart]:
    """For each pair of factors, up to MOST_PAIRS, the first three outcomes at each pair of levels."""
    charts = []
    chosen = [each for each in measures(facts) if each.key not in ("after.kl_per_token", "after.length")][:3]
    for one, other in itertools.islice(itertools.combinations(facts.factors, 2), MOST_PAIRS):
        rows, columns = facts.factors[one], facts.factors[other]
        for measure in chosen:
            at = [[_mean_at(facts, {one: a, other: b}, measure.key) for b in columns] for a in rows]
            if all(cell is None for row in at for cell in row):
                continue
            cells = [[None if cell is None else cell.mean for cell in row] for row in at]
            words = [["–" if cell is None else write(measure, cell)[0] for cell in row] for row in at]
            told = "; ".join(
                f"{a}, {b}: {word}"
                for a, row in zip(rows, words, strict=True)
                for b, word in zip(columns, row, strict=True)
            )
            svg = draw.heat(rows, columns, cells, words, (short(one), short(other)))
            alt = f"{measure.title} ({measure.unit}) by {short(one)} and {short(other)}: {told}."
            charts.append(Chart(measure.title, measure.unit, alt, svg))
    return charts


def interactions(facts: StudyFacts) -> list[Chart]:
    """Before and after by level, a panel for each level of a second factor; and factor against factor.

    Panels of one outcome share their scale.
    """
    lines = next((name for name, levels in facts.factors.items() if len(levels) <= LINES), None)
    if lines is None:
        return []
    others = [name for name in facts.factors if name != lines]
    charts = []
    for measure in measures(facts):
        before = measure.key.replace("after", "before")
        has_before = any(before in trial.outcomes for trial in facts.trials)
        if measure.key == before or not has_before or measure.key in ("after.kl", "after.kl_per_token"):
            continue
        second: Sequence[str | None] = facts.factors[others[0]][:FEW] if len(others) == 1 else [None]
        sides = [before, measure.key]
        titled = [
            (
                measure.title if level is None else f"{measure.title}, {short(others[0])} {level}",
                _series(facts, lines, [({} if level is None else {others[0]: level}, key) for key in sides]),
            )
            for level in second
        ]
        charts += _interactions(measure, titled, lines, ("before", "after"), "")
    for measure in measures(facts)[:2] if others else ():
        columns = facts.factors[others[0]]
        crossed = _series(facts, lines, [({others[0]: level}, measure.key) for level in columns])
        title = f"{measure.title} by {short(others[0])}"
        charts += _interactions(measure, [(title, crossed)], lines, columns, short(others[0]))
    return charts


def _series(
    facts: StudyFacts, lines: str, places: Sequence[tuple[Mapping[str, str], str]]
) -> list[draw.Series]:
    """A line for each level of `lines`, whose places are an outcome at further levels."""
    found = []
    for level in facts.factors[lines]:
        row = [_mean_at(facts, {**where, lines: level}, key) for where, key in places]
        if any(cell is not None for cell in row):
            found.append(
                draw.Series(
                    setting_label({lines: level}, {lines: None}),
                    [None if cell is None else cell.mean for cell in row],
                    [None if cell is None else cell.low for cell in row],
                    [None if cell is None else cell.high for cell in row],
                )
            )
    return found


def _interactions(
    measure: Measure,
    titled: Sequence[tuple[str, Sequence[draw.Series]]],
    lines: str,
    places: Sequence[str],
    x: str,
) -> list[Chart]:
    """One chart a title, all on one scale; none where every value is the same."""
    drawn = [each for _, series in titled for each in series]
    values = {value for each in drawn for value in each.values if value is not None}
    if len(values) < 2:
        return []
    every = [*values, *(end for each in drawn for end in (*each.low, *each.high) if end is not None)]
    rim = 0.06 * (max(every) - min(every))
    limits = min(every) - rim, max(every) + rim
    charts = []
    for title, series in titled:
        if not series:
            continue
        told = "; ".join(
            f"{each.label}: "
            + ", ".join(f"{place} {number(value)}" for place, value in zip(places, each.values, strict=True))
            for each in series
        )
        svg = draw.interaction(places, series, x, measure.unit, measure.is_share, limits)
        charts.append(Chart(title, f"lines: {short(lines)}", f"{title} ({measure.unit}): {told}.", svg))
    return charts
