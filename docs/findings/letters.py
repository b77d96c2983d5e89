"""Which letters a study on `alliteration_varied` reaches: python docs/findings/letters.py OUT.png STUDY.

A panel for each setting: words that earn, per story and first letter, before in grey and after in green
(bars: over all seeds; dots: each seed). Prints, setting by setting, the letters that gain most, and among how
many letters the earning words are spread: the exponential of the entropy of their shares.

The study has two factors.
"""

import json
import math
import sys
from collections import Counter
from pathlib import Path
from string import ascii_lowercase

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from settings import by_level, finished

from talltree.rewards.words import first_letter, letter_words

BEFORE, AFTER = "#b9b9b9", "#2e7d32"
MOST = 6


def earning(path: Path) -> Counter[str]:
    """Words that earn per story, by first letter: in each span all words but the first."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    found: Counter[str] = Counter()
    for row in rows:
        text = row["prompt"] + row["completion"]
        for start, stop in row["spans"]:
            span = text[start:stop]
            words = letter_words(span)
            found[first_letter(span[slice(*words[0])])] += len(words) - 1
    return Counter({letter: count / len(rows) for letter, count in found.items()})


def mean(seeds: list[Counter[str]]) -> Counter[str]:
    """The mean over seeds, letter by letter."""
    return Counter({letter: sum(seed[letter] for seed in seeds) / len(seeds) for letter in ascii_lowercase})


def breadth(counts: Counter[str]) -> float:
    """Letters among which the earning words are spread: exp of the entropy of their shares, 1 upward."""
    total = sum(counts.values())
    return math.exp(-sum(n / total * math.log(n / total) for n in counts.values() if n))


def main(out: str, study: str) -> None:
    """Draws the picture and prints the table."""
    trials = finished(study)
    first, second = trials[0].setting
    panels = by_level(trials, first, second)
    rows, columns = (list(dict.fromkeys(levels[i] for levels in panels)) for i in (0, 1))
    figure = Figure(figsize=(4.2 * len(columns), 1.9 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    places = range(len(ascii_lowercase))
    for (row, column), seeds in panels.items():
        axes = grid[rows.index(row)][columns.index(column)]
        before, after = (
            [earning(seed.folder / f"{side}.jsonl") for seed in seeds] for side in ("before", "after")
        )
        was, is_now = mean(before), mean(after)
        axes.bar(places, [is_now[c] for c in ascii_lowercase], color=AFTER, width=0.8)
        axes.bar(places, [was[c] for c in ascii_lowercase], color=BEFORE, width=0.4)
        for seed in after:
            axes.plot(places, [seed[c] for c in ascii_lowercase], ".", color="black", markersize=2.5)
        axes.set_title(f"{row}, {second} {column}", loc="left", fontsize=9)
        axes.set_xticks(places, ascii_lowercase, fontsize=7)
        axes.tick_params(axis="y", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        gained = {c: is_now[c] - was[c] for c in ascii_lowercase}
        most = sorted(ascii_lowercase, key=lambda c: -gained[c])[:MOST]
        print(
            f"| {row} | {column} | {sum(was.values()):.2f} -> {sum(is_now.values()):.2f} "
            f"| {', '.join(f'{c} {gained[c]:+.2f}' for c in most)} "
            f"| {', '.join(f'{breadth(seed):.1f}' for seed in before)} "
            f"| {', '.join(f'{breadth(seed):.1f}' for seed in after)} |"
        )
    for line in grid:
        line[0].set_ylabel("words a story", fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
