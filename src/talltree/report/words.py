"""Figures as a person writes them, and the verdict of a run in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from talltree.report.facts import BLOG_POSITIONS, Facts, kl_coefficient, series, value

MISSING = "not measured"


def number(x: Any) -> str:
    """Three significant digits, an exponent below 0.001 and from a million on: 0.123, 4.56, 1,234, 2.1e−6."""
    if not isinstance(x, int | float) or not math.isfinite(x):
        return MISSING
    size = abs(x)
    if x == 0 or (isinstance(x, int) and size < 1e6):
        return f"{x:,}" if isinstance(x, int) else "0"
    if size >= 1e6 or size < 1e-3:
        mantissa, _, exponent = f"{x:.1e}".partition("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    digits = max(0, 2 - math.floor(math.log10(size)))
    return f"{x:,.{digits}f}".replace("-", "−")


def nats(x: Any) -> str:
    """`number`, with "0.0" for less than 1e-4 either way: the rounding that the numeric contract allows."""
    return "0.0" if isinstance(x, int | float) and abs(x) < 1e-4 else number(x)


def figure(unit: str) -> Callable[[Any], str]:
    """How figures of this unit are written: `nats` where it says nats, else `number`."""
    return nats if "nats" in unit else number


def share(x: Any) -> str:
    """A share as per cent: 0.984 is 98.4%, 1 is 100%."""
    if not isinstance(x, int | float) or not math.isfinite(x):
        return MISSING
    return f"{100 * x:.1f}".removesuffix(".0") + "%"


def duration(seconds: Any) -> str:
    """Seconds as 42 s, 4 min 10 s or 2 h 5 min."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def interval(measured: Any, write: Callable[[Any], str] = number) -> str:
    """A measured {"mean", "low", "high"} as 4.20 (4.00 to 4.40), each figure as `write` puts it."""
    if not isinstance(measured, Mapping) or not isinstance(measured.get("mean"), int | float):
        return MISSING
    low, high = measured.get("low"), measured.get("high")
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return write(measured["mean"])
    return f"{write(measured['mean'])} ({write(low)} to {write(high)})"


def mean(measured: Any) -> float | None:
    """The mean of {"mean", ...}; None if it was not measured."""
    found = measured.get("mean") if isinstance(measured, Mapping) else None
    return float(found) if isinstance(found, int | float) else None


def setting(facts: Facts) -> list[tuple[str, str]]:
    """What was trained, as (label, value): model, reward, algorithm, KL coefficient in both units."""
    summary = facts.summary or {}
    named = {
        "Model": summary.get("model") or value(facts.config, "model_name_or_path"),
        "Reward": summary.get("reward") or value(facts.config, "reward"),
        "Algorithm": summary.get("algorithm") or value(facts.config, "algorithm"),
    }
    found = [(label, _plain(given)) for label, given in named.items() if given]
    return [*found, *_kl_setting(facts)]


def _kl_setting(facts: Facts) -> list[tuple[str, str]]:
    coef = kl_coefficient(facts)
    if coef is None:
        return []
    words = f"{coef:.3g} per nat of sequence KL (the blog’s beta {BLOG_POSITIONS * coef:.3g})"
    _, logged = series(facts.rows, "kl/coef")
    if logged and logged[-1] != logged[0]:
        words += f", adapted to {logged[-1]:.3g} (beta {BLOG_POSITIONS * logged[-1]:.3g})"
    target = value(facts.config, "kl.target")
    if isinstance(target, int | float):
        words += f", target {target:.3g} nats"
    return [("KL coefficient", words)]


def _plain(given: Any) -> str:
    if isinstance(given, Mapping):
        return ", ".join(f"{key}: {_plain(each)}" for key, each in given.items())
    if isinstance(given, list):
        return ", ".join(_plain(each) for each in given)
    return str(given)


def verdict(facts: Facts) -> list[str]:
    """The run in a few sentences: what changed, at what price, and why it stopped."""
    summary = facts.summary
    if summary is None or not facts.has_ended:
        return _unfinished(facts)
    sentences = [*_change(summary), *_price(summary), *_variety(summary)]
    if not sentences:
        sentences = ["This run has no measurement before and after on fresh samples."]
    return [*sentences, *_ending(summary)]


def _change(summary: Mapping[str, Any]) -> list[str]:
    before, after = (_part(_part(summary, side), "reward") for side in ("before", "after"))
    first, last = mean(before), mean(after)
    if first is None or last is None:
        return []
    if last == first:
        return [f"Reward stayed at {number(last)}."]
    verb = "rose" if last > first else "fell"
    # A base that might as well be 0, as a learned reward's is by construction, is nothing to divide by.
    low = before.get("low")
    is_far_from_zero = first > 0 and (low is None or low > first / 2)
    times = f", {last / first:.2g} times the base" if is_far_from_zero and last > first else ""
    return [f"Reward {verb} from {number(first)} to {number(last)}{times}.", *_certainty(before, after)]


def _certainty(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    bounds = [side.get(end) for side in (before, after) for end in ("low", "high")]
    if not all(isinstance(bound, int | float) for bound in bounds):
        return []
    words = "95% intervals: {} to {} before, {} to {} after".format(*map(number, bounds))
    overlap = before["low"] <= after["high"] and after["low"] <= before["high"]
    return [words + ("; they overlap, so this may be chance." if overlap else ".")]


def _price(summary: Mapping[str, Any]) -> list[str]:
    after = _part(summary, "after")
    if mean(after.get("kl")) is None:
        return []
    per_token = mean(after.get("kl_per_token"))
    words = f" ({nats(per_token)} a token)" if per_token is not None else ""
    return [f"It cost {nats(mean(after['kl']))} nats of KL a sequence{words}."]


def _variety(summary: Mapping[str, Any]) -> list[str]:
    before, after = _part(summary, "before"), _part(summary, "after")
    sentences = []
    first, last = before.get("distinct_2"), after.get("distinct_2")
    if isinstance(first, int | float) and isinstance(last, int | float):
        kept = f", {share(last / first)} of the base’s" if first > 0 else ""
        sentences.append(f"Of all word pairs {share(last)} are different{kept}.")
    if isinstance(after.get("unique"), int | float):
        sentences.append(f"{share(after['unique'])} of the stories are unique.")
    return sentences


def _ending(summary: Mapping[str, Any]) -> list[str]:
    sentences = []
    if summary.get("steps") is not None:
        time = summary.get("wall_time_seconds")
        took = f" and {duration(time)}" if isinstance(time, int | float) else ""
        sentences.append(f"The run ended after {number(summary['steps'])} steps{took}.")
    if summary.get("stop_reason"):
        sentences.append(f"Why it stopped: {str(summary['stop_reason']).rstrip('.')}.")
    if summary.get("best_step") is not None:
        sentences.append(f"Best checkpoint: step {number(summary['best_step'])}.")
    elif "best_step" in summary:
        sentences.append(
            "No checkpoint kept within the bounds for the best one, so final/ is the last step’s."
        )
    return sentences


def _unfinished(facts: Facts) -> list[str]:
    breaches = [row["name"] for row in preflight(facts) if row.get("status") == "breach" and "name" in row]
    if breaches and not facts.rows:
        return ["Preflight stopped this run.", f"Breached: {', '.join(map(str, breaches))}."]
    sentences = [
        "This run has not ended.",
        "It is still running or was stopped early, so nothing was measured after it.",
        "What follows is what it has written so far.",
    ]
    steps, rewards = series(facts.rows, "reward/mean")
    if steps:
        window = max(1, len(steps) // 10)
        first, last = sum(rewards[:window]) / window, sum(rewards[-window:]) / window
        many = f"first and last {window} steps" if window > 1 else "first and last step"
        sentences.append(
            f"In {number(len(steps))} steps the mean training reward went from {number(first)} to "
            f"{number(last)} ({many})."
        )
    elif facts.rows:
        sentences.append(f"It has {number(len(facts.rows))} steps, none with a reward.")
    else:
        sentences.append("It has not finished a single step.")
    return sentences


def preflight(facts: Facts) -> list[Mapping[str, Any]]:
    """The rows of the preflight table; none if the run stores none."""
    rows = (facts.summary or {}).get("preflight")
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _part(summary: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = summary.get(key)
    return part if isinstance(part, Mapping) else {}
