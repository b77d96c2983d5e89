"""A sweep as small multiples: python docs/findings/studies.py OUT.png STUDY FACTOR [STUDY ...].

A column for each level of FACTOR, a row for each measure, a line for each seed. Prints, level by level
and seed by seed, when the policy left its stories; reward, KL and diversity of the last ten steps.
"""

import statistics
import sys
from pathlib import Path

import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from settings import metrics

PANELS = (
    ("reward/mean", "reward"),
    ("kl/token", "KL, nats per token"),
    ("diversity/distinct_2", "distinct-2"),
)
COLOURS = ("#2e7d32", "#c77700", "#1f4e9c", "#8a4a7d", "#4d4d4d")
SMOOTH, LAST = 5, 10
LEFT = 0.4
"""A policy has left its stories once a batch's distinct-2, smoothed, is below this (untrained: 0.75)."""


def smooth(values: list[float]) -> list[float]:
    """Mean of the last SMOOTH values at each place, so that nothing of the future leaks in."""
    windows = (values[max(0, i + 1 - SMOOTH) : i + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def seeds_by_level(studies: list[str], factor: str) -> dict[str, dict[int, list[dict[str, float]]]]:
    """The metrics of every trial that has begun: level of the factor -> seed -> rows."""
    levels: dict[str, dict[int, list[dict[str, float]]]] = {}
    for study in studies:
        for path in sorted(Path(study).glob("trials/*/trial.yaml")):
            trial = yaml.safe_load(path.read_text(encoding="utf-8"))
            folder = path.parent / list(trial["folders"].values())[-1]
            if (folder / "metrics.jsonl").exists():
                level = levels.setdefault(str(trial["setting"][factor]), {})
                level[trial["seed"]] = metrics(folder)
    return levels


def order(level: str) -> tuple[float, str]:
    """Numbers by their size, words behind them."""
    try:
        return float(level), level
    except ValueError:
        return float("inf"), level


def table(levels: dict[str, dict[int, list[dict[str, float]]]]) -> None:
    """Prints a line for each level; values of the seeds in the order of their numbers."""

    def show(values: list[float], digits: int) -> str:
        return ", ".join(f"{value:.{digits}f}" for value in values)

    for level in sorted(levels, key=order):
        seeds = [levels[level][seed] for seed in sorted(levels[level])]
        left = []
        for rows in seeds:
            below = [
                row
                for row, d2 in zip(rows, smooth([r[PANELS[2][0]] for r in rows]), strict=True)
                if d2 < LEFT
            ]
            left.append(f"{below[0]['episodes']:,.0f}" if below else "stays")
        ends = [[statistics.fmean(row[key] for row in rows[-LAST:]) for rows in seeds] for key, _ in PANELS]
        lengths = {int(rows[-1]["episodes"]) for rows in seeds}
        print(
            f"{level} | {'/'.join(map(str, sorted(lengths)))} | {', '.join(left)} | "
            f"{show(ends[0], 1)} | {show(ends[1], 2)} | {show(ends[2], 2)}"
        )


def main(out: str, study: str, factor: str, *more: str) -> None:
    """Draws the picture and prints the table."""
    levels = seeds_by_level([study, *more], factor)
    names = sorted(levels, key=order)
    figure = Figure(figsize=(1.4 + 1.5 * len(names), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(PANELS), len(names), sharex=True, sharey="row", squeeze=False)
    for line, (key, title) in zip(grid, PANELS, strict=True):
        line[0].set_ylabel(title, fontsize=9)
        for axes, name in zip(line, names, strict=True):
            for colour, (seed, rows) in zip(COLOURS, sorted(levels[name].items()), strict=False):
                generations = [row["episodes"] for row in rows]
                axes.plot(
                    generations,
                    smooth([row[key] for row in rows]),
                    color=colour,
                    linewidth=1.2,
                    label=f"{seed}",
                )
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
    # Only now: a limit ends the scaling to what is drawn after it.
    for line in grid:
        line[0].set_ylim(bottom=0)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(f"{factor} {name}", loc="left", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("generations", fontsize=8)
    grid[0][-1].legend(title="seed", fontsize=7, title_fontsize=7, frameon=False)
    figure.savefig(out, dpi=110)
    table(levels)


if __name__ == "__main__":
    main(*sys.argv[1:])
