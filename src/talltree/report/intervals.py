"""Charts of the comparing stages: intervals beside each other, and rewards over the square root of KL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from talltree.report.draw import INK, LEAF, MUTED, SEVERAL, STOP, svg

LONGEST_LABEL = 44


class Row(NamedTuple):
    """One line of a forest: value with its interval (None: none), and whether it may be claimed."""

    label: str
    value: float
    low: float | None
    high: float | None
    is_shown: bool


class Series(NamedTuple):
    """Points with intervals over d; low and high None where there are none."""

    d: list[float]
    value: list[float]
    low: list[float | None]
    high: list[float | None]


def forest(rows: Sequence[Row], x: str, neutral: float) -> str:
    """Each row's value and interval from top to bottom around the neutral value, as an SVG.

    What may be claimed is filled and coloured, everything else is grey and hollow.
    """

    def paint(axes: Axes) -> None:
        axes.axvline(neutral, color=INK, linewidth=0.9, alpha=0.6)
        for place, row in zip(range(len(rows) - 1, -1, -1), rows, strict=True):
            colour = MUTED if not row.is_shown else LEAF if row.value > neutral else STOP
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [place, place], color=colour, linewidth=1.6, alpha=0.75)
            axes.plot(
                [row.value], [place], "o",
                color=colour, markersize=4, markerfacecolor=colour if row.is_shown else "white",
            )  # fmt: skip
        axes.set_yticks(range(len(rows) - 1, -1, -1), [_short(row.label) for row in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.grid(False, axis="y")
        axes.grid(True, axis="x")
        axes.set_xlabel(x)
        axes.xaxis.set_major_locator(MaxNLocator(6))

    return svg(paint, (6.4, 0.75 + 0.2 * len(rows)))


def rewards(
    gold: Series, proxy: Series, fit: tuple[Sequence[float], Sequence[float]] | None, peak: float | None
) -> str:
    """Gold (left axis, with its fitted curve) and proxy (right axis) over d, the peak marked, as an SVG."""

    def paint(axes: Axes) -> None:
        right = axes.twinx()
        right.grid(False)
        _points(right, proxy, SEVERAL[1], "s", "proxy")
        right.plot(proxy.d, proxy.value, color=SEVERAL[1], linewidth=1.0, alpha=0.6)
        right.set_ylabel("proxy reward", color=SEVERAL[1])
        _points(axes, gold, LEAF, "o", "gold")
        if fit is not None:
            axes.plot(*fit, color=LEAF, linewidth=1.8, label="gold, fitted")
        if peak is not None:
            axes.axvline(peak, color=STOP, linewidth=1.2, linestyle=(0, (4, 2.5)), label="fitted peak")
        axes.set_xlabel("d = sqrt(KL), sqrt(nats)")
        axes.set_ylabel("gold reward", color=LEAF)
        axes.set_xlim(left=0)
        axes.set_zorder(right.get_zorder() + 1)
        handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
        axes.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False,
            borderaxespad=0.1, fontsize=8, handlelength=1.3, handletextpad=0.4, columnspacing=1.1,
            labelcolor=INK,
        )  # fmt: skip

    return svg(paint, (5.4, 3.2))


def _points(axes: Axes, series: Series, colour: str, marker: str, label: str) -> None:
    for d, low, high in zip(series.d, series.low, series.high, strict=True):
        if low is not None and high is not None:
            axes.plot([d, d], [low, high], color=colour, linewidth=1.2, alpha=0.5)
    axes.plot(series.d, series.value, marker, color=colour, markersize=4, label=label)


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"
