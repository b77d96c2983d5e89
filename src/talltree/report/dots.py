"""One chart of an evaluation: a dot for each model, with its interval."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from talltree.report.draw import INK, LEAF, LEAF_LIGHT, STOP, svg

LONGEST_LABEL = 22

Measured = tuple[float, float | None, float | None]
"""Value, low and high; None where there is no interval."""


def dots(
    labels: Sequence[str], values: Sequence[Measured], x: str, is_share: bool, chance: float | None
) -> str:
    """The values from top to bottom as an SVG; `chance` is marked by a dashed line."""

    def paint(axes: Axes) -> None:
        places = [len(labels) - 1 - at for at in range(len(labels))]
        for place, (value, lowest, highest) in zip(places, values, strict=True):
            if lowest is not None and highest is not None:
                axes.plot(
                    [lowest, highest], [place, place], color=LEAF_LIGHT, linewidth=4, solid_capstyle="butt"
                )
            axes.plot([value], [place], "o", color=LEAF, markersize=5)
        if chance is not None:
            axes.axvline(chance, color=STOP, linewidth=1.1, linestyle=(0, (4, 2.5)))
        axes.set_yticks(places, [_short(label) for label in labels])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(-0.6, len(labels) - 0.4)
        axes.margins(x=0.08)
        axes.grid(False, axis="y")
        axes.grid(True, axis="x")
        axes.set_xlabel(x)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if is_share:
            low, high = axes.get_xlim()
            low, high = max(low, -0.02), min(high, 1.02)
            axes.set_xlim(low, high)
            decimals = 0 if high - low > 0.05 else 1 if high - low > 0.01 else 2
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))

    return svg(paint)


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"…{label[-LONGEST_LABEL + 1 :]}"
