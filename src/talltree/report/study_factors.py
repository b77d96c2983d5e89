"""Which charts the factors of a study get: heat maps and interactions, a panel for whatever else varies."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from talltree.evals.seeds import OverSeeds, over_seeds
from talltree.report import study_draw as draw
from talltree.report.charts import Chart
from talltree.report.study_charts import LINES, Measure, measures, within, write
from talltree.report.study_facts import StudyFacts, decided_by, setting_label, short
from talltree.report.words import number

MOST_PANELS = 8
"""Levels of further factors that get a panel each; beyond them charts are means over those factors."""
MOST_ROWS = 12
"""Levels that a heat map, or the x axis of an interaction, has room for."""
MEASURED = 3
"""Outcomes that get heat maps."""
PRICE = ("after.kl", "after.kl_per_token")


class Group(NamedTuple):
    """Charts of one outcome that share their scale: a heading, what they hold, and the charts."""

    title: str
    note: str
    charts: list[Chart]


class Split(NamedTuple):
    """One panel of a chart: its title, and the levels of the further factors that it is of."""

    title: str
    levels: Mapping[str, str]


def splits(facts: StudyFacts, shown: Sequence[str]) -> tuple[list[Split], str]:
    """A panel for each combination of the factors that are not `shown`, and no words.

    Where these would be more than MOST_PANELS: one panel, and words for what it averages over.
    """
    others = {name: levels for name, levels in facts.factors.items() if name not in shown}
    if not others:
        return [Split("", {})], ""
    found = [dict(zip(others, levels, strict=True)) for levels in itertools.product(*others.values())]
    there = [each for each in found if any(each.items() <= trial.setting.items() for trial in facts.trials)]
    if len(there) <= MOST_PANELS:
        return [Split(setting_label(each, others), each) for each in there], ""
    over = " and ".join(f"{short(name)} ({len(levels)} levels)" for name, levels in others.items())
    return [Split("", {})], f"means over {over}, whose {len(there)} combinations are too many to show"


def mean_at(
    facts: StudyFacts, levels: Mapping[str, str], measure: Measure, key: str | None = None
) -> OverSeeds | None:
    """An outcome, that of the measure or another of its kind, over all finished trials with these levels."""
    key = key or measure.key
    values = [
        trial.outcomes[key]
        for trial in facts.trials
        if trial.state == "finished" and key in trial.outcomes and levels.items() <= trial.setting.items()
    ]
    return within(measure, over_seeds(values)) if values else None


# Heat maps


def heat_maps(facts: StudyFacts) -> list[Group]:
    """The two factors with the most levels against each other, a map for each combination of the rest.

    Of the first MEASURED outcomes, each in one scale of colour. A factor that decides the reward is rather
    one of the rest. None below two factors, or where one of the two has more than MOST_ROWS levels.
    """
    apart = decided_by(facts, "reward")
    most = sorted(facts.factors, key=lambda name: (name in apart, -len(facts.factors[name])))[:2]
    if len(most) < 2 or any(len(facts.factors[name]) > MOST_ROWS for name in most):
        return []
    one, other = (name for name in facts.factors if name in most)
    panels, averaged = splits(facts, (one, other))
    chosen = [each for each in measures(facts) if each.key not in ("after.kl_per_token", "after.length")]
    groups = []
    for measure in chosen[:MEASURED]:
        cells = {panel.title: _cells(facts, panel, one, other, measure) for panel in panels}
        known = [cell.mean for rows in cells.values() for row in rows for cell in row if cell is not None]
        if not known:
            continue
        limits = min(known), max(known)
        drawn = [_map(facts, title, rows, (one, other), measure, limits) for title, rows in cells.items()]
        groups.append(Group(measure.title, _note(measure.unit, averaged, _of_its_own(measure, apart)), drawn))
    return groups


def _cells(
    facts: StudyFacts, panel: Split, one: str, other: str, measure: Measure
) -> list[list[OverSeeds | None]]:
    return [
        [mean_at(facts, {**panel.levels, one: a, other: b}, measure) for b in facts.factors[other]]
        for a in facts.factors[one]
    ]


def _map(
    facts: StudyFacts,
    title: str,
    cells: Sequence[Sequence[OverSeeds | None]],
    names: tuple[str, str],
    measure: Measure,
    limits: tuple[float, float],
) -> Chart:
    rows, columns = (facts.factors[name] for name in names)
    values = [[None if cell is None else cell.mean for cell in row] for row in cells]
    words = [["–" if cell is None else write(measure, cell)[0] for cell in row] for row in cells]
    told = "; ".join(
        f"{a}, {b}: {word}"
        for a, row in zip(rows, words, strict=True)
        for b, word in zip(columns, row, strict=True)
    )
    where = f", {title}" if title else ""
    alt = f"{measure.title} ({measure.unit}) by {short(names[0])} and {short(names[1])}{where}: {told}."
    svg = draw.heat(rows, columns, values, words, (short(names[0]), short(names[1])), limits)
    return Chart(title, "", alt, svg)


# Interactions


def interactions(facts: StudyFacts) -> list[Group]:
    """Before and after by level, and factor against factor; a panel for each combination of the rest.

    The lines are the levels of the first factor that has no more of them than a panel has colours.
    """
    lines = next((name for name, levels in facts.factors.items() if len(levels) <= LINES), None)
    if lines is None:
        return []
    groups = []
    for measure in measures(facts):
        before = measure.key.replace("after", "before")
        has_before = any(before in trial.outcomes for trial in facts.trials)
        if measure.key == before or not has_before or measure.key in PRICE:
            continue
        places = [Place("before", {}, before), Place("after", {}, measure.key)]
        groups += _interaction(facts, measure, f"{measure.title}, before and after", lines, "", places)
    across = [name for name in facts.factors if name != lines and len(facts.factors[name]) <= MOST_ROWS]
    apart = decided_by(facts, "reward")
    across.sort(key=lambda name: name in apart)
    for crossed, measure in itertools.product(across[:1], measures(facts)[:2]):
        if crossed in apart and "reward" in measure.key:  # a line from one reward to another says nothing
            continue
        places = [Place(level, {crossed: level}, measure.key) for level in facts.factors[crossed]]
        groups += _interaction(facts, measure, f"{measure.title} by {short(crossed)}", lines, crossed, places)
    return groups


class Place(NamedTuple):
    """A place on the x axis of an interaction: its label, its levels, and the outcome that is shown there."""

    label: str
    levels: Mapping[str, str]
    key: str


def _interaction(
    facts: StudyFacts, measure: Measure, title: str, lines: str, x: str, places: Sequence[Place]
) -> list[Group]:
    """One outcome's panels, all on one scale; none where every value is the same."""
    panels, averaged = splits(facts, (lines, x))
    drawn = [(panel.title, _series(facts, panel, lines, measure, places)) for panel in panels]
    every = [each for _, series in drawn for each in series]
    values = {value for each in every for value in each.values if value is not None}
    if len(values) < 2:
        return []
    ends = [*values, *(end for each in every for end in (*each.low, *each.high) if end is not None)]
    rim = 0.06 * (max(ends) - min(ends))
    limits = min(ends) - rim, max(ends) + rim
    labels = [place.label for place in places]
    charts = [
        _lines(panel, series, measure, title, labels, short(x), limits) for panel, series in drawn if series
    ]
    apart = _of_its_own(measure, decided_by(facts, "reward"))
    return [Group(title, _note(measure.unit, f"lines: {short(lines)}", averaged, apart), charts)]


def _series(
    facts: StudyFacts, panel: Split, lines: str, measure: Measure, places: Sequence[Place]
) -> list[draw.Series]:
    """A line for each level of `lines` that has a value anywhere."""
    found = []
    for level in facts.factors[lines]:
        at = {**panel.levels, lines: level}
        row = [mean_at(facts, {**at, **place.levels}, measure, place.key) for place in places]
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


def _lines(
    panel: str,
    series: Sequence[draw.Series],
    measure: Measure,
    title: str,
    places: Sequence[str],
    x: str,
    limits: tuple[float, float],
) -> Chart:
    told = "; ".join(
        f"{each.label}: "
        + ", ".join(f"{place} {number(value)}" for place, value in zip(places, each.values, strict=True))
        for each in series
    )
    svg = draw.interaction(places, series, x, measure.unit, measure.is_share, limits)
    where = f", {panel}" if panel else ""
    return Chart(panel, "", f"{title}{where} ({measure.unit}): {told}.", svg)


def _of_its_own(measure: Measure, apart: Sequence[str]) -> str:
    if not apart or "reward" not in measure.key:
        return ""
    return f"each {short(apart[0])} counts its own reward, so compare within one of them"


def _note(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
