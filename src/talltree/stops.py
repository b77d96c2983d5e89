"""When a run must stop by itself, and which checkpoint was best: pure functions of the logged metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def stop_reason(
    rows: Sequence[Row],
    *,
    kl_ceiling: float | None,
    min_unique: float,
    min_distinct_2: float,
    max_near_duplicates: float,
    constant_steps: int,
    patience: int,
) -> str | None:
    """Why the run should stop after the last of `rows` (metrics of every step so far), or None to go on.

    kl_ceiling: nats a sequence. Diversity counts as collapsed where, in each of the last `patience` steps,
    the share of different completions is below min_unique, distinct-2 is below min_distinct_2 times the first
    step's, or the share of near duplicates is above max_near_duplicates though the first step's was not. A
    reward that has been one and the same number for every completion of `constant_steps`
    steps teaches nothing.
    """
    last = rows[-1]
    if kl_ceiling is not None and last["kl/sequence"] > kl_ceiling:
        kl = last["kl/sequence"]
        return f"KL ceiling: {kl:.1f} nats a sequence at step {last['step']}, above {kl_ceiling:g}"
    recent = rows[-patience:]
    if len(rows) > patience:
        if all(row["diversity/unique"] < min_unique for row in recent):
            return f"collapse: {last['diversity/unique']:.0%} of completions differ, below {min_unique:.0%}"
        floor = min_distinct_2 * rows[0]["diversity/distinct_2"]
        if all(row["diversity/distinct_2"] < floor for row in recent):
            return (
                f"collapse: distinct-2 {last['diversity/distinct_2']:.3f} is below {floor:.3f}, "
                f"{min_distinct_2:.0%} of the first step's"
            )
        key = "diversity/near_duplicates"
        if rows[0][key] <= max_near_duplicates and all(row[key] > max_near_duplicates for row in recent):
            return (
                f"collapse: {last[key]:.0%} of completions have a near twin, above {max_near_duplicates:.0%}"
            )
    same = rows[-constant_steps:]
    if len(rows) >= constant_steps and all(row["reward/std"] == 0 for row in same):
        values = {row["reward/mean"] for row in same}
        if len(values) == 1:
            value = f"{values.pop():g} for every completion of {constant_steps} steps"
            return f"constant reward: {value}, nothing to learn"
    return None


def is_failure(reason: str) -> bool:
    """Whether a run that ended for this reason has gone wrong: it collapsed, had nothing to learn, or broke.

    Neither the end of its steps nor the KL ceiling, before which it learned what it was meant to.
    """
    return reason.startswith(("collapse: ", "constant reward: ", "stopped at step "))


def is_candidate(
    window: Sequence[Row], first: Row, *, max_kl: float | None, min_distinct_2: float, min_unique: float
) -> bool:
    """Whether the steps of `window`, on average, keep within the bounds of KL and diversity."""
    kl, distinct_2, unique = (
        _mean(window, key) for key in ("kl/sequence", "diversity/distinct_2", "diversity/unique")
    )
    return (
        (max_kl is None or kl <= max_kl)
        and distinct_2 >= min_distinct_2 * first["diversity/distinct_2"]
        and unique >= min_unique
    )


def window_reward(window: Sequence[Row]) -> float:
    """Mean reward of the steps of a window."""
    return _mean(window, "reward/mean")


def _mean(rows: Sequence[Row], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)
