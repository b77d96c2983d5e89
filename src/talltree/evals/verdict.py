"""A comparison in words that claim no more than the intervals and the corrected tests allow."""

from __future__ import annotations

import math
from collections.abc import Sequence

from talltree.evals.comparison import LEVEL, Difference, is_hinted, is_shown, named
from talltree.evals.results import Metric

MANY = 24
"""From more differences than this on, those that are shown are counted and not listed."""
LARGEST = 3


def verdict(left: str, right: str, differences: Sequence[Difference]) -> list[str]:
    """Sentences about `right` against `left`: what is shown, what is only hinted at, what could not be shown.

    Raises ValueError for no differences.
    """
    if not differences:
        raise ValueError("there is nothing to say of no differences")
    if len(differences) > MANY:
        return _counted(left, right, differences)
    shown = [each for each in differences if is_shown(each)]
    hinted = [each for each in differences if is_hinted(each)]
    unmeasured = [each for each in differences if each.difference.low is None]
    equal = [each for each in differences if each.difference[:3] == (0, 0, 0)]
    rest = [each for each in differences if each not in shown + hinted + unmeasured + equal]
    sentences = [_shown(left, right, each) for each in shown]
    if not shown:
        sentences.append(f"No difference between {right} and {left} is shown.")
    if hinted:
        listed = ", ".join(f"{named(each.measure)} {with_interval(each.difference, True)}" for each in hinted)
        tuned = any(each.seeds is not None and each.over != "training seeds" for each in hinted)
        over = " or over seeds" if tuned else ""
        sentences.append(f"Only hinted at, not holding at {LEVEL:g} after Holm's correction{over}: {listed}.")
    if rest:
        listed = ", ".join(
            f"{named(each.measure)} (the interval runs from {figure(each.difference.low)} to "
            f"{figure(each.difference.high)})"
            for each in rest
        )
        sentences.append(f"No difference could be shown in {listed}; there may be one.")
    if equal:
        sentences.append(f"Equal in every sample: {', '.join(named(each.measure) for each in equal)}.")
    if unmeasured:
        listed = ", ".join(
            f"{named(each.measure)} {figure(each.difference.value, True)}" for each in unmeasured
        )
        few = "seeds" if unmeasured[0].over == "training seeds" else "completions"
        sentences.append(f"Too few {few} for an interval, so nothing is said of {listed}.")
    return sentences


def _counted(left: str, right: str, differences: Sequence[Difference]) -> list[str]:
    """How many are shown either way, and the largest of each."""
    shown = sorted((each for each in differences if is_shown(each)), key=lambda each: each.difference.value)
    lower = [each for each in shown if each.difference.value < 0]
    higher = [each for each in reversed(shown) if each.difference.value > 0]
    sentences = [
        (
            f"Of {len(differences)}, {len(higher)} are higher and {len(lower)} lower in {right} than "
            f"in {left}; no difference could be shown in the other {len(differences) - len(shown)}."
        )
    ]
    for word, found in (("higher", higher), ("lower", lower)):
        if found:
            listed = ", ".join(
                f"{named(each.measure)} {with_interval(each.difference, True)}" for each in found[:LARGEST]
            )
            sentences.append(f"Furthest {word}: {listed}.")
    return sentences


def _shown(left: str, right: str, each: Difference) -> str:
    direction = "higher" if each.difference.value > 0 else "lower"
    ends = [
        with_interval(Metric(side.value, None, None, side.n, side.unit)) for side in (each.left, each.right)
    ]
    return (
        f"{named(each.measure)} is {direction} in {right} than in {left}: "
        f"{with_interval(each.difference, True)} {each.difference.unit}, from {ends[0]} to {ends[1]}."
    )


def with_interval(metric: Metric, signed: bool = False) -> str:
    """6.2 (5.5 to 6.9), or the figure alone where there is no interval.

    What is less than 1e-4 nats is 0.0: the rounding that the numeric contract allows.
    """

    def write(value: float, sign: bool) -> str:
        return "0.0" if "nats" in metric.unit and abs(value) < 1e-4 else figure(value, sign)

    if metric.low is None or metric.high is None:
        return write(metric.value, signed)
    return f"{write(metric.value, signed)} ({write(metric.low, False)} to {write(metric.high, False)})"


def figure(value: float | None, signed: bool = False) -> str:
    """Three significant digits with a true minus sign; + before a positive one where signed."""
    if value is None or not math.isfinite(value):
        return "not measured"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        mantissa, _, exponent = f"{size:.1e}".partition("e")
        words = f"{mantissa}e{int(exponent)}".replace("-", "−")
    else:
        words = f"{size:,.{max(0, 2 - math.floor(math.log10(size)))}f}"
    return ("−" if value < 0 else "+" if signed else "") + words


def probability(p_value: float | None) -> str:
    """A p-value as 0.032, or "< 0.001"."""
    if p_value is None:
        return "no test"
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
