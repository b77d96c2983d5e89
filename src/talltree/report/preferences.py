"""The page of a set of judgements: what was judged, how far people agree, and how they judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from talltree import checkpoint
from talltree.data.preferences import Judgement
from talltree.report import judgement_charts
from talltree.report.charts import Chart
from talltree.report.html import folded, section, sha256_source, style, svg_image, table, text
from talltree.report.words import MISSING, number, share

ABSENT = "–"
MOST_ITEMS = 10
"""Items at each end of the ranking that the page shows."""


class Row(NamedTuple):
    """One figure: what it is, its value, and what it is computed over."""

    label: str
    value: str
    note: str


def write(folder: Path, name: str, summary: Mapping[str, Any], judgements: Sequence[Judgement]) -> list[Path]:
    """Writes stats.html and one SVG a chart into `folder`; the paths, the page first."""
    charts = judgement_charts.charts(summary, judgements)
    page = folder / "stats.html"
    checkpoint.write_file(page, build(name, summary, list(charts.values())).encode())
    written = [page]
    for file, chart in charts.items():
        written.append(folder / f"{file}.svg")
        checkpoint.write_file(written[-1], chart.svg.encode())
    return written


def build(name: str, summary: Mapping[str, Any], charts: Sequence[Chart]) -> str:
    """The whole page as HTML, without a script; every text of the data is escaped."""
    sheet = style()
    policy = (
        f"default-src 'none'; img-src data:; style-src {sha256_source(sheet)}; base-uri 'none'; "
        "form-action 'none'"
    )
    cards = "".join(
        f'<div class="figure"><dt>{text(row.label)}</dt><dd>{text(row.value)}</dd>'
        f'<dd class="note">{text(row.note)}</dd></div>'
        for row in rows(summary)
    )
    figures = "".join(
        f"<figure><figcaption><strong>{text(chart.title)}</strong>{text(chart.caption)}</figcaption>"
        f"{svg_image(chart.svg, chart.alt)}</figure>"
        for chart in charts
    )
    body = "\n".join(
        (
            _masthead(name, summary),
            "<main>",
            section("figures", "Agreement and reliability", f'<dl class="figures">{cards}</dl>'),
            section("charts", "Pictures", f'<div class="charts">{figures}</div>') if figures else "",
            section("annotators", "Annotators", _annotators(summary)) if summary["reliability"] else "",
            section("items", "Items", _items(summary)),
            section("means", "What the figures mean", _meanings()),
            "</main>",
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="generator" content="Tall Tree judgements">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{text(name)} · judgements · Tall Tree</title>\n<style>{sheet}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _masthead(name: str, summary: Mapping[str, Any]) -> str:
    return (
        '<header class="masthead"><p class="eyebrow">Tall Tree · judgements</p>'
        f'<h1>{text(name)}</h1><p class="verdict">{text(verdict(summary))}</p></header>'
    )


def verdict(summary: Mapping[str, Any]) -> str:
    """The data in one sentence."""
    sizes = ", ".join(map(str, summary["candidates"]))
    named = summary["annotators"]
    people = f"{named:,} annotator{'' if named == 1 else 's'}" if named else "people without names"
    return (
        f"{summary['judgements']:,} judgements of {summary['tuples']:,} tuples of {sizes} by {people}, over "
        f"{summary['items']:,} items."
    )


def rows(summary: Mapping[str, Any]) -> list[Row]:
    """The figures that the page and the terminal show, in their order; what does not exist is left out."""
    found = [
        _alpha("Alpha of choices", summary["agreement"]["choices"], "over tuples"),
        _alpha("Alpha, ordinal", summary["agreement"]["ratings_ordinal"], "ratings, over items"),
        _alpha("Alpha, interval", summary["agreement"]["ratings_interval"], "ratings, over items"),
        _raw(summary["agreement"]["choices"]),
        *_split_half(summary["split_half"]),
        _self_agreement(summary["self_agreement"]),
        _seconds(summary["seconds"]),
        *map(_positions, summary["positions"]),
    ]
    return [row for row in found if row is not None]


def _alpha(label: str, found: Mapping[str, Any] | None, what: str) -> Row | None:
    if found is None:
        return None
    value = f"{found['alpha']:.3f}"
    low, high = (MISSING if found[end] is None else f"{found[end]:.3f}" for end in ("low", "high"))
    return Row(label, value, f"{low} to {high}; {what}: {found['units']:,} judged by two or more people")


def _raw(found: Mapping[str, Any] | None) -> Row | None:
    if found is None:
        return None
    return Row("Same best choice", share(found["agreed"]), "of pairs of people at the same tuple")


def _split_half(found: Mapping[str, Any] | None) -> list[Row]:
    if found is None:
        return []
    spread = f"{found['low']:.3f} to {found['high']:.3f} over {found['splits']} random halvings"
    stepped_up = MISSING if found["spearman_brown"] is None else f"{found['spearman_brown']:.3f}"
    return [
        Row("Split-half r", f"{found['pearson']:.3f}", f"{spread}; rank correlation {found['spearman']:.3f}"),
        Row("Spearman-Brown", stepped_up, "2r / (1 + r): the reliability of all judgements together"),
    ]


def _self_agreement(found: Mapping[str, Any] | None) -> Row | None:
    if found is None:
        return None
    chance = "" if found["chance"] is None else f"; chance {share(found['chance'])}"
    note = f"{share(found['low'])} to {share(found['high'])}, {found['repeats']:,} repeats{chance}"
    return Row("Same answer again", share(found["same"]), note)


def _seconds(found: Mapping[str, Any] | None) -> Row | None:
    if found is None:
        return None
    quartiles = f"quartiles {found['lower']:.1f} and {found['upper']:.1f} s, {found['timed']:,} timed"
    return Row("Median time", f"{found['median']:.1f} s", quartiles)


def _positions(found: Mapping[str, Any]) -> Row:
    total = sum(found["best"])
    shares = ", ".join(f"{100 * count / total:.0f}%" for count in found["best"])
    p = "too few" if found["p"] is None else f"p {number(found['p'])}"
    note = f"chi² {found['chi2']:.1f} for equal shares; best choices of {found['k']} by place: {shares}"
    return Row("Position bias", p, note)


def _annotators(summary: Mapping[str, Any]) -> str:
    header, *body = annotator_rows(summary)
    caption = "Each annotator against the scores that the others alone give (0.5 is chance)"
    return table(caption, list(map(text, header)), [[text(cell) for cell in cells] for cells in body])


def annotator_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """The header and a row an annotator, as the page and the terminal show them."""
    header = [
        "annotator",
        "judgements",
        "median time",
        "fast",
        "agrees with the others",
        "rating ρ",
        "to look at",
    ]
    return _without_empty([header, *map(_annotator, summary["reliability"])])


def _without_empty(rows: list[list[str]]) -> list[list[str]]:
    """Without the columns that no row has a value for."""
    kept = [any(cell != ABSENT for cell in column) for _, *column in zip(*rows, strict=True)]
    return [[cell for cell, keep in zip(cells, kept, strict=True) if keep] for cells in rows]


def _annotator(found: Mapping[str, Any]) -> list[str]:
    agreed = ABSENT
    if found["agreed"] is not None:
        agreed = f"{found['agreed']:.2f}"
        if found["low"] is not None:
            agreed += f" ({found['low']:.2f} to {found['high']:.2f}, n {found['compared']})"
    return [
        found["annotator"] or "(no name)",
        f"{found['judgements']:,}",
        ABSENT if found["median_seconds"] is None else f"{found['median_seconds']:.1f} s",
        ABSENT if found["median_seconds"] is None else str(found["fast"]),
        agreed,
        ABSENT if found["correlation"] is None else f"{found['correlation']:.2f}",
        "; ".join(found["flags"]) or ABSENT,
    ]


def _items(summary: Mapping[str, Any]) -> str:
    ranked = summary["scores"]
    if len(ranked) <= 2 * MOST_ITEMS:
        return _item_table("Every item, best first", ranked)
    return _item_table(f"The {MOST_ITEMS} best items", ranked[:MOST_ITEMS]) + folded(
        f"The {MOST_ITEMS} worst items", _item_table("Worst last", ranked[-MOST_ITEMS:])
    )


def _item_table(caption: str, ranked: Sequence[Mapping[str, Any]]) -> str:
    columns = {"best_minus_worst": "+", "rating": "", "bradley_terry": "+", "plackett_luce": "+"}
    header = ["item", "shown", "best − worst", "rating", "Bradley-Terry", "Plackett-Luce"]
    body = [
        [
            f'<span class="prompt">{text(row["prompt"])}</span>{text(row["text"])}',
            text(row["shown"]),
            *(ABSENT if row[key] is None else f"{row[key]:{sign}.2f}" for key, sign in columns.items()),
        ]
        for row in ranked
    ]
    header, *body = _without_empty([header, *body])
    return table(caption, header, body)


MEANINGS = {
    "Alpha": "Krippendorff's: 1 is perfect agreement, 0 what chance gives. Its interval resamples the units.",
    "Split-half r": "Items' scores from one random half of the judgements against those from the other half.",
    "Best − worst": "(times best − times worst) / times shown, from −1 to 1.",
    "Bradley-Terry, Plackett-Luce": "Strengths in nats: a difference of 1 is a preference of 73 to 27. "
    "Regularised; mean 0 in each group of items that comparisons join, not to be compared across groups.",
    "Agrees with the others": "Mean share of an annotator's pairs that the others' scores order the same "
    "way; their scores leave out the annotator's own judgements.",
}


def _meanings() -> str:
    return table(
        "Terms", ["Term", "Meaning"], [[text(term), text(meaning)] for term, meaning in MEANINGS.items()]
    )
