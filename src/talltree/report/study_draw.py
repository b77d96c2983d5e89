"""Drawing of a study: bands over seeds, the frontier, heat maps, interactions; each returns one SVG text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator, PercentFormatter

from talltree.evals.seeds import OverSeeds
from talltree.report.draw import INK, LEAF, MUTED, svg
from talltree.report.study_facts import Curve
from talltree.report.words import number as plain

COLOURS = (LEAF, "#c07b1e", "#3d6c9e", "#8a4a7d")
"""As many lines as one panel holds; more settings get a panel each."""
FAINT = "#c9cdc3"
WIDE = (4.6, 3.3)
LETTER, HALF_LINE = 0.0173, 0.032
"""Width of a letter and half the height of a line of WIDE's labels, in parts of its axes."""
HEAT = LinearSegmentedColormap.from_list("heat", ["#f3f4ea", "#b9d39a", "#5d9a50", "#1f5a3a"])


class Point(NamedTuple):
    """A setting on the plane of KL and reward: its seeds, their mean, and whether it is on the frontier."""

    label: str
    kl: list[float]
    reward: list[float]
    is_chosen: bool

    @property
    def mean(self) -> tuple[float, float]:
        return float(np.mean(self.kl)), float(np.mean(self.reward))


class Series(NamedTuple):
    """One line of an interaction plot: values at each place of x with their intervals (None: none)."""

    label: str
    values: list[float | None]
    low: list[float | None]
    high: list[float | None]


def bands(
    curves: Sequence[Curve],
    behind: Sequence[Curve],
    y: str,
    is_share: bool,
    y_range: tuple[float, float] | None,
    x_end: int,
    asked: Sequence[float] = (),
) -> str:
    """Means with their bands over seeds, each line named at its end; `behind`, in grey, other panels' lines.

    asked: one value a curve that it was meant to reach, drawn dashed in its colour.
    """

    def paint(axes: Axes) -> None:
        for curve in behind:
            axes.plot(curve.steps, curve.mean, color=FAINT, linewidth=0.9, zorder=1.5)
        for curve, colour in zip(curves, COLOURS, strict=False):
            if curve.low:
                axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
            marker = "o" if len(curve.steps) < 12 else ""
            axes.plot(curve.steps, curve.mean, color=colour, linewidth=1.7, marker=marker, markersize=3)
        for place, colour in zip(asked, COLOURS, strict=False):
            axes.axhline(place, color=colour, linewidth=1.0, linestyle=(0, (4, 2.5)), zorder=1.2)
        axes.set_xlabel("step")
        axes.set_ylabel(y)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        first = min(curve.steps[0] for curve in (*curves, *behind))
        axes.set_xlim(first - 0.02 * (x_end - first), x_end + 0.02 * (x_end - first) + 1e-9)
        if y_range is not None:
            axes.set_ylim(*y_range)
        if is_share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if len(curves) > 1:
            _name_ends(axes, curves)

    return svg(paint)


def _name_ends(axes: Axes, curves: Sequence[Curve]) -> None:
    ends = [(curve.mean[-1], curve.label, colour) for curve, colour in zip(curves, COLOURS, strict=False)]
    low, high = axes.get_ylim()
    for (_, label, colour), place in zip(ends, spread_out([end[0] for end in ends], low, high), strict=True):
        axes.annotate(
            short_label(label), (1.0, place), xycoords=("axes fraction", "data"), xytext=(5, 0),
            textcoords="offset points", color=colour, fontsize=8, va="center", annotation_clip=False,
        )  # fmt: skip


def spread_out(values: Sequence[float], low: float, high: float, gap: float = 0.085) -> list[float]:
    """Places for labels beside values: as near as they may be, `gap` of the axis apart, in the same order."""
    least = gap * (high - low)
    order = sorted(range(len(values)), key=lambda at: values[at])
    places = [min(max(values[at], low), high) for at in order]
    for at in range(1, len(places)):
        places[at] = max(places[at], places[at - 1] + least)
    over = max(0.0, places[-1] - high)
    places[-1] -= over
    for at in range(len(places) - 2, -1, -1):
        places[at] = min(places[at], places[at + 1] - least)
    found = [0.0] * len(values)
    for at, place in zip(order, places, strict=True):
        found[at] = place
    return found


def short_label(label: str, longest: int = 22) -> str:
    """A label cut to fit beside a line."""
    return label if len(label) <= longest else f"{label[: longest - 1]}…"


def frontier(points: Sequence[Point], base: tuple[float, float] | None, reward: str) -> str:
    """Reward against KL: a small dot a seed, a large one a setting, a line along the settings that lead."""

    def paint(axes: Axes) -> None:
        chosen = sorted(point.mean for point in points if point.is_chosen)
        if base is not None:
            axes.plot(*base, "o", markerfacecolor="white", markeredgecolor=INK, markersize=6, zorder=5)
            axes.annotate("before", base, xytext=(6, -9), textcoords="offset points", fontsize=8, color=MUTED)
        if len(chosen) > 1:
            axes.plot(*zip(*chosen, strict=True), color=LEAF, linewidth=1.2, zorder=2, drawstyle="default")
        for point in points:
            colour = LEAF if point.is_chosen else MUTED
            kl, value = point.mean
            if len(point.kl) > 1:
                for x, y in zip(point.kl, point.reward, strict=True):
                    axes.plot([kl, x], [value, y], color=colour, linewidth=0.7, alpha=0.35, zorder=1.5)
                axes.plot(point.kl, point.reward, "o", color=colour, markersize=3, alpha=0.6, zorder=3)
            face = colour if point.is_chosen else "white"
            axes.plot([kl], [value], "o", color=colour, markerfacecolor=face, markersize=7, zorder=4)
        axes.set_xlabel("KL (nats / sequence)")
        axes.set_ylabel(reward)
        axes.grid(True, axis="x")
        axes.margins(x=0.16, y=0.14)
        _name_points(axes, points)

    return svg(paint, WIDE)


def _name_points(axes: Axes, points: Sequence[Point]) -> None:
    """Labels beside their points, each where it covers the least of points and of labels placed before."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return (point[0] - left) / (right - left), (point[1] - low) / (high - low)

    taken = [(x - 0.01, y - 0.015, x + 0.01, y + 0.015) for x, y in (place(each.mean) for each in points)]
    seeds = [place(each) for point in points for each in zip(point.kl, point.reward, strict=True)]
    taken += [(x - 0.006, y - 0.01, x + 0.006, y + 0.01) for x, y in seeds]
    chosen = sorted(place(point.mean) for point in points if point.is_chosen)
    for (a, b), (c, d) in zip(chosen, chosen[1:], strict=False):
        along = [(a + part * (c - a), b + part * (d - b)) for part in np.linspace(0, 1, 20)]
        taken += [(x - 0.006, y - 0.01, x + 0.006, y + 0.01) for x, y in along]
    for point in sorted(points, key=lambda each: (not each.is_chosen, each.mean)):
        x, y = place(point.mean)
        label = short_label(point.label, 30)
        box, at = min(
            ((_label_box(x, y, LETTER * len(label), dx, dy), (dx, dy)) for dx, dy in AROUND),
            key=lambda found: sum(_overlap(found[0], other) for other in (*taken, *OUTSIDE)),
        )
        taken.append(box)
        axes.annotate(
            label, (x, y), xycoords="axes fraction", xytext=(box[0], (box[1] + box[3]) / 2),
            textcoords="axes fraction", ha="left", va="center", fontsize=8,
            color=INK if point.is_chosen else MUTED, zorder=6,
            arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 0.7} if abs(at[1]) > 0.1 else None,
        )  # fmt: skip


AROUND = [
    (dx, dy) for dy in (0.0, 0.06, -0.06, 0.12, -0.12, 0.18, -0.18, 0.24, -0.24) for dx in (0.018, -0.018)
]  # fmt: skip
"""Where a label may stand, from its point, in parts of the axes; negative: to the left of it."""
OUTSIDE = ((-9.0, -9.0, 0.0, 9.0), (1.0, -9.0, 9.0, 9.0), (-9.0, 1.0, 9.0, 9.0), (-9.0, -9.0, 9.0, 0.0))
Box = tuple[float, float, float, float]


def _label_box(x: float, y: float, width: float, dx: float, dy: float) -> Box:
    start = x + dx if dx > 0 else x + dx - width
    return start, y + dy - HALF_LINE, start + width, y + dy + HALF_LINE


def _overlap(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    tall = min(one[3], other[3]) - max(one[1], other[1])
    return wide * tall if wide > 0 and tall > 0 else 0.0


def dial(points: Sequence[tuple[float, Sequence[float], OverSeeds]], limits: tuple[float, float]) -> str:
    """Reached against asked on logarithmic axes: (asked, its seeds, their mean), and the line of equality."""

    def paint(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot(limits, limits, color=MUTED, linewidth=1.0, linestyle=(0, (4, 2.5)), zorder=1.5)
        for asked, seeds, mean in points:
            if mean.low is not None and mean.high is not None:
                low = max(mean.low, limits[0])
                axes.plot([asked, asked], [low, mean.high], color=LEAF, linewidth=1.6, alpha=0.5, zorder=2)
            axes.plot([asked * 1.05] * len(seeds), seeds, "o", color=LEAF, markersize=3, alpha=0.6, zorder=3)
            axes.plot([asked], [mean.mean], "o", color=LEAF, markersize=6, zorder=4)
            axes.annotate(
                plain(mean.mean), (asked, mean.mean), xytext=(-6, 5), textcoords="offset points",
                fontsize=8.5, color=INK, ha="right", zorder=5,
            )  # fmt: skip
        axes.set_xlim(*limits)
        axes.set_ylim(*limits)
        places = sorted({asked for asked, *_ in points})
        axes.set_xticks(places, [f"{each:g}" for each in places])
        axes.set_yticks(places, [f"{each:g}" for each in places])
        axes.minorticks_off()
        axes.set_xlabel("KL asked (nats / sequence)")
        axes.set_ylabel("reached")

    return svg(paint)


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[float | None]],
    words: Sequence[Sequence[str]],
    axes_names: tuple[str, str],
    limits: tuple[float, float],
) -> str:
    """A value at each pair of levels, coloured and written out; a pair that was not run is left white.

    limits: the values of the lightest and the darkest colour.
    """

    def paint(axes: Axes) -> None:
        numbers = np.array([[np.nan if cell is None else cell for cell in row] for row in cells], dtype=float)
        low, high = limits
        axes.pcolormesh(numbers, cmap=HEAT, vmin=low, vmax=high, edgecolors="white", linewidth=2)
        middle = low + 0.62 * (high - low)
        for at, row in enumerate(cells):
            for place, cell in enumerate(row):
                colour = "white" if cell is not None and high > low and cell > middle else INK
                axes.text(
                    place + 0.5, at + 0.5, words[at][place], ha="center", va="center", fontsize=9,
                    color=colour if cell is not None else MUTED,
                )  # fmt: skip
        axes.invert_yaxis()
        axes.set_xticks(np.arange(len(columns)) + 0.5, [short_label(each, 14) for each in columns])
        axes.set_yticks(np.arange(len(rows)) + 0.5, [short_label(each, 16) for each in rows])
        axes.tick_params(length=0, labelcolor=INK)
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
        axes.set_ylabel(axes_names[0])
        axes.set_xlabel(axes_names[1])

    return svg(paint, (max(3.6, 0.8 * len(columns) + 1.2), max(1.6, 0.42 * len(rows) + 1.0)))


def interaction(
    places: Sequence[str],
    series: Sequence[Series],
    x: str,
    y: str,
    is_share: bool,
    y_range: tuple[float, float],
) -> str:
    """Lines over a few places, such as before and after; each named at its end, with its intervals."""

    def paint(axes: Axes) -> None:
        at = np.arange(len(places))
        shift = 0.03 * (len(places) - 1 or 1)
        for number, (line, colour) in enumerate(zip(series, COLOURS, strict=False)):
            moved = at + shift * (number - (len(series) - 1) / 2)
            values = [np.nan if value is None else value for value in line.values]
            axes.plot(moved, values, color=colour, linewidth=1.6, marker="o", markersize=4)
            for place, low, high in zip(moved, line.low, line.high, strict=True):
                if low is not None and high is not None:
                    axes.plot([place, place], [low, high], color=colour, linewidth=1.2, alpha=0.55)
        axes.set_xticks(at, [short_label(place, 14) for place in places])
        axes.tick_params(axis="x", labelcolor=INK)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.margins(x=0.12)
        if is_share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(*y_range)
        low, high = y_range
        ends = [
            (next(value for value in reversed(line.values) if value is not None), line.label, colour)
            for line, colour in zip(series, COLOURS, strict=False)
            if any(value is not None for value in line.values)
        ]
        for (_, label, colour), place in zip(
            ends, spread_out([end[0] for end in ends], low, high), strict=True
        ):
            axes.annotate(
                short_label(label, 18), (1.0, place), xycoords=("axes fraction", "data"), xytext=(4, 0),
                textcoords="offset points", color=colour, fontsize=8, va="center", annotation_clip=False,
            )  # fmt: skip

    return svg(paint)
