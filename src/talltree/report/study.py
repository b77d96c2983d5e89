"""The page of a study: what was varied, what it did, and how sure that is; one HTML file without a script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from talltree import checkpoint
from talltree.evals.seeds import OverSeeds, interval_words
from talltree.report import study_charts as charts
from talltree.report import study_gallery as gallery
from talltree.report.charts import Chart
from talltree.report.frame import frame
from talltree.report.html import folded, section, svg_image, table, text
from talltree.report.page import Written, require_free
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
    parts = [("results", "Results", _results(facts)), ("curves", "Curves", _curves(facts))]
    parts += [("factors", "Factors", factors)] if (factors := _factors(facts)) else []
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
    first = charts.measures(facts)[0] if charts.measures(facts) else None
    known = [
        (found, each) for each in facts.settings if first and (found := each.outcome(first.key)) is not None
    ]
    if first is None or not known:
        return [*sentences, "Nothing is measured yet."]
    is_less_better = "loss" in first.key or "bits" in first.key
    best, setting = (min if is_less_better else max)(known, key=lambda pair: pair[0].mean)
    value, interval = charts.write(first, best)
    words = f"{'Lowest' if is_less_better else 'Highest'} {first.title.lower()}: {setting.label}, {value}"
    words += f" ({interval}, {interval_words([best.kind])})" if interval else ""
    if (kl := setting.outcome("after.kl")) is not None and first.key != "after.kl":
        words += f", at {number(kl.mean)} nats of KL a sequence"
    sentences.append(words + ".")
    if any(_overlap(best, other) for other, _ in known if other is not best):
        sentences.append("Other settings' intervals overlap with it, so the order may be chance.")
    if seeds == 1:
        sentences.append("One seed a setting: differences may be chance, and no interval says otherwise.")
    return sentences


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
    header = ["Setting", "Seeds"]
    header += [f'{_kept(one.title)}<br><span class="unit">{_kept(one.unit)}</span>' for one in measures]
    rows = [[_kept(each.label), str(len(each.finished)), *_cells(each, measures)] for each in facts.settings]
    caption = f"Outcomes of each setting on fresh samples of its last stage; {interval_words(kinds)}"
    frontier = charts.frontier(facts)
    settings = table(caption, header, rows)
    if frontier is None:
        return settings
    head = f'<h3>{text(frontier.title)} <span class="unit">{text(frontier.caption)}</span></h3>'
    return settings + head + _figures([frontier._replace(title="", caption="")], "wide")


def _cells(setting: Setting, measures: Sequence[charts.Measure]) -> list[str]:
    cells = []
    for one in measures:
        value, interval = charts.write(one, setting.outcome(one.key))
        cells.append(_kept(value) + (f'<br><span class="unit">{_kept(interval)}</span>' if interval else ""))
    return cells


def _kept(words: str) -> str:
    """Short words on one line; the table scrolls where it is too wide."""
    return text(words).replace(" ", "\u00a0") if len(words) <= 28 else text(words)


# Curves and factors


def _curves(facts: StudyFacts) -> str:
    found = list(charts.curves(facts))
    if not found:
        return '<p class="missing">No trial has measured two steps yet.</p>'
    note = (
        '<p class="intro">A line is the mean over the seeds of a setting, its band the interval; it ends '
        "where the first of them ends. Panels of one metric share their scale.</p>"
    )
    if all(len(drawn) == 1 for _, _, drawn in found):
        return note + _figures([drawn[0]._replace(caption=words) for _, words, drawn in found])
    for measure, words, drawn in found:
        note += (
            f'<h3>{text(measure.title)} <span class="unit">{text(measure.unit)}; {text(words)}</span></h3>'
        )
        note += _figures(drawn)
    return note


def _factors(facts: StudyFacts) -> str:
    maps, lines = charts.heat_maps(facts), charts.interactions(facts)
    if not maps and not lines:
        return ""
    words = '<p class="intro">Means over seeds and over the factors that a chart does not name.</p>'
    content = words + (_figures(maps) if maps else "")
    return content + (f"<h3>Interactions</h3>{_figures(lines)}" if lines else "")


def _figures(drawn: Sequence[Chart], kind: str = "") -> str:
    figures = "".join(
        f"<figure>{_caption(chart)}{svg_image(chart.svg, chart.alt)}</figure>" for chart in drawn
    )
    return f'<div class="charts {kind}">{figures}</div>'


def _caption(chart: Chart) -> str:
    if not chart.title:
        return ""
    return f"<figcaption><strong>{text(chart.title)}</strong> {text(chart.caption)}</figcaption>"


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
