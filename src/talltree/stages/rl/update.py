"""The optimiser updates of a step: one loss, summed over micro-batches, for every algorithm of the table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from talltree.algorithms import Algorithm
from talltree.errors import ContractError
from talltree.maths.losses import clip_share
from talltree.maths.weights import masked_mean
from talltree.models.optim import set_learning_rate
from talltree.models.score import likelihood, likelihoods
from talltree.types import Scored

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NonFinite(ContractError):
    """A number that is not finite where the step had not changed any weight yet."""


class BrokenStep(NonFinite):
    """The same, found after an update of this step or the one before it had moved the weights."""


class Passes(NamedTuple):
    """How a step's completions are gone over; `clip` holds the bounds of a clipped surrogate."""

    iterations: int
    mini_batches: int
    parts: int
    clip: tuple[float, float] | None
    max_grad_norm: float | None
    bfloat16: bool


class Figures(NamedTuple):
    """Means over the step's updates; entropy (nats a token) is of the distribution that was sampled from."""

    loss: float
    grad_norm: float
    ratio_mean: float
    clip_share: float
    entropy: float
    learning_rate: float


def update(
    policy: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    algorithm: Algorithm,
    scored: Scored,
    advantage_NT: Tensor,
    *,
    passes: Passes,
    temperature: float,
    kl_coef: float,
    kl_loss: Callable[[Tensor, Tensor], Tensor],
    next_learning_rate: Callable[[], float],
    generator: torch.Generator,
) -> Figures:
    """Makes iterations x mini_batches updates: loss = sum(weights_NT * (surrogate [+ coef * KL estimate])).

    The weights are computed over a whole mini-batch before it is split into parts, so the split cannot change
    the loss. Raises NonFinite before the optimiser moves anything, BrokenStep where a later update of the step
    fails or the weights themselves are no longer finite; no gradient is left behind.
    """
    rollout = scored.rollout
    mask_NT = rollout.completion_mask_NT & scored.scored_N.unsqueeze(1)
    N = len(mask_NT)
    # In float32 the sampler's log-probs are the trainer's within 1e-4; in bfloat16 they are not.
    old_logp_NT = rollout.logp_NT
    if passes.bfloat16:
        with _precision(passes, mask_NT):
            old_logp_NT = likelihoods(policy, rollout, temperature).logp_NT
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    figures: list[tuple[float, ...]] = []
    entropies: list[Tensor] = []
    try:
        for iteration in range(passes.iterations):
            order = torch.randperm(N, generator=generator) if passes.mini_batches > 1 else torch.arange(N)
            for rows in order.to(mask_NT.device).chunk(passes.mini_batches):
                weights_NT = algorithm.weights(mask_NT[rows])
                loss_sum = ratio_sum = clipped_sum = 0.0
                for index in torch.arange(len(rows), device=rows.device).tensor_split(passes.parts):
                    part = rows[index]
                    width = int(rollout.completion_mask_NT[part].sum(1).max())
                    part_mask = mask_NT[part, :width]
                    with _precision(passes, mask_NT):
                        current = likelihood(
                            policy,
                            [rollout.prompt_ids[i] for i in part.tolist()],
                            rollout.completion_ids_NT[part, :width],
                            rollout.completion_mask_NT[part, :width],
                            temperature,
                        )
                    old, advantage = old_logp_NT[part, :width], advantage_NT[part, :width]
                    token_loss = algorithm.surrogate(current.logp_NT, old, advantage)
                    if algorithm.kl_in == "loss":
                        ref_logp = scored.ref_logp_NT[part, :width]
                        token_loss = token_loss + kl_coef * kl_loss(current.logp_NT, ref_logp)
                    loss = (weights_NT[index, :width] * token_loss).sum()
                    if not torch.isfinite(loss):
                        raise NonFinite(f"non-finite loss ({loss.item()})")
                    loss.backward()
                    with torch.no_grad():
                        share = float(part_mask.sum() / mask_NT[rows].sum().clamp(min=1))
                        loss_sum += float(loss)
                        ratio_sum += share * float(masked_mean(torch.exp(current.logp_NT - old), part_mask))
                        if passes.clip is not None:
                            clipped = clip_share(current.logp_NT, old, advantage, part_mask, *passes.clip)
                            clipped_sum += share * float(clipped)
                        if iteration == 0:
                            entropies.append(current.entropy_NT[rollout.completion_mask_NT[part, :width]])
                grad_norm = _checked_norm(parameters, passes.max_grad_norm)
                learning_rate = next_learning_rate()
                set_learning_rate(optimizer, learning_rate)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                figures.append((loss_sum, grad_norm, ratio_sum, clipped_sum))
    except NonFinite as error:
        optimizer.zero_grad(set_to_none=True)
        if figures:
            raise BrokenStep(f"{error} in update {len(figures) + 1} of the step") from error
        raise
    if not torch.isfinite(torch.nn.utils.get_total_norm(parameters)):
        raise BrokenStep(f"non-finite weights after an update of learning rate {learning_rate:g}, use a lower one")
    means = [sum(each) / len(figures) for each in zip(*figures, strict=True)]
    entropy = float(torch.cat(entropies).mean())
    return Figures(means[0], means[1], means[2], means[3], entropy, learning_rate)


def _checked_norm(parameters: list[torch.nn.Parameter], max_norm: float | None) -> float:
    """Clips the gradient and gives its norm before that. Raises NonFinite."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not torch.isfinite(norm):
        raise NonFinite(f"non-finite gradient (norm {norm.item()})")
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)


def _precision(passes: Passes, like: Tensor) -> AbstractContextManager[object]:
    return torch.autocast(like.device.type, torch.bfloat16) if passes.bfloat16 else nullcontext()
