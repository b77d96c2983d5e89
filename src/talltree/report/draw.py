"""Drawing: each function returns one SVG text; matplotlib without pyplot, fonts of the reader's device."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

INK, MUTED, GRID = "#2b3028", "#5f665b", "#e6e8e0"
LEAF, LEAF_LIGHT, STOP = "#33762f", "#9cc98f", "#b0563b"
EARLY, LATE = "#8a8f9c", "#3f8a39"
SEVERAL = (LEAF, "#c07b1e", "#3d6c9e", "#5f665b")
TIME = LinearSegmentedColormap.from_list("leaf", ["#d8c04a", "#7fae48", "#2f7a3f", "#17423a"])
FONT = "DejaVu Sans"
READER_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
ARROW = {"arrowstyle": "-|>", "facecolor": INK, "edgecolor": "white", "lw": 0.6, "mutation_scale": 15}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "talltree",
    "font.family": FONT,
    "font.size": 8.5,
    "axes.edgecolor": "#b9beb3",
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "xtick.color": "#b9beb3",
    "ytick.color": "#b9beb3",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "text.color": INK,
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
SIZE = (3.6, 2.25)


class Line(NamedTuple):
    """One curve: its label ("" for the only one of a chart), steps and values."""

    label: str
    steps: list[int]
    values: list[float]


Band = tuple[list[int], list[float], list[float]]
"""Steps, lower edge, upper edge."""


def curve(
    lines: Sequence[Line],
    y: str,
    window: int,
    is_share: bool,
    band: Band | None,
    best: int | None,
    stop: int | None,
) -> str:
    """Curves over the steps, smoothed over `window` steps, with marks for the best step and the stop."""

    def paint(axes: Axes) -> None:
        if band is not None and len(band[0]) > 1:
            axes.fill_between(*band, color=LEAF_LIGHT, alpha=0.4, linewidth=0)
        elif band is not None:
            middle = [(low + high) / 2 for low, high in zip(band[1], band[2], strict=True)]
            half = [(high - low) / 2 for low, high in zip(band[1], band[2], strict=True)]
            axes.errorbar(band[0], middle, half, color=LEAF_LIGHT, linewidth=2)
        for line, colour in zip(lines, SEVERAL, strict=False):
            _line(axes, line, window, colour if len(lines) > 1 else LEAF)
        axes.set_xlabel("step")
        axes.set_ylabel(y)
        axes.xaxis.set_major_locator(_whole_ticks())
        if is_share:
            axes.set_ylim(-0.02, 1.04)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        elif min(min(line.values) for line in lines) >= 0:
            low, high = axes.get_ylim()
            axes.set_ylim(0 if band is None else min(0, low), high + 0.06 * (high - min(0, low)))
        axes.margins(x=0.02)
        _mark(axes, best, LEAF, (0, (4, 2.5)), "v")
        _mark(axes, stop, STOP, (0, (1, 1.5)), "s")
        if len(lines) > 1:
            legend(axes)

    return svg(paint)


def _whole_ticks() -> MaxNLocator:
    return MaxNLocator(5, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])


def _line(axes: Axes, line: Line, window: int, colour: str) -> None:
    if len(line.steps) == 1:
        axes.plot(line.steps, line.values, "o", color=colour, markersize=5, label=line.label)
        return
    if window == 1 or len(line.steps) < 2 * window:
        marker = "o" if len(line.steps) < 20 else ""
        axes.plot(
            line.steps,
            line.values,
            marker=marker,
            markersize=3,
            color=colour,
            linewidth=1.6,
            label=line.label,
        )
        return
    axes.plot(line.steps, line.values, color=colour, linewidth=0.7, alpha=0.35)
    axes.plot(line.steps, moving_mean(line.values, window), color=colour, linewidth=1.9, label=line.label)


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over an odd window; near an end over the neighbours that exist on both sides alike."""
    half, last = window // 2, len(values) - 1
    total = np.concatenate([[0.0], np.cumsum(values)])
    reach = [min(half, i, last - i) for i in range(len(values))]
    return [float(total[i + r + 1] - total[i - r]) / (2 * r + 1) for i, r in enumerate(reach)]


def _mark(axes: Axes, step: int | None, colour: str, dashes: Any, marker: str) -> None:
    if step is None:
        return
    axes.axvline(step, color=colour, linewidth=1.1, linestyle=dashes, zorder=1.5)
    transform = axes.get_xaxis_transform()
    axes.plot([step], [1.0], marker, transform=transform, color=colour, markersize=5, clip_on=False, zorder=4)


def legend(axes: Axes) -> None:
    """One row of labels above the axes, so that it hides nothing."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, borderaxespad=0.1, fontsize=8,
        handlelength=1.1, handletextpad=0.4, columnspacing=1.1, labelcolor=INK,
    )  # fmt: skip


def path(
    steps: Sequence[int], kl: Sequence[float], reward: Sequence[float], window: int, best: int | None
) -> str:
    """Reward against KL in the order of the steps: single steps, the smoothed way, arrows of time."""

    def paint(axes: Axes) -> None:
        way_x, way_y = moving_mean(kl, window), moving_mean(reward, window)
        points = axes.scatter(
            kl, reward, c=steps, cmap=TIME, s=8 if len(steps) > 60 else 16, alpha=0.8, linewidths=0, zorder=2
        )
        axes.plot(way_x, way_y, color=INK, linewidth=1.1, alpha=0.75, zorder=3)
        for start, end in _arrows(way_x, way_y):
            axes.annotate(
                "", xy=end, xytext=start, zorder=4,
                arrowprops=ARROW,
            )  # fmt: skip
        axes.plot(
            way_x[:1], way_y[:1], "o", markerfacecolor="white", markeredgecolor=INK, markersize=6, zorder=5
        )
        if best is not None and best in steps:
            at = list(steps).index(best)
            axes.plot(
                way_x[at : at + 1], way_y[at : at + 1], "v",
                color=LEAF, markeredgecolor="white", markersize=10, zorder=6,
            )  # fmt: skip
        axes.set_xlabel("KL (nats / sequence)")
        axes.set_ylabel("reward")
        axes.grid(True, axis="x")
        bar = axes.figure.colorbar(points, ax=axes, pad=0.03, aspect=28)
        bar.outline.set_visible(False)
        bar.set_label("step")
        bar.ax.yaxis.set_major_locator(_whole_ticks())

    return svg(paint)


def _arrows(x: Sequence[float], y: Sequence[float]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Up to four short pieces of the way at equal shares of its drawn length, where an arrow head fits."""
    points = np.column_stack([x, y])
    spread = np.ptp(points, axis=0)
    pieces = np.diff(points / np.where(spread > 0, spread, 1), axis=0)
    length = np.concatenate([[0.0], np.cumsum(np.hypot(pieces[:, 0], pieces[:, 1]))])
    if length[-1] == 0:
        return []
    found = []
    for part in (0.2, 0.45, 0.7, 0.95):
        i = int(np.clip(np.searchsorted(length, part * length[-1]), 1, len(points) - 1))
        if length[i] > length[i - 1]:
            found.append((tuple(points[i - 1]), tuple(points[i])))
    return list(dict.fromkeys(found))


def histogram(groups: Sequence[np.ndarray], labels: Sequence[str], x: str) -> str:
    """Shares of two groups of samples over the same bins; whole-number data get bins around whole numbers."""

    def paint(axes: Axes) -> None:
        edges = bins(np.concatenate(groups))
        for group, label, colour in zip(groups, labels, (EARLY, LATE), strict=True):
            counts, _ = np.histogram(group, edges)
            shares = counts / len(group)
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.45, label=label)
            axes.stairs(shares, edges, color=colour, linewidth=1.1)
            axes.axvline(float(np.median(group)), color=colour, linewidth=1.4, linestyle=(0, (4, 2.5)))
        axes.set_xlabel(x)
        axes.set_ylabel("share of stories")
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if axes.get_ylim()[1] > 0.05 else 1))
        legend(axes)

    return svg(paint)


def bins(values: np.ndarray) -> np.ndarray:
    """Edges of at most 40 equal bins over all values."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.array([low - 0.5, low + 0.5])
    if np.all(values == np.round(values)):
        width = max(1, int(np.ceil((high - low + 1) / 40)))
        return np.arange(low - 0.5, high + width + 0.5, width)
    return np.linspace(low, high, 31)


def svg(paint: Callable[[Axes], None], size: tuple[float, float] = SIZE) -> str:
    """One chart of this size, in inches, in the house's style as inline SVG: same data, same bytes."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().replace(f"'{FONT}'", READER_FONTS)
