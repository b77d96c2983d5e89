"""The KL coefficient over a run: fixed, or adapted to a target KL.

The published rule multiplies the coefficient by a little more or less than 1. A policy takes tens of updates
to follow a price, so by that rule alone the coefficient still falls when the policy has begun to run, and
rises too slowly afterwards: the KL swings past its target. `gain` adds what answers at once: the coefficient
stands in proportion to (KL / target) ** gain, so that the last nats below the target cost more than the
first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

MAX_ERROR = 0.2
"""Largest relative error of KL that one update answers to."""

MAX_RATIO = 4.0
"""Farthest that KL / target, and target / KL, count for the gain: the KL of a run starts at 0."""

MEMORY = 0.5
"""What the smoothed ratio keeps of itself in an update: the mean KL of a few dozen episodes is noisy."""


class KLController(
    NamedTuple(
        "KLController",
        [
            ("coef", float),
            ("target", float | None),
            ("horizon", float),
            ("gain", float),
            ("ratio", float),
        ],
    )
):
    """Coefficient per nat of sequence KL, target in nats per sequence (None: fixed), horizon in episodes.

    gain: the power of KL / target in the coefficient; 0 is Ziegler's rule. ratio: KL / target so far,
    smoothed. Its five values are its whole state in a checkpoint. Raises ValueError for a coefficient or gain
    that is negative or not finite, a target or horizon not above 0, and for coefficient 0 with a target,
    which could never move.
    """

    __slots__ = ()

    def __new__(
        cls,
        coef: float,
        target: float | None = None,
        horizon: float = 10_000,
        gain: float = 0.0,
        ratio: float = 1.0,
    ) -> KLController:
        if not (math.isfinite(coef) and coef >= 0):
            raise ValueError(
                f"KL coef {coef} must be 0 or more; a negative one pays for drifting from the reference"
            )
        if target is not None and not target > 0:
            raise ValueError(
                f"KL target {target} must be above 0 nats a sequence; leave it out for a fixed coef"
            )
        if target is not None and coef == 0:
            raise ValueError(
                f"KL coef 0 cannot adapt to target {target}, it is only multiplied; start above 0, as 0.1"
            )
        if not horizon > 0:
            raise ValueError(f"KL horizon {horizon} must be above 0 episodes; 10000 is usual")
        if not (math.isfinite(gain) and gain >= 0):
            raise ValueError(f"KL gain {gain} must be 0 or more; below 0 it would pay for running away")
        return super().__new__(cls, coef, target, horizon, gain, ratio)


def updated(controller: KLController, kl: float, n: int) -> KLController:
    """The controller after n episodes whose mean sequence KL was kl nats.

    coef *= (1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon) * (ratio / ratio before) ** gain, where
    ratio is the mean of the ratio before and of kl / target between 1/4 and 4; the first factor is that of
    Ziegler et al. 2019, arXiv:1909.08593. A fixed controller (target None) returns as it is. A negative kl,
    as a sample can give, counts as far below target. Raises ValueError for a kl that is not finite and for n
    so large that the coefficient could reach 0 (n >= 5 * horizon).
    """
    if controller.target is None:
        return controller
    if not math.isfinite(kl):
        raise ValueError(f"KL {kl} is not finite; the controller cannot follow it, stop the run")
    if not 0 <= n * MAX_ERROR < controller.horizon:
        raise ValueError(
            f"{n} episodes are too many for KL horizon {controller.horizon}; raise it to {n} or more"
        )
    error = min(max(kl / controller.target - 1, -MAX_ERROR), MAX_ERROR)
    coef = controller.coef * (1 + error * n / controller.horizon)
    now = min(max(kl / controller.target, 1 / MAX_RATIO), MAX_RATIO)
    ratio = MEMORY * controller.ratio + (1 - MEMORY) * now
    coef *= (ratio / controller.ratio) ** controller.gain
    return KLController(coef, controller.target, controller.horizon, controller.gain, ratio)
