"""Proxy and gold over sqrt(KL): python docs/findings/overoptimisation.py OUT.png LABEL=FOLDER ...

`... overoptimisation.py ended GOLD FOLDER` prints each checkpoint's gold over the completions that ended.

A column for each folder of `talltree overopt`: dots are measured, with intervals; lines fit the gold.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from talltree import rewards

COLOURS = {"rl": "#2e7d32", "bon": "#c77700"}
NAMES = {"rl": "checkpoints", "bon": "best of n"}
ROWS = (("proxy", "proxy: learned reward"), ("gold", "gold: hidden utility"))


def ended(gold: str, folder: str) -> None:
    """Prints source, completions without an end, and the mean gold of the others."""
    lines = (Path(folder) / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    sources: dict[str, list[dict[str, Any]]] = {}
    for row in (json.loads(line) for line in lines if line):
        sources.setdefault(row["source"], []).append(row)
    reward = rewards.load(gold)
    for source, rows in sources.items():
        whole = [row for row in rows if row["ended"]]
        values, _ = rewards.score(
            reward, [row["prompt"] for row in whole], [row["completion"] for row in whole], {}
        )
        mean = statistics.fmean(value for value in values if value is not None)
        print(
            f"{source}  {len(rows) - len(whole)} of {len(rows)} without an end  gold of the others {mean:.3f}"
        )


def main(out: str, *folders: str) -> None:
    """Draws proxy above gold, one column a folder."""
    figure = Figure(figsize=(4.6 * len(folders), 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(folders), sharex="col", sharey="row", squeeze=False)
    for column, named in enumerate(folders):
        label, folder = named.split("=", 1)
        curves = json.loads((Path(folder) / "overopt.json").read_text(encoding="utf-8"))["curves"]
        for line, (key, title) in zip(grid, ROWS, strict=True):
            axes = line[column]
            for curve in curves:
                colour, points = COLOURS[curve["kind"]], curve["points"]
                d = [point["d"] for point in points]
                value = [point[key]["value"] for point in points]
                if key == "gold":
                    reach = [
                        [point[key]["value"] - point[key]["low"] for point in points],
                        [point[key]["high"] - point[key]["value"] for point in points],
                    ]
                    axes.errorbar(d, value, yerr=reach, fmt=".", color=colour, linewidth=0.8)
                    if curve["fit"] is not None:
                        axes.plot(curve["fit"]["line"]["d"], curve["fit"]["line"]["gold"], color=colour)
                else:
                    axes.plot(d, value, ".-", color=colour, linewidth=0.8)
                axes.annotate(
                    f" {NAMES[curve['kind']]}", (d[-1], value[-1]), color=colour, va="center", fontsize=8
                )
            axes.spines[["top", "right"]].set_visible(False)
            axes.margins(x=0.16)
            if column == 0:
                axes.set_ylabel(title, fontsize=9)
        grid[0][column].set_title(label, loc="left", fontsize=10)
        grid[1][column].set_xlabel("square root of KL (nats a completion)", fontsize=9)
    figure.savefig(out, dpi=120)
    print(out)


if __name__ == "__main__":
    ended(*sys.argv[2:]) if sys.argv[1] == "ended" else main(*sys.argv[1:])
