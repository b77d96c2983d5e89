"""The KL dial of a study: the KL that each setting was allowed against the KL that it reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from talltree.evals.seeds import OverSeeds, interval_words, over_seeds
from talltree.report import study_draw as draw
from talltree.report.charts import Chart, smoothing
from talltree.report.facts import series, value
from talltree.report.html import table, text
from talltree.report.study_cells import cell, figures, heading, kept
from talltree.report.study_facts import Curve, Setting, StudyFacts, Trial, curve, decided_by, setting_label
from talltree.report.words import number

TARGET, KL, COEF = "kl.target", "kl/sequence", "kl/coef"
LAST = 0.25
"""The part of a run at its end over which the KL reached is averaged."""
NEAR = 0.2
"""A budget counts as met within this part of it."""


class Budget(NamedTuple):
    """A setting with a KL budget: what it was allowed, and what its finished seeds reached, all in nats.

    others: the levels of the factors that do not decide the budget. reached: one value a seed, the mean of
    kl/sequence over the last quarter of its steps. fresh: after.kl, of the policy in final/. coef: the price
    of a nat in the last step. early: how many seeds ended before their last step. chosen: the steps that
    final/ is of, where one is not the last.
    """

    setting: Setting
    others: str
    target: float
    reached: list[float]
    fresh: OverSeeds | None
    coef: OverSeeds | None
    early: int
    chosen: list[int]

    @property
    def kl(self) -> OverSeeds:
        return over_seeds(self.reached)

    @property
    def ratio(self) -> OverSeeds:
        return over_seeds([each / self.target for each in self.reached])


def budgets(facts: StudyFacts) -> list[Budget]:
    """The settings with a kl.target and a KL in metrics.jsonl, by the other factors, then by the budget."""
    deciding = decided_by(facts, TARGET)
    others = {name: levels for name, levels in facts.factors.items() if name not in deciding}
    found = []
    for setting in facts.settings:
        targets = {value(trial.config, TARGET) for trial in setting.finished}
        target = targets.pop() if len(targets) == 1 else None
        if not isinstance(target, int | float):
            continue
        trials = [(trial, kl) for trial in setting.finished if (kl := _last_quarter(trial, KL)) is not None]
        if not trials:
            continue
        label = setting_label(setting.levels, others) if others else ""
        found.append(
            Budget(
                setting, label, float(target), [kl for _, kl in trials], setting.outcome("after.kl"),
                _ends([trial for trial, _ in trials]),
                sum(_ended_early(trial) for trial, _ in trials),
                [step for trial, _ in trials if (step := _chosen(trial)) is not None],
            )
        )  # fmt: skip
    order = list(dict.fromkeys(each.others for each in found))
    return sorted(found, key=lambda each: (order.index(each.others), each.target))


def _last_quarter(trial: Trial, key: str) -> float | None:
    """Mean of a metric over the steps after three quarters of those that the trial made; None without any."""
    steps, values = series(trial.rows, key)
    late = [each for step, each in zip(steps, values, strict=True) if step > (1 - LAST) * steps[-1]]
    return sum(late) / len(late) if late else None


def _ends(trials: Sequence[Trial]) -> OverSeeds | None:
    values = [found[-1] for trial in trials if (found := series(trial.rows, COEF)[1])]
    return over_seeds(values) if values else None


def _ended_early(trial: Trial) -> bool:
    asked = value(trial.config, "steps")
    return isinstance(asked, int) and bool(trial.rows) and trial.rows[-1]["step"] < asked


def _chosen(trial: Trial) -> int | None:
    """The step that final/ is of, if it is not the last one."""
    step = trial.outcomes.get("final_step")
    return int(step) if step is not None and trial.rows and step < trial.rows[-1]["step"] else None


# Words


def claim(found: Sequence[Budget]) -> list[str]:
    """How near the budgets were met: by the means, then by whole intervals, then from setting to setting."""
    furthest = max(found, key=lambda each: abs(each.ratio.mean - 1))
    miss, many = abs(furthest.ratio.mean - 1), len(found)
    named = f"{furthest.setting.label}: " if many > 1 else ""
    at = f"{number(furthest.kl.mean)} of {furthest.target:g} nats"
    if miss <= NEAR:
        means = f"within {_percent(miss)} of the KL budget in {_all(many)} (furthest, {named}{at})"
    else:
        near = sum(abs(each.ratio.mean - 1) <= NEAR for each in found)
        means = f"within {_percent(NEAR)} of the KL budget in {near} of {many} (furthest, {named}{at})"
    sure = [each.ratio for each in found if each.kl.kind == "t"]
    inside = sum((each.low or 0) >= 1 - NEAR and (each.high or 0) <= 1 + NEAR for each in sure)
    chance = (
        f"whole 95% intervals over seeds are within {_percent(NEAR)} in {inside} of {many}"
        if len(sure) == many
        else "fewer than three seeds a setting leave open what is chance"
    )
    return [f"Mean KL over the last quarter of the steps is {means}; {chance}.", *_alike(found)]


def _all(many: int) -> str:
    return "the one setting" if many == 1 else f"all {many} settings"


def _alike(found: Sequence[Budget]) -> list[str]:
    """How far the settings of one budget are from each other, at the budget where that is most."""
    groups: dict[float, list[float]] = {}
    for each in found:
        groups.setdefault(each.target, []).append(each.kl.mean)
    spread = {target: (max(means) - min(means)) / target for target, means in groups.items() if means[1:]}
    if not spread:
        return []
    target = max(spread, key=lambda each: spread[each])
    low, high = number(min(groups[target])), number(max(groups[target]))
    return [f"Settings of one budget differ most at {target:g} nats: their means go from {low} to {high}."]


def _percent(part: float) -> str:
    return f"{math.ceil(100 * part - 1e-9)}%"


# Figures


def charts(facts: StudyFacts, found: Sequence[Budget]) -> tuple[list[Chart], list[Chart]]:
    """For each level of the other factors: reached against asked, and the way there over the steps.

    All panels of a kind share their scales; more budgets than a panel has lines leave the second out.
    """
    panels: dict[str, list[Budget]] = {}
    for each in found:
        panels.setdefault(each.others, []).append(each)
    every = [value for each in found for value in (each.target, *each.reached) if value > 0]
    limits = min(every) / 1.3, max(every) * 1.3
    reached = [_reached(title, mine, limits) for title, mine in panels.items()]
    if max(map(len, panels.values())) > len(draw.COLOURS):
        return reached, []
    longest = max(len(trial.rows) for each in found for trial in each.setting.finished)
    drawn = {id(each): _way(each, smoothing(longest)) for each in found}
    ways = [way for way in drawn.values() if way is not None]
    top = 1.5 * max(each.target for each in found)
    high = max([top, *(value for way in ways for value in way.mean[len(way.mean) // 2 :])])
    end = max(way.steps[-1] for way in ways)
    return reached, [
        _ways(title, [(each, way) for each in mine if (way := drawn[id(each)]) is not None], high, end)
        for title, mine in panels.items()
    ]


def _reached(title: str, mine: Sequence[Budget], limits: tuple[float, float]) -> Chart:
    told = "; ".join(
        f"asked {each.target:g}, reached {number(each.kl.mean)}"
        + (f" ({number(each.kl.low)} to {number(each.kl.high)})" if each.kl.low is not None else "")
        for each in mine
    )
    points = [(each.target, each.reached, each.kl) for each in mine]
    alt = f"KL reached against KL asked, nats a sequence{', ' if title else ''}{title}: {told}."
    return Chart(title or "Reached against asked", "", alt, draw.dial(points, limits))


def _way(budget: Budget, window: int) -> Curve | None:
    found = curve(budget.setting, KL, window)
    return None if found is None else found._replace(label=f"{budget.target:g} asked")


def _ways(title: str, mine: Sequence[tuple[Budget, Curve]], high: float, end: int) -> Chart:
    lines, asked = [way for _, way in mine], [each.target for each, _ in mine]
    told = "; ".join(f"{way.label}: {number(way.mean[-1])} at step {way.steps[-1]}" for way in lines)
    svg = draw.bands(lines, [], "nats / sequence", False, (-0.04 * high, 1.06 * high), end, asked)
    alt = f"KL by step, mean over seeds{', ' if title else ''}{title}: {told}."
    return Chart(title or "The way there", "", alt, svg)


# The section


def section(facts: StudyFacts, found: Sequence[Budget]) -> str:
    """The section's HTML: the claim, the table, and the figures."""
    reached, ways = charts(facts, found)
    content = f'<p class="intro">{text(" ".join(claim(found)))}</p>{_table(found)}'
    note = "dots are seeds, bars intervals; on the line the budget is met"
    content += f'<h3>Reached against asked <span class="unit">{note}</span></h3>{figures(reached)}'
    if ways:
        note = "means, bands from the lowest to the highest seed; dashed: the budget"
        content += f'<h3>The way there <span class="unit">{note}</span></h3>{figures(ways)}'
    return content


def _table(found: Sequence[Budget]) -> str:
    kinds = [each.kl.kind for each in found]
    caption = f"KL in nats a sequence, by setting and budget; {interval_words(kinds)}"
    header = [
        "Setting", "Asked", heading("Reached", "last quarter of the steps"), heading("Reached / asked", ""),
        heading("Fresh samples", "of final/"), heading("Coefficient", "reward / nat, last step"),
    ]  # fmt: skip
    return table(caption, header, [_row(each) for each in found])


def _row(budget: Budget) -> list[str]:
    early = f"{budget.early} ended early" if budget.early else ""
    chosen = f"step {', '.join(map(str, sorted(set(budget.chosen))))}" if budget.chosen else ""
    return [
        kept(budget.setting.label),
        f"{budget.target:g}",
        cell(budget.kl, number, early),
        cell(budget.ratio, number),
        cell(budget.fresh, number, chosen),
        cell(budget.coef, number),
    ]
