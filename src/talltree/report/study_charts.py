"""Which charts a study gets: curves in small multiples, the frontier, heat maps, interactions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from talltree.evals.seeds import OverSeeds
from talltree.report import study_draw as draw
from talltree.report.charts import Chart, smoothing
from talltree.report.study_facts import Curve, Setting, StudyFacts, curve, decided_by, setting_label
from talltree.report.words import figure, number, share

LINES = len(draw.COLOURS)


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
BOUNDED = {"share", "nats / sequence", "nats / token", "bits / byte", "tokens"}
"""Units of what is never below 0."""
OF_THE_CLOCK = "wall_time_seconds"
FEW = 6


def measures(facts: StudyFacts) -> list[Measure]:
    """The outcomes that the study's trials have, in the order of OUTCOMES."""
    there = {key: None for trial in facts.trials for key in trial.outcomes}
    known = [measure for measure in OUTCOMES if measure.key in there]
    return known or [Measure(key, key, "") for key in [each for each in there if each != OF_THE_CLOCK][:FEW]]


def word(measure: Measure) -> Callable[[Any], str]:
    """How figures of this measure are written."""
    return share if measure.is_share else figure(measure.unit)


def within(measure: Measure, value: OverSeeds | None) -> OverSeeds | None:
    """The figure with its interval cut to what the measure can be, which a t interval does not know.

    A share is 0 to 1; nats, bits and tokens are 0 upward, and their estimates of 0 may be just below it.
    """
    if value is None or measure.unit not in BOUNDED or value.low is None or value.high is None:
        return value
    low = min(max(value.low, 0.0), value.mean)
    return value._replace(low=low, high=min(value.high, 1.0) if measure.is_share else value.high)


def write(measure: Measure, value: OverSeeds) -> tuple[str, str]:
    """A figure and its interval as words, the second empty where there is none."""
    shown = word(measure)
    if value.low is None or value.high is None:
        return shown(value.mean), ""
    return shown(value.mean), f"{shown(value.low)} to {shown(value.high)}"


# Curves


class Panel(NamedTuple):
    """One of the small multiples: its title, its lines, and what is grey behind them."""

    title: str
    settings: Sequence[Setting]
    labels: Sequence[str]
    behind: Sequence[Setting]


def panels(facts: StudyFacts) -> list[Panel]:
    """At most LINES lines a panel: all in one, by all factors but one, or one setting each.

    The lines are levels of the last factor that has few enough, rather none that decides the reward.
    """
    settings = list(facts.settings)
    if len(settings) <= LINES and len(facts.factors) < 2:
        return [Panel("", settings, [setting.label for setting in settings], [])]
    few = [name for name in facts.factors if len(facts.factors[name]) <= LINES]
    apart = decided_by(facts, "reward")
    inner = max(few, key=lambda name: (name not in apart, few.index(name)), default=None)
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
    """Each metric that the trials have: over how many steps it is smoothed, and its panels on one scale."""
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
        yield measure, f"means over {window} neighbouring steps" if window > 1 else "", charts


def _limits(known: Sequence[Curve], is_share: bool) -> tuple[float, float]:
    """One y scale for all panels."""
    if is_share:
        return -0.02, 1.04
    values = [value for each in known for value in (*each.mean, *each.low, *each.high)]
    low, high = min(values), max(values)
    rim = 0.04 * (high - low) or 0.5
    return low - rim, high + rim


def _told(measure: Measure, lines: Sequence[Curve]) -> str:
    shown = word(measure)
    parts = [
        f"{line.label + ': ' if line.label else ''}{shown(line.mean[0])} at step {line.steps[0]} to "
        f"{shown(line.mean[-1])} at step {line.steps[-1]}"
        for line in lines
    ]
    return f"{measure.title} ({measure.unit}) by step, mean over seeds: {'; '.join(parts)}."


# What each nat bought


def by_reward(facts: StudyFacts) -> dict[str, list[Setting]]:
    """The settings by the reward that they train on, for one reward's points are none of another's.

    Titled by the level of the factor that decides the reward, and labelled by the others; where no factor
    does, or no other varies, one group without a title, or one each.
    """
    deciding = decided_by(facts, "reward")[:1]
    if not deciding:
        return {"": list(facts.settings)}
    others = {name: None for name in facts.factors if name not in deciding}
    groups: dict[str, list[Setting]] = {}
    for setting in facts.settings:
        title = setting_label(setting.levels, dict.fromkeys(deciding))
        label = setting_label(setting.levels, others) if others else title
        groups.setdefault(title, []).append(setting._replace(label=label))
    return groups


def points(settings: Sequence[Setting]) -> list[draw.Point]:
    """The settings that have reward and KL; chosen are those that no other beats in both."""
    found = []
    for setting in settings:
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


def frontiers(facts: StudyFacts) -> list[Chart]:
    """The settings on the plane of KL and reward, a chart for each reward that the study trains on.

    A chart needs two settings that have both.
    """
    found = {title: (points(settings), settings) for title, settings in by_reward(facts).items()}
    return [_frontier(title, *each) for title, each in found.items() if len(each[0]) > 1]


def _frontier(title: str, found: Sequence[draw.Point], settings: Sequence[Setting]) -> Chart:
    trials = [trial for setting in settings for trial in setting.trials]
    before = [trial.outcomes["before.reward"] for trial in trials if "before.reward" in trial.outcomes]
    base = (0.0, sum(before) / len(before)) if before else None
    chosen = ", ".join(
        f"{point.label} (reward {number(point.mean[1])} at {number(point.mean[0])} nats)"
        for point in sorted(found, key=lambda point: point.mean)
        if point.is_chosen
    )
    where = f"{title}: " if title else ""
    alt = f"{where}Reward against KL of {len(found)} settings; on the frontier: {chosen}."
    return Chart(title, "", alt, draw.frontier(found, base, "reward"))
