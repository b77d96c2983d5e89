"""The page of a study: what was varied, what it did, and how sure that is; one HTML file without a script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from talltree import checkpoint
from talltree.evals.seeds import OverSeeds, interval_words
from talltree.report import study_charts as charts
from talltree.report import study_dial as dial
from talltree.report import study_factors as factors
from talltree.report import study_gallery as gallery
from talltree.report.frame import frame
from talltree.report.html import folded, section, table, text
from talltree.report.page import Written, require_free
from talltree.report.study_cells import cell, figures, heading, kept
from talltree.report.study_facts import Setting, StudyFacts, is_study, read, short
from talltree.report.words import duration, number

__all__ = ["build", "is_study", "write"]


def write(folder: str | Path, output: str | Path | None) -> Written:
    """Writes the page of the study in `folder`, by default to its report.html, in place of an older report.

    Raises RunError if there is no study with results, or `output` cannot be written.
    """
    facts = read(folder)
    target = Path(output) if output is not None else facts.folder / "report.html"
    require_free(target)
    shelves = gallery.shelves(facts)
    content = build(facts, shelves).encode()
    checkpoint.write_file(target, content)
    return Written(target, len(content), sum(len(shelf.cards) for shelf in shelves))


def build(facts: StudyFacts, shelves: Sequence[gallery.Shelf]) -> str:
    """The whole page as HTML."""
    parts = [("results", "Results", _results(facts))]
    if budgets := dial.budgets(facts):
        parts += [("dial", "KL budgets", dial.section(facts, budgets))]
    parts += [("curves", "Curves", _curves(facts))]
    parts += [("factors", "Factors", found)] if (found := _factors(facts)) else []
    parts += [("stories", "Stories", _stories(shelves)), ("trials", "Trials", _trials(facts))]
    body = "\n".join(section(identifier, title, content) for identifier, title, content in parts)
    links = [(identifier, title) for identifier, title, _ in parts]
    return frame(facts.name, "report of a study", _verdict(facts), _setting(facts), links, body)


def _setting(facts: StudyFacts) -> list[tuple[str, str]]:
    chain = " → ".join(each["stage"] for each in facts.chain)
    varied = [(short(name), ", ".join(levels)) for name, levels in facts.factors.items()]
    return [("Stages", chain), *varied, ("Seeds", ", ".join(map(str, facts.seeds)))]


def _verdict(facts: StudyFacts) -> list[str]:
    states = Counter(trial.state for trial in facts.trials)
    count, settings, seeds = len(facts.trials), len(facts.settings), len(facts.seeds)
    done = f"{states['finished']} of {count}" if states["finished"] < count else f"All {count}"
    many = f"{settings} setting{'s' * (settings != 1)}, {seeds} seed{'s' * (seeds != 1)} each"
    sentences = [f"{done} trials finished: {many}."]
    others = [f"{states[name]} {words}" for name, words in (("failed", "failed"), ("stopped", "given up"))
              if states[name]]  # fmt: skip
    if others:
        sentences.append(f"{' and '.join(others)}; why stands under Trials.".capitalize())
    best = [words for title, group in charts.by_reward(facts).items() for words in _best(facts, title, group)]
    if not best:
        return [*sentences, "Nothing is measured yet."]
    sentences += best
    if budgets := dial.budgets(facts):
        sentences.append(dial.claim(budgets)[0])
    if seeds == 1:
        sentences.append("One seed a setting: differences may be chance, and no interval says otherwise.")
    return sentences


def _best(facts: StudyFacts, title: str, group: Sequence[Setting]) -> list[str]:
    """The best setting of those with one reward, and whether that may be chance; nothing if none has one."""
    measure = next(iter(charts.measures(facts)), None)
    known = [(found, each) for each in group if measure and (found := each.outcome(measure.key)) is not None]
    if measure is None or not known:
        return []
    is_less_better = "loss" in measure.key or "bits" in measure.key
    best, setting = (min if is_less_better else max)(known, key=lambda pair: pair[0].mean)
    value, interval = charts.write(measure, charts.within(measure, best) or best)
    words = f"{'Lowest' if is_less_better else 'Highest'} {measure.title.lower()}"
    words += f" with {title}" if title else ""
    words += f": {setting.label}, {value}" if setting.label != title else f": {value}"
    words += f" ({interval}, {interval_words([best.kind])})" if interval else ""
    if (kl := setting.outcome("after.kl")) is not None and measure.key != "after.kl":
        words += f", at {number(kl.mean)} nats of KL a sequence"
    if any(_overlap(best, other) for other, _ in known if other is not best):
        words += "; other settings' intervals overlap with it, so the order may be chance"
    return [f"{words}."]


def _overlap(one: OverSeeds, other: OverSeeds) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high


# Results


def _results(facts: StudyFacts) -> str:
    measures = charts.measures(facts)
    if not measures:
        return '<p class="missing">No trial has finished yet.</p>'
    kinds = [
        found.kind
        for each in facts.settings
        for one in measures
        if (found := each.outcome(one.key)) is not None
    ]
    header = ["Setting", "Seeds", *(heading(one.title, one.unit) for one in measures)]
    rows = [
        [
            kept(each.label),
            str(len(each.finished)),
            *(cell(charts.within(one, each.outcome(one.key)), charts.word(one)) for one in measures),
        ]
        for each in facts.settings
    ]
    caption = f"Outcomes of each setting on fresh samples of its last stage; {interval_words(kinds)}"
    settings, frontiers = table(caption, header, rows), charts.frontiers(facts)
    if not frontiers:
        return settings
    note = "filled: no other setting earns more for less; small dots are seeds, fresh samples"
    return settings + f'<h3>Reward for KL <span class="unit">{note}</span></h3>' + figures(frontiers, "wide")


# Curves and factors


def _curves(facts: StudyFacts) -> str:
    found = list(charts.curves(facts))
    if not found:
        return '<p class="missing">No trial has measured two steps yet.</p>'
    grey = " Grey: the other settings." if any(panel.behind for panel in charts.panels(facts)) else ""
    note = (
        '<p class="intro">A line is the mean over the seeds of a setting, its band reaches from the lowest '
        "to the highest seed; it ends where the first of them ends. Panels of one metric share their "
        f"scale.{grey}</p>"
    )
    if all(len(drawn) == 1 for _, _, drawn in found):
        return note + figures([drawn[0]._replace(caption=words) for _, words, drawn in found])
    for measure, words, drawn in found:
        unit = "; ".join(each for each in (measure.unit, words) if each)
        note += f'<h3>{text(measure.title)} <span class="unit">{text(unit)}</span></h3>'
        note += figures(drawn)
    return note


def _factors(facts: StudyFacts) -> str:
    maps, lines = factors.heat_maps(facts), factors.interactions(facts)
    if not maps and not lines:
        return ""
    words = "Means over seeds, intervals as bars. Panels of one outcome share their scale."
    return f'<p class="intro">{words}</p>{_groups("Heat maps", maps)}{_groups("Interactions", lines)}'


def _groups(title: str, groups: Sequence[factors.Group]) -> str:
    """Each group under a heading of its own, or, where each has but one chart, all side by side."""
    if groups and all(len(group.charts) == 1 for group in groups):
        alone = [each.charts[0]._replace(title=each.title, caption=each.note) for each in groups]
        return f"<h3>{text(title)}</h3>{figures(alone)}"
    return "".join(
        f'<h3>{text(group.title)} <span class="unit">{text(group.note)}</span></h3>{figures(group.charts)}'
        for group in groups
    )


# Stories and trials


def _stories(shelves: Sequence[gallery.Shelf]) -> str:
    if not shelves:
        return '<p class="missing">No stage of this study has kept fresh stories from the same prompts.</p>'
    note = (
        '<p class="intro">The same prompts, setting by setting, from fresh samples of each setting’s first '
        "seed. <mark>Marked words</mark> earned the reward.</p>"
    )
    return note + "".join(gallery.html(shelf) for shelf in shelves)


def _trials(facts: StudyFacts) -> str:
    rows = [
        [
            text(trial.name),
            f'<span class="{"failed" if trial.state == "failed" else ""}">{text(trial.state)}</span>',
            text(duration(trial.seconds)),
            text(trial.reason),
        ]
        for trial in facts.trials
    ]
    found = table("Every trial, in trials/NAME of the study folder", ["Trial", "State", "Time", "Why"], rows)
    total = sum(trial.seconds for trial in facts.trials)
    shared = ", a link that trials share counted in each" if len(facts.chain) > 1 else ""
    note = f'<p class="intro">{text(duration(total))} of running in all{shared}.</p>'
    return found + note + folded("The study file", f"<pre>{text(facts.text)}</pre>")
