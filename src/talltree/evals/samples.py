"""Before and after: a policy's fresh samples, what they earn, how far they drift and how varied they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scipy import stats

from talltree.evals.diversity import diversity
from talltree.maths.kl import k1, sequence_kl
from talltree.types import Scored

Metrics = dict[str, Any]


def summarise(scored: Scored) -> Metrics:
    """Reward, KL (nats a sequence and nats a token) and length as means with 95% intervals, and diversity.

    distinct_1, distinct_2 and unique are shares over all completions pooled.
    """
    rollout = scored.rollout
    kl_N = sequence_kl(k1(rollout.logp_NT, scored.ref_logp_NT), rollout.completion_mask_NT)
    length_N = rollout.completion_mask_NT.sum(1)
    varied = diversity(rollout.completions)
    return {
        "reward": interval(scored.reward_N[scored.scored_N].tolist()),
        "kl": interval(kl_N.tolist()),
        "kl_per_token": ratio_interval(kl_N.tolist(), length_N.tolist()),
        "length": interval(length_N.tolist()),
        "ended": float(rollout.ended_N.float().mean()),
        "distinct_1": varied.distinct_1,
        "distinct_2": varied.distinct_2,
        "unique": varied.unique,
        "samples": len(rollout.completions),
    }


def interval(values: Sequence[float], confidence: float = 0.95) -> dict[str, float | None]:
    """Mean with its t interval; low and high are None for fewer than two values, where there is no spread."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None}
    half = float(stats.sem(values) * stats.t.ppf((1 + confidence) / 2, len(values) - 1))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], confidence: float = 0.95
) -> dict[str, float | None]:
    """Sum of numerators / sum of denominators, with the t interval of its linearisation (delta method)."""
    ratio = sum(numerators) / sum(denominators)
    mean = sum(denominators) / len(denominators)
    residuals = [(a - ratio * b) / mean for a, b in zip(numerators, denominators, strict=True)]
    spread = interval(residuals, confidence)
    low, high = spread["low"], spread["high"]
    return {
        "mean": ratio,
        "low": None if low is None else ratio + low,
        "high": None if high is None else ratio + high,
    }
