"""Pieces of a study's page that several of its sections use: cells with intervals, headings, figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from talltree.evals.seeds import OverSeeds
from talltree.report.charts import Chart
from talltree.report.html import svg_image, text
from talltree.report.words import MISSING

SHORT = 28
"""Characters that are kept on one line of a cell."""


def kept(words: str) -> str:
    """Short words on one line; the table scrolls where it is too wide."""
    return text(words).replace(" ", "\u00a0") if len(words) <= SHORT else text(words)


def heading(title: str, unit: str) -> str:
    """A column's heading over its unit."""
    return kept(title) + (f'<br><span class="unit">{kept(unit)}</span>' if unit else "")


def cell(found: OverSeeds | None, write: Callable[[Any], str], note: str = "") -> str:
    """A mean over its interval, and a note below; words for what was not measured."""
    if found is None:
        return MISSING
    has_ends = found.low is not None and found.high is not None
    below = [f"{write(found.low)} to {write(found.high)}"] if has_ends else []
    lines = [f'<br><span class="unit">{kept(each)}</span>' for each in (*below, note) if each]
    return kept(write(found.mean)) + "".join(lines)


def figures(drawn: Sequence[Chart], kind: str = "") -> str:
    """Charts side by side, as many as fit."""
    shown = "".join(f"<figure>{_caption(chart)}{svg_image(chart.svg, chart.alt)}</figure>" for chart in drawn)
    return f'<div class="charts {kind}">{shown}</div>'


def _caption(chart: Chart) -> str:
    if not chart.title:
        return ""
    return f"<figcaption><strong>{text(chart.title)}</strong> {text(chart.caption)}</figcaption>"
