"""The optimiser updates of a step: one loss, summed over micro-batches, for every algorithm of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from talltree.algorithms import Algorithm
from talltree.maths.head import TokenLoss
from talltree.maths.losses import clip_share
from talltree.maths.weights import masked_mean
from talltree.models.optim import set_learning_rate
from talltree.models.score import by_length, completion_loss, likelihoods, precision
from talltree.stages.rl.processes import ALONE, Team
from talltree.stages.rl.shares import shared_rows
from talltree.stages.rl.value import (
    NonFinite,
    ValueFigures,
    ValueObjective,
    ValuePart,
    backward,
    finite,
    value_weights,
)
from talltree.types import Rollout, Scored

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BrokenStep(NonFinite):
    """The same, found after an update of this step or the one before it had moved the weights."""


class Passes(NamedTuple):
    """How a step's completions are gone over; `clip` holds the bounds of a clipped surrogate.

    parts: how many an update is computed in; None: as few as `models.score.by_length` makes. recomputes: old
    log-probs are the trainer's own, read again before the first update, and not the sampler's. critic_alone:
    whatever the critic does not own keeps its weights, a body that it shares among them.
    """

    iterations: int
    mini_batches: int
    parts: int | None
    clip: tuple[float, float] | None
    max_grad_norm: float | None
    bfloat16: bool
    fast: bool
    recomputes: bool
    critic_alone: bool = False


class Figures(NamedTuple):
    """Means over the step's updates; entropy (nats a token) is of the distributions met in the first pass."""

    loss: float
    grad_norm: float
    ratio_mean: float
    clip_share: float
    approx_kl: float
    entropy: float
    learning_rate: float
    value: ValueFigures | None


class Objective(NamedTuple):
    """loss = sum(weights_NT * (surrogate [+ kl_coef * KL estimate])) at a temperature, for one batch.

    With a critic its value loss is added.
    """

    algorithm: Algorithm
    scored: Scored
    advantage_NT: Tensor
    temperature: float
    kl_coef: float
    kl_loss: Callable[[Tensor, Tensor], Tensor]
    value: ValueObjective | None = None


class _Sums(NamedTuple):
    loss: float
    ratio: float
    clipped: float
    approx_kl: float
    entropy_M: Tensor
    value: ValuePart | None


def update(
    policy: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    passes: Passes,
    next_learning_rate: Callable[[], float],
    generator: torch.Generator,
    team: Team = ALONE,
) -> Figures:
    """Makes iterations x mini_batches updates with the objective's gradient.

    The weights are computed over a whole mini-batch before it is split among processes and into parts, so the
    split cannot change the loss. Raises NonFinite before the optimiser moves anything, BrokenStep where a
    later update fails or the weights themselves are no longer finite; no gradient is left behind.
    """
    rollout = objective.scored.rollout
    N, device = len(rollout.logp_NT), rollout.logp_NT.device
    old_logp_NT = rollout.logp_NT
    if passes.recomputes:
        with precision(device, passes.bfloat16):
            old_logp_NT = shared_rows(
                team,
                rollout,
                lambda rows: likelihoods(policy, rows, objective.temperature, fast=passes.fast),
            )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # A separate critic's gradient must not take up the policy's share of the bound.
    models = _apart(parameters, objective.value)
    held = _not_the_critics(parameters, objective.value) if passes.critic_alone else []
    done: list[_Sums] = []
    norms: list[list[float]] = []
    try:
        for _ in range(passes.iterations):
            order = torch.randperm(N, generator=generator) if passes.mini_batches > 1 else torch.arange(N)
            for rows in order.to(device).chunk(passes.mini_batches):
                sums = _backward_of_all(team, policy, objective, passes, old_logp_NT, rows)
                for parameter in held:
                    parameter.grad = None
                team.sum_gradients(parameters)
                norms.append([_checked_norm(each, passes.max_grad_norm) for each in models])
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
        grad_norm=_mean([each[0] for each in norms]),
        ratio_mean=_mean([sums.ratio for sums in done]),
        clip_share=_mean([sums.clipped for sums in done]),
        approx_kl=_mean([sums.approx_kl for sums in done]),
        entropy=float(torch.cat([sums.entropy_M for sums in done[: passes.mini_batches]]).mean()),
        learning_rate=learning_rate,
        value=_value_figures(done, norms),
    )


def _not_the_critics(
    parameters: list[torch.nn.Parameter], value: ValueObjective | None
) -> list[torch.nn.Parameter]:
    own = set() if value is None else {id(each) for each in value.critic.parameters().values()}
    return [p for p in parameters if id(p) not in own]


def _apart(
    parameters: list[torch.nn.Parameter], value: ValueObjective | None
) -> list[list[torch.nn.Parameter]]:
    """The policy's parameters and, where its body is separate, the critic's."""
    if value is None or value.critic.is_shared:
        return [parameters]
    return [_not_the_critics(parameters, value), list(value.critic.parameters().values())]


def _value_figures(done: list[_Sums], norms: list[list[float]]) -> ValueFigures | None:
    parts = [sums.value for sums in done if sums.value is not None]
    if not parts:
        return None
    own_norm = _mean([each[1] for each in norms]) if len(norms[0]) > 1 else None
    return ValueFigures(
        _mean([part.loss for part in parts]), _mean([part.clipped for part in parts]), own_norm
    )


def _backward_of_all(
    team: Team,
    policy: PreTrainedModel,
    objective: Objective,
    passes: Passes,
    old_logp_NT: Tensor,
    rows: Tensor,
) -> _Sums:
    """`_backward` of an update's rows, each process its own; the sums are those of all."""
    share = team.share(len(rows))

    def mine() -> _Sums:
        sums = _backward(policy, objective, passes, old_logp_NT, rows, rows[share])
        return sums if team.size == 1 else sums._replace(entropy_M=sums.entropy_M.cpu())

    loss, ratio, clipped, approx_kl, entropy_M, value = zip(*team.gathered(mine), strict=True)
    parts = [part for part in value if part is not None]
    return _Sums(sum(loss), sum(ratio), sum(clipped), sum(approx_kl), torch.cat(entropy_M), _summed(parts))


def _summed(parts: list[ValuePart]) -> ValuePart | None:
    return ValuePart(*map(sum, zip(*parts, strict=True))) if parts else None


def _backward(
    policy: PreTrainedModel,
    objective: Objective,
    passes: Passes,
    old_logp_NT: Tensor,
    rows: Tensor,
    mine: Tensor,
) -> _Sums:
    """Accumulates over its parts what the rows `mine` add to the gradient of an update of `rows`.

    Raises NonFinite for its loss.
    """
    scored, advantage_NT = objective.scored, objective.advantage_NT
    rollout = scored.rollout
    drawn_NT = rollout.completion_mask_NT
    mask_NT = drawn_NT & scored.scored_N.unsqueeze(1)
    weights_NT = torch.zeros_like(rollout.logp_NT)
    weights_NT[rows] = objective.algorithm.weights(mask_NT[rows], dtype=weights_NT.dtype)
    tokens = mask_NT[rows].sum().clamp(min=1)
    value = objective.value
    value_weights_NU = None if value is None else value_weights(value, rows)
    loss_sum = ratio_sum = clipped_sum = approx_kl_sum = 0.0
    entropies, value_parts = [], []
    for part in _parts(rollout, mine, passes.parts):
        width = int(drawn_NT[part].sum(1).max())
        mask, drawn = mask_NT[part, :width], drawn_NT[part, :width]
        old, advantage, ref, weights = (
            each[part, :width] for each in (old_logp_NT, advantage_NT, scored.ref_logp_NT, weights_NT)
        )
        token_loss = _token_loss(objective, *(each[drawn] for each in (old, advantage, ref, weights)))
        texts = [rollout.prompt_ids[i] for i in part.tolist()], rollout.completion_ids_NT[part, :width], drawn
        with precision(rows.device, passes.bfloat16):
            current = completion_loss(
                policy,
                *texts,
                objective.temperature,
                token_loss,
                fast=passes.fast,
                value_head=value.critic.head if value is not None and value.critic.is_shared else None,
            )
        if value is None or value_weights_NU is None:
            finite(current.loss).backward()
        else:
            value_parts.append(backward(current, value, value_weights_NU, part, texts, passes.bfloat16))
        loss_sum += current.loss.item()
        share = float(mask.sum() / tokens)
        moved = current.logp_NT - old
        ratio_sum += share * float(masked_mean(torch.exp(moved), mask))
        approx_kl_sum += share * float(masked_mean(0.5 * moved.square(), mask))
        if passes.clip is not None:
            clipped_sum += share * float(clip_share(current.logp_NT, old, advantage, mask, *passes.clip))
        entropies.append(current.entropy_NT[drawn])
    entropy_M = torch.cat(entropies) if entropies else old_logp_NT.new_zeros(0)
    return _Sums(loss_sum, ratio_sum, clipped_sum, approx_kl_sum, entropy_M, _summed(value_parts))


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
    """Some rows in parts of similar length: `count` of them, or as few as memory likes."""
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
