"""Surrogates: the loss of each token, called surrogate(logp, old_logp, advantage) and minimised."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from talltree.maths.weights import masked_mean

Surrogate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logp, old_logp, advantage), one shape -> loss per token, to be multiplied by weights and summed."""


def policy_gradient(logp: Tensor, old_logp: Tensor, advantage: Tensor) -> Tensor:
    """Plain policy gradient: -logp * advantage, to be minimised; old_logp plays no part.

    One shape -> the same. Exact only while the policy is the one that sampled: one update per batch.
    Williams 1992 (REINFORCE).
    """
    return -logp * advantage


def clipped(low: float = 0.2, high: float = 0.2) -> Surrogate:
    """Clipped surrogate: -min(ratio * A, clip(ratio, 1 - low, 1 + high) * A), ratio = exp(logp - old_logp).

    Returns the surrogate. At ratio 1 its gradient is the plain policy gradient; past 1 + high for A > 0, or
    past 1 - low for A < 0, it is 0. Raises ValueError unless 0 < low <= 1 and high > 0. Schulman et al. 2017,
    arXiv:1707.06347; separate bounds: arXiv:2503.14476.
    """
    _check_bounds(low, high)

    def surrogate(logp: Tensor, old_logp: Tensor, advantage: Tensor) -> Tensor:
        ratio = torch.exp(logp - old_logp)
        return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)

    return surrogate


def clip_share(
    logp_NT: Tensor,
    old_logp_NT: Tensor,
    advantage_NT: Tensor,
    mask_NT: Tensor,
    low: float = 0.2,
    high: float = 0.2,
) -> Tensor:
    """Share of completion tokens silenced by the clip: A > 0, ratio > 1 + high, or A < 0, ratio < 1 - low.

    Four (N, T) tensors -> scalar from 0 to 1; 0 at the first update of a batch and for a batch without a
    token. Raises ValueError for the bounds that `clipped` refuses.
    """
    _check_bounds(low, high)
    ratio = torch.exp(logp_NT - old_logp_NT)
    silenced = ((advantage_NT > 0) & (ratio > 1 + high)) | ((advantage_NT < 0) & (ratio < 1 - low))
    return masked_mean(silenced.float(), mask_NT)


def clipped_value(value: Tensor, old_value: Tensor, target: Tensor, clip: float | None = 0.2) -> Tensor:
    """Value loss: max((V - R)^2, (V' - R)^2) / 2 with V' = old + clip(V - old, -clip, clip), R the return.

    One shape -> the same, in reward squared. Beyond the clip its gradient is 0 where V' is the farther from
    R: a value does not move more than `clip` towards its target on one batch, but may always come back. clip
    None: (V - R)^2 / 2. Raises ValueError unless clip > 0. Ziegler et al. 2019, arXiv:1909.08593.
    """
    loss = (value - target).square()
    if clip is not None:
        loss = torch.maximum(loss, (_clipped_value(value, old_value, clip) - target).square())
    return 0.5 * loss


def value_clip_share(
    value: Tensor, old_value: Tensor, target: Tensor, mask: Tensor, clip: float | None = 0.2
) -> Tensor:
    """Share of states whose value loss is the clipped one, hence without gradient; 0 where clip is None.

    Four tensors of one shape -> scalar from 0 to 1; 0 where nothing is True in the mask.
    """
    if clip is None:
        return torch.zeros((), device=value.device)
    clipped_error = (_clipped_value(value, old_value, clip) - target).square()
    return masked_mean((clipped_error > (value - target).square()).float(), mask)


def _clipped_value(value: Tensor, old_value: Tensor, clip: float) -> Tensor:
    if not clip > 0:
        raise ValueError(f"value clip {clip} must be above 0; 0.2 is usual, None clips nothing")
    # Not old + clip(V - old): within the bounds that is V but for its rounding, which would count as clipped.
    return value.clamp(old_value - clip, old_value + clip)


def _check_bounds(low: float, high: float) -> None:
    if not (0 < low <= 1 and high > 0):
        raise ValueError(
            f"clip bounds low {low}, high {high} must be 0 < low <= 1 and high > 0; 0.2 and 0.2 are usual"
        )
