"""The critic's side of an update: its value loss beside the policy's, and what is logged of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from talltree.errors import ContractError
from talltree.maths.losses import clipped_value, value_clip_share
from talltree.maths.weights import per_token
from talltree.models.critic import Critic
from talltree.models.score import Loss, precision


class NonFinite(ContractError):
    """A number that is not finite where the step had not changed any weight yet."""


def finite(loss: Tensor, what: str = "loss") -> Tensor:
    """The loss itself. Raises NonFinite."""
    if not torch.isfinite(loss):
        raise NonFinite(f"non-finite {what} ({loss.item()})")
    return loss


class ValueFigures(NamedTuple):
    """Means over the step's updates; grad_norm is None where a shared body's norm is the policy's."""

    loss: float
    clip_share: float
    grad_norm: float | None


class ValueObjective(NamedTuple):
    """loss = coef * sum(weights_NU * clipped value loss), weights = mask / sum(mask), for one batch.

    mask_NU: the states of scored completions, which reach one position past the policy's tokens; old_value_NU
    and return_NU are those of before the first update.
    """

    critic: Critic
    old_value_NU: Tensor
    return_NU: Tensor
    mask_NU: Tensor
    coef: float
    clip: float


class ValuePart(NamedTuple):
    """What one part adds to an update's value loss and to the share of its states that are clipped."""

    loss: float
    clipped: float


Texts = tuple[Sequence[Sequence[int]], Tensor, Tensor]
"""Prompt ids, completion_ids_NT and completion_mask_NT of a part."""


def value_weights(value: ValueObjective, rows: Tensor) -> Tensor:
    """weights_NU of the update that takes these rows, before it is split into parts."""
    weights_NU = torch.zeros_like(value.old_value_NU)
    weights_NU[rows] = per_token(value.mask_NU[rows], weights_NU.dtype)
    return weights_NU


def backward(
    policy: Loss, value: ValueObjective, weights_NU: Tensor, part: Tensor, texts: Texts, bfloat16: bool
) -> ValuePart:
    """Adds the gradients of the policy's loss and of coef * value loss over a part. Raises NonFinite."""
    policy_loss = finite(policy.loss)
    if policy.value_NU is None:
        # A separate body: the policy's graph is let go before the critic's is made.
        policy_loss.backward()
        policy_loss = policy_loss.detach()
        with precision(part.device, bfloat16):
            value_NU = value.critic.state_values(*texts)
    else:
        value_NU = policy.value_NU
    width = value_NU.shape[1]
    old, target, weights = (each[part, :width] for each in (value.old_value_NU, value.return_NU, weights_NU))
    loss = finite((weights * clipped_value(value_NU, old, target, value.clip)).sum(), "value loss")
    (policy_loss + value.coef * loss).backward()
    clipped = value_clip_share(value_NU.detach(), old, target, weights > 0, value.clip)
    return ValuePart(loss.item(), float(clipped * weights.sum()))
