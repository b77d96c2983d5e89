"""The optimiser updates of a step: one loss, summed over micro-batches, for every algorithm of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from talltree.algorithms import Algorithm
from talltree.errors import ContractError
from talltree.maths.head import TokenLoss
from talltree.maths.losses import clip_share
from talltree.maths.weights import masked_mean
from talltree.models.optim import set_learning_rate
from talltree.models.score import by_length, completion_loss, likelihoods, precision
from talltree.types import Rollout, Scored

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NonFinite(ContractError):
    """A number that is not finite where the step had not changed any weight yet."""


class BrokenStep(NonFinite):
    """The same, found after an update of this step or the one before it had moved the weights."""


class Passes(NamedTuple):
    """How a step's completions are gone over; `clip` holds the bounds of a clipped surrogate.

    parts: how many an update is computed in; None: as few as `models.score.by_length` makes.
    """

    iterations: int
    mini_batches: int
    parts: int | None
    clip: tuple[float, float] | None
    max_grad_norm: float | None
    bfloat16: bool
    fast: bool


class Figures(NamedTuple):
    """Means over the step's updates; entropy (nats a token) is of the distributions met in the first pass."""

    loss: float
    grad_norm: float
    ratio_mean: float
    clip_share: float
    entropy: float
    learning_rate: float


class Objective(NamedTuple):
    """loss = sum(weights_NT * (surrogate [+ kl_coef * KL estimate])) at a temperature, for one batch."""

    algorithm: Algorithm
    scored: Scored
    advantage_NT: Tensor
    temperature: float
    kl_coef: float
    kl_loss: Callable[[Tensor, Tensor], Tensor]


class _Sums(NamedTuple):
    loss: float
    ratio: float
    clipped: float
    entropy_M: Tensor


def update(
    policy: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    passes: Passes,
    next_learning_rate: Callable[[], float],
    generator: torch.Generator,
) -> Figures:
    """Makes iterations x mini_batches updates with the objective's gradient.

    The weights are computed over a whole mini-batch before it is split into parts, so the split cannot change
    the loss. Raises NonFinite before the optimiser moves anything, BrokenStep where a later update fails or
    the weights themselves are no longer finite; no gradient is left behind.
    """
    rollout = objective.scored.rollout
    N, device = len(rollout.logp_NT), rollout.logp_NT.device
    # In float32 the sampler's log-probs are the trainer's within 1e-4; in bfloat16 they are not.
    old_logp_NT = rollout.logp_NT
    if passes.bfloat16:
        with precision(device, passes.bfloat16):
            old_logp_NT = likelihoods(policy, rollout, objective.temperature, fast=passes.fast)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    done: list[_Sums] = []
    norms: list[float] = []
    try:
        for _ in range(passes.iterations):
            order = torch.randperm(N, generator=generator) if passes.mini_batches > 1 else torch.arange(N)
            for rows in order.to(device).chunk(passes.mini_batches):
                sums = _backward(policy, objective, passes, old_logp_NT, rows)
                norms.append(_checked_norm(parameters, passes.max_grad_norm))
                learning_rate = next_learning_rate()
                set_learning_rate(optimizer, learning_rate)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                done.append(sums)
    except NonFinite as error:
        optimizer.zero_grad(set_to_none=True)
        if done:
            raise BrokenStep(f"{error} in update {len(done) + 1} of the step") from error
        raise
    if not torch.isfinite(torch.nn.utils.get_total_norm(parameters)):
        raise BrokenStep(f"non-finite weights; learning_rate {learning_rate:g} is too high")
    return Figures(
        loss=_mean([sums.loss for sums in done]),
        grad_norm=_mean(norms),
        ratio_mean=_mean([sums.ratio for sums in done]),
        clip_share=_mean([sums.clipped for sums in done]),
        entropy=float(torch.cat([sums.entropy_M for sums in done[: passes.mini_batches]]).mean()),
        learning_rate=learning_rate,
    )


def _backward(
    policy: PreTrainedModel, objective: Objective, passes: Passes, old_logp_NT: Tensor, rows: Tensor
) -> _Sums:
    """Accumulates the gradient of one update over its parts. Raises NonFinite for its loss."""
    scored, advantage_NT = objective.scored, objective.advantage_NT
    rollout = scored.rollout
    drawn_NT = rollout.completion_mask_NT
    mask_NT = drawn_NT & scored.scored_N.unsqueeze(1)
    weights_NT = torch.zeros_like(rollout.logp_NT)
    weights_NT[rows] = objective.algorithm.weights(mask_NT[rows])
    tokens = mask_NT[rows].sum().clamp(min=1)
    loss_sum = ratio_sum = clipped_sum = 0.0
    entropies = []
    for part in _parts(rollout, rows, passes.parts):
        width = int(drawn_NT[part].sum(1).max())
        mask, drawn = mask_NT[part, :width], drawn_NT[part, :width]
        old, advantage, ref, weights = (
            each[part, :width] for each in (old_logp_NT, advantage_NT, scored.ref_logp_NT, weights_NT)
        )
        token_loss = _token_loss(objective, *(each[drawn] for each in (old, advantage, ref, weights)))
        with precision(rows.device, passes.bfloat16):
            current = completion_loss(
                policy,
                [rollout.prompt_ids[i] for i in part.tolist()],
                rollout.completion_ids_NT[part, :width],
                drawn,
                objective.temperature,
                token_loss,
                fast=passes.fast,
            )
        if not torch.isfinite(current.loss):
            raise NonFinite(f"non-finite loss ({current.loss.item()})")
        current.loss.backward()
        loss_sum += current.loss.item()
        share = float(mask.sum() / tokens)
        ratio_sum += share * float(masked_mean(torch.exp(current.logp_NT - old), mask))
        if passes.clip is not None:
            clipped_sum += share * float(clip_share(current.logp_NT, old, advantage, mask, *passes.clip))
        entropies.append(current.entropy_NT[drawn])
    return _Sums(loss_sum, ratio_sum, clipped_sum, torch.cat(entropies))


def _token_loss(
    objective: Objective, old_M: Tensor, advantage_M: Tensor, ref_logp_M: Tensor, weights_M: Tensor
) -> TokenLoss:
    """Each is weights * (surrogate [+ kl_coef * KL estimate]) for the tokens a part draws."""
    algorithm = objective.algorithm

    def token_loss(logp: Tensor, some: slice) -> Tensor:
        loss = algorithm.surrogate(logp, old_M[some], advantage_M[some])
        if algorithm.kl_in == "loss":
            loss = loss + objective.kl_coef * objective.kl_loss(logp, ref_logp_M[some])
        return weights_M[some] * loss

    return token_loss


def _parts(rollout: Rollout, rows: Tensor, count: int | None) -> Iterator[Tensor]:
    """The rows of an update in parts of similar length: `count` of them, or as few as memory likes."""
    prompt_ids = [rollout.prompt_ids[i] for i in rows.tolist()]
    size = None if count is None else math.ceil(len(rows) / count)
    for part in by_length(prompt_ids, rollout.completion_mask_NT[rows], size):
        yield rows[part]


def _checked_norm(parameters: list[torch.nn.Parameter], max_norm: float | None) -> float:
    """Clips the gradient and gives its norm before that. Raises NonFinite."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not torch.isfinite(norm):
        raise NonFinite(f"non-finite gradient (norm {norm.item()})")
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
