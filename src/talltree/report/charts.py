"""Which charts a run gets: small multiples of metrics, the reward-KL path, histograms of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from talltree.report import draw
from talltree.report.facts import Facts, series
from talltree.report.words import figure, nats, number

MANY_STEPS = 40
"""From this many steps on a curve shows a moving mean over its faint single steps."""


class Chart(NamedTuple):
    """A drawn chart: its SVG, what it says in words, and the caption beside its title."""

    title: str
    caption: str
    alt: str
    svg: str


class Spec(NamedTuple):
    """A small multiple: curves as (metric key, label; "" needs no label), and the y axis with its unit."""

    title: str
    caption: str
    curves: tuple[tuple[str, str], ...]
    y: str
    is_share: bool = False


CURVES = (
    Spec("Reward", "mean and ±1 deviation", (("reward/mean", ""),), "reward"),
    Spec("KL per sequence", "from the reference", (("kl/sequence", ""),), "nats / sequence"),
    Spec("KL per token", "the same, length taken out", (("kl/token", ""),), "nats / token"),
    Spec("KL coefficient", "the price of a nat", (("kl/coef", ""),), "reward / nat"),
    Spec("Entropy", "of the next-token distribution", (("policy/entropy", ""),), "nats / token"),
    Spec(
        "Diversity",
        "words, word pairs, whole stories",
        (
            ("diversity/unique", "unique"),
            ("diversity/distinct_2", "distinct-2"),
            ("diversity/distinct_1", "distinct-1"),
        ),
        "share different",
        True,
    ),
    Spec("Length", "completion, stop token included", (("completion/length", ""),), "tokens"),
    Spec("Ended by itself", "drew a stop token", (("completion/ended", ""),), "share of stories", True),
    Spec("Gradient norm", "before clipping", (("policy/grad_norm", ""), ("grad_norm", "")), "L2 norm"),
    Spec(
        "Loss",
        "cross-entropy",
        (("loss/train", "train"), ("loss/validation", "held out")),
        "nats / token",
    ),
    Spec(
        "Time per step",
        "where the seconds go",
        (
            ("time/sample", "sample"),
            ("time/score", "score"),
            ("time/train", "train"),
            ("time/step", "whole step"),
        ),
        "seconds",
    ),
)


def curves(facts: Facts) -> list[Chart]:
    """One chart for each metric that has numbers; a fixed KL coefficient is left to the header."""
    charts = (_curve(facts, spec) for spec in CURVES)
    return [chart for chart in charts if chart is not None]


def missing(facts: Facts) -> list[str]:
    """Titles of the charts that an RL run should have and has no numbers for; other runs lack none."""
    if not any("kl/sequence" in row for row in facts.rows):
        return []
    expected = (spec for spec in CURVES if spec.title not in ("Loss", "KL coefficient"))
    return [spec.title for spec in expected if not any(series(facts.rows, key)[0] for key, _ in spec.curves)]


def _curve(facts: Facts, spec: Spec) -> Chart | None:
    lines = [draw.Line(label, *series(facts.rows, key)) for key, label in spec.curves]
    lines = [line for line in lines if line.steps]
    if not lines or (spec.title == "KL coefficient" and len(set(lines[0].values)) == 1):
        return None
    window = smoothing(len(lines[0].steps))
    band = _band(facts) if spec.title == "Reward" else None
    svg = draw.curve(lines, spec.y, window, spec.is_share, band, facts.best_step, _stop(facts))
    return Chart(spec.title, spec.caption, _describe(spec, lines), svg)


def smoothing(steps: int) -> int:
    """Odd window of the moving mean: 1, no smoothing, below MANY_STEPS; then a twentieth of the steps."""
    return 1 if steps < MANY_STEPS else 2 * (steps // 40) + 1


def _stop(facts: Facts) -> int | None:
    return facts.last_step if facts.has_ended else None


def _band(facts: Facts) -> tuple[list[int], list[float], list[float]]:
    rows = [
        row
        for row in facts.rows
        if isinstance(row.get("reward/mean"), int | float) and isinstance(row.get("reward/std"), int | float)
    ]
    low = [row["reward/mean"] - row["reward/std"] for row in rows]
    high = [row["reward/mean"] + row["reward/std"] for row in rows]
    return [row["step"] for row in rows], low, high


def _describe(spec: Spec, lines: Sequence[draw.Line]) -> str:
    parts, write = [], figure(spec.y)
    for line in lines:
        ends = f"{write(line.values[0])} at step {line.steps[0]}"
        if len(line.steps) > 1:
            ends += (
                f" to {write(line.values[-1])} at step {line.steps[-1]}, "
                f"lowest {write(min(line.values))}, highest {write(max(line.values))}"
            )
        parts.append(f"{line.label}: {ends}" if line.label else ends)
    return f"{spec.title} ({spec.y}) by step: {'; '.join(parts)}."


def path(facts: Facts) -> Chart | None:
    """Mean reward against mean sequence KL, one point a step, coloured by step; None below two such steps."""
    rows = [
        row
        for row in facts.rows
        if isinstance(row.get("reward/mean"), int | float) and isinstance(row.get("kl/sequence"), int | float)
    ]
    if len(rows) < 2:
        return None
    steps = [row["step"] for row in rows]
    kl = [float(row["kl/sequence"]) for row in rows]
    reward = [float(row["reward/mean"]) for row in rows]
    svg = draw.path(steps, kl, reward, smoothing(len(steps)), facts.best_step)
    alt = (
        f"Reward against KL by step: from reward {number(reward[0])} at {nats(kl[0])} nats "
        f"(step {steps[0]}) to reward {number(reward[-1])} at {nats(kl[-1])} nats (step {steps[-1]})."
    )
    return Chart("Reward for KL", "what each nat bought", alt, svg)


def histograms(facts: Facts) -> list[Chart]:
    """Reward and KL of the samples of the first tenth of the steps against those of the last tenth."""
    steps = facts.samples["step"].to_numpy()
    known = np.unique(steps)
    if len(known) < 2:
        return []
    tenth = max(1, len(known) // 10)
    early, late = known[:tenth], known[-tenth:]
    labels = (_steps_words(early), _steps_words(late))
    charts = []
    for title, column, x in (
        ("Rewards, early to late", "reward", "reward"),
        ("KL, early to late", "kl", "nats / sequence"),
    ):
        numbers = _numbers(facts, column)
        groups = [numbers[np.isin(steps, chosen) & np.isfinite(numbers)] for chosen in (early, late)]
        if not all(len(group) for group in groups):
            continue
        medians = [float(np.median(group)) for group in groups]
        alt = (
            f"{title}: of {len(groups[0])} samples of {labels[0]} the median is {figure(x)(medians[0])}, "
            f"of {len(groups[1])} samples of {labels[1]} it is {figure(x)(medians[1])} ({x})."
        )
        svg = draw.histogram(groups, labels, x)
        charts.append(Chart(title, "dashed: medians", alt, svg))
    return charts


def _numbers(facts: Facts, column: str) -> np.ndarray:
    if column not in facts.samples.column_names:
        return np.full(facts.samples.num_rows, np.nan)
    # to_pylist first: a column that is all null has no float type, and its nulls shall be NaN.
    return np.array(facts.samples[column].to_pylist(), dtype=float)


def _steps_words(steps: np.ndarray) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]}–{steps[-1]}"
