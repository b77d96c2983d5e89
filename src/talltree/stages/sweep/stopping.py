"""Which trials are hopeless: successive halving, judged as trials arrive at the steps of the rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from talltree.stages.sweep.study import Stop

Rows = Sequence[Mapping[str, float | None]]


def value_at(rows: Rows, stop: Stop, step: int) -> float | None:
    """Mean of stop.metric over steps in (step - window, step]; None before that step, or without numbers."""
    if not rows or (rows[-1]["step"] or 0) < step:
        return None
    found = [row.get(stop.metric) for row in rows if step - stop.window < (row["step"] or 0) <= step]
    numbers = [float(each) for each in found if isinstance(each, int | float)]
    return sum(numbers) / len(numbers) if numbers else None


def verdict(mine: Rows, others: Sequence[Rows], stop: Stop, judged: set[int]) -> str | None:
    """Why the trial with the rows `mine` is given up, or None; `judged` gains the steps that it has passed.

    At each of stop.steps once: rank 1 is the best of the n trials that have been there, itself included,
    equals share the better rank, and it goes on if rank <= max(1, ceil(keep * n)) or n < least.
    """
    for step in sorted(stop.steps):
        value = value_at(mine, stop, step)
        if step in judged or value is None:
            continue
        judged.add(step)
        came = [each for rows in others if (each := value_at(rows, stop, step)) is not None]
        sign = 1 if stop.direction == "maximize" else -1
        rank = 1 + sum(sign * each > sign * value for each in came)
        n = len(came) + 1
        if n >= stop.least and rank > max(1, math.ceil(stop.keep * n)):
            share = f"{100 * stop.keep:g}%"
            return (
                f"given up at step {step}: {stop.metric} {value:.4g} is {rank} of {n} trials there, "
                f"and the best {share} go on"
            )
    return None
