"""Charts of a set of judgements: places on the screen, time, halves, scores, annotators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from talltree.annotation.agreement import halving
from talltree.data.preferences import Judgement
from talltree.report import draw
from talltree.report.charts import Chart

MOST_ANNOTATORS = 20


def charts(summary: Mapping[str, Any], judgements: Sequence[Judgement]) -> dict[str, Chart]:
    """File name -> chart, for whatever these judgements have."""
    found = {f"places-{each['k']}": _places(each) for each in summary["positions"]}
    seconds = [judgement.seconds for judgement in judgements if judgement.seconds is not None]
    if len(seconds) > 1:
        found["seconds"] = _seconds(seconds, summary["seconds"])
    if summary["split_half"] is not None:
        found["halves"] = _halves(*halving(judgements, summary["settings"]["seed"]), summary["split_half"])
    found["scores"] = _scores(summary["scores"])
    compared = [each for each in summary["reliability"] if each["agreed"] is not None]
    if compared:
        found["annotators"] = _annotators(compared)
    return found


def _places(found: Mapping[str, Any]) -> Chart:
    k, best, worst = found["k"], found["best"], found["worst"]
    places = np.arange(1, k + 1)

    def paint(axes: Axes) -> None:
        sides = [("best", best, draw.LEAF)] + ([("worst", worst, draw.STOP)] if sum(worst) else [])
        width = 0.8 / len(sides)
        for side, (label, counts, colour) in enumerate(sides):
            offset = (side - (len(sides) - 1) / 2) * width
            axes.bar(places + offset, np.array(counts) / sum(counts), width * 0.92, color=colour, label=label)
        axes.axhline(1 / k, color=draw.INK, linewidth=1, linestyle=(0, (4, 2.5)))
        axes.set_xticks(places)
        axes.set_xlabel("place on the screen")
        axes.set_ylabel("share of choices")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if len(sides) > 1:
            draw.legend(axes)

    shares = ", ".join(
        f"{100 * count / sum(best):.0f}% at place {place}" for place, count in enumerate(best, 1)
    )
    return Chart("Places", "dashed: no bias", f"Best choices of {k}: {shares}.", draw.svg(paint))


def _seconds(seconds: Sequence[float], found: Mapping[str, Any]) -> Chart:
    def paint(axes: Axes) -> None:
        low = max(min(seconds), 0.1)
        edges = np.geomspace(low, max(max(seconds), low * 1.01), 25).tolist()
        axes.hist(
            np.clip(seconds, low, None), edges, color=draw.LEAF_LIGHT, edgecolor=draw.LEAF, linewidth=0.6
        )
        axes.axvline(found["median"], color=draw.LEAF, linewidth=1.4, linestyle=(0, (4, 2.5)))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("seconds (log scale)")
        axes.set_ylabel("judgements")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))

    alt = (
        f"Seconds a judgement: median {found['median']:.1f}, half of them between {found['lower']:.1f} and "
        f"{found['upper']:.1f}, {found['timed']} timed."
    )
    return Chart("Time", "dashed: median", alt, draw.svg(paint))


def _halves(one: Sequence[float], other: Sequence[float], found: Mapping[str, Any]) -> Chart:
    def paint(axes: Axes) -> None:
        size = 16 if len(one) <= 200 else 5
        axes.scatter(one, other, s=size, color=draw.LEAF, alpha=0.35, linewidths=0)
        low, high = min(*one, *other), max(*one, *other)
        axes.plot([low, high], [low, high], color=draw.INK, linewidth=0.9, linestyle=(0, (4, 2.5)))
        axes.set_xlabel("score from one half")
        axes.set_ylabel("from the other half")

    alt = f"Scores of {len(one)} items from two halves of the judgements; r is {found['pearson']:.2f}."
    caption = f"one halving; r {found['pearson']:.2f} over {found['splits']}"
    return Chart("Two halves", caption, alt, draw.svg(paint))


def _scores(rows: Sequence[Mapping[str, Any]]) -> Chart:
    are_ratings = all(row["rating"] is not None for row in rows)
    values = np.array([row["rating" if are_ratings else "best_minus_worst"] for row in rows])
    name = "mean rating" if are_ratings else "best − worst"

    def paint(axes: Axes) -> None:
        edges = np.linspace(values.min() - 1e-9, values.max() + 1e-9, 22).tolist()
        axes.hist(values, edges, color=draw.LEAF_LIGHT, edgecolor=draw.LEAF, linewidth=0.6)
        axes.set_xlabel(name)
        axes.set_ylabel("items")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))

    alt = f"Scores ({name}) of {len(values)} items: {values.min():.2f} to {values.max():.2f}."
    return Chart("Scores", name, alt, draw.svg(paint))


def _annotators(compared: Sequence[Mapping[str, Any]]) -> Chart:
    ranked = sorted(compared, key=lambda each: each["agreed"])
    shown = ranked[:MOST_ANNOTATORS]

    def paint(axes: Axes) -> None:
        for row, each in enumerate(shown):
            colour = draw.STOP if each["flags"] else draw.LEAF
            if each["low"] is not None:
                axes.plot([each["low"], each["high"]], [row, row], color=colour, linewidth=1.6)
            axes.plot(each["agreed"], row, "o", color=colour, markersize=4)
        axes.axvline(0.5, color=draw.INK, linewidth=1, linestyle=(0, (4, 2.5)))
        axes.set_yticks(range(len(shown)), [_short(each["annotator"]) for each in shown])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlabel("pairs ordered as the others do")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", labelsize=8 if len(shown) <= 10 else 5.5)

    few = f"the {len(shown)} lowest of {len(ranked)}; " if len(shown) < len(ranked) else ""
    parts = ", ".join(f"{each['annotator']} {each['agreed']:.2f}" for each in shown)
    return Chart(
        "Annotators", f"{few}dashed: chance", f"Agreement with the others: {parts}.", draw.svg(paint)
    )


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"
