"""Weights: mask and normalisation in one tensor, so that loss = sum(weights_NT * surrogate_NT).

Compute them once over the whole batch of an optimiser step and slice them for micro-batches: the loss then
cannot depend on the split. N counts every rollout of the batch, so a rollout with an empty mask weighs 0 and
leaves the weight of the others as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor


def per_rollout(mask_NT: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Mean over rollouts of the sum over their tokens: mask / N.

    mask_NT -> (N, T). With loss -logp * A this is the policy gradient itself: unbiased.
    """
    return mask_NT.to(dtype) / mask_NT.shape[0]


def per_sequence(mask_NT: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Mean over rollouts of the mean over their tokens: mask / length / N.

    mask_NT -> (N, T), summing to 1 where every rollout has a token. Biased: it favours short good answers and
    long bad ones. An empty rollout weighs 0. Shao et al. 2024, arXiv:2402.03300 (GRPO).
    """
    mask = mask_NT.to(dtype)
    return mask / mask.sum(1, keepdim=True).clamp(min=1) / mask_NT.shape[0]


def per_token(mask_NT: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Mean over all tokens of the batch: mask / sum(mask).

    mask_NT -> (N, T), summing to 1; all zero for a batch without a token. Yu et al. 2025, arXiv:2503.14476
    (DAPO).
    """
    mask = mask_NT.to(dtype)
    return mask / mask.sum().clamp(min=1)


def constant_length(mask_NT: Tensor, length: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sum over tokens over a constant: mask / (N * length), as a rule with length = max_completion_length.

    mask_NT -> (N, T). per_rollout scaled, hence without length bias. Raises ValueError unless length > 0.
    Liu et al. 2025, arXiv:2503.20783 (Dr. GRPO).
    """
    if not length > 0:
        raise ValueError(f"length {length} must be above 0; max_completion_length is the usual choice")
    return mask_NT.to(dtype) / (mask_NT.shape[0] * length)


def masked_mean(values_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Mean of the values where the mask is True: sum(mask * values) / sum(mask).

    values and mask of one shape -> scalar. What stands outside the mask never enters, not even a NaN. 0 where
    nothing is True.
    """
    return torch.where(mask_NT, values_NT, 0.0).sum() / mask_NT.sum().clamp(min=1)
