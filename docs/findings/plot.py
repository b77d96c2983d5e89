"""Small multiples of several runs: python docs/findings/plot.py OUT.png LABEL=RUN [LABEL=RUN ...]."""

import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PANELS = (
    ("reward/mean", "reward"),
    ("kl/token", "KL (nats per token)"),
    ("diversity/distinct_2", "distinct-2"),
)
COLOURS = ("#4d4d4d", "#2e7d32", "#c77700", "#1f4e9c")
SMOOTH = 5


def smooth(values: list[float]) -> list[float]:
    """Mean of the last SMOOTH values at each place, so that nothing of the future leaks in."""
    windows = (values[max(0, i + 1 - SMOOTH) : i + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def main(out: str, *runs: str) -> None:
    """Draws the panels side by side, each run labelled at the end of its line."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (key, title) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for colour, run in zip(COLOURS, runs, strict=False):
            label, folder = run.split("=", 1)
            lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
            generations = [row["episodes"] for row in rows]
            values = [row[key] for row in rows]
            axes.plot(generations, values, color=colour, alpha=0.2, linewidth=0.8)
            axes.plot(generations, smooth(values), color=colour, linewidth=1.6)
            axes.annotate(
                f" {label}", (generations[-1], smooth(values)[-1]), color=colour, va="center", fontsize=8
            )
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("generations")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.14)
        axes.set_ylim(bottom=0)
    figure.savefig(out, dpi=130)
    print(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
