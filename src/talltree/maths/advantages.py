"""Advantages: from rewards to what multiplies each token's log-prob.

A rollout that was not scored (scored_N False) gets advantage 0 and enters no baseline. Rewards stand in runs
of group_size, one run per prompt. Functions that need no groups still take group_size, so that all share one
shape.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from talltree.maths.weights import masked_mean


def token_rewards(reward_N: Tensor, mask_NT: Tensor, kl_NT: Tensor, coef: float) -> Tensor:
    """Reward per token: the rollout's reward on its last completion token, and -coef * kl on every token.

    reward_N, mask_NT with trailing padding, kl_NT (nats, as of k1; zeros where KL is not in the reward) ->
    (N, T), 0 in the padding, without gradient. A row without tokens keeps no reward.
    """
    position_T = torch.arange(mask_NT.shape[1], device=mask_NT.device)
    last_NT = mask_NT & (position_T == mask_NT.sum(1, keepdim=True) - 1)
    penalty_NT = torch.where(mask_NT, -coef * kl_NT.detach(), 0.0)
    return penalty_NT + torch.where(last_NT, reward_N.detach().unsqueeze(1), 0.0)


def returns(token_reward_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Undiscounted return of each rollout: the sum of its token rewards, (N, T) -> (N,)."""
    return torch.where(mask_NT, token_reward_NT, 0.0).sum(1)


def no_baseline(rewards_N: Tensor, group_size: int = 1, scored_N: Tensor | None = None) -> Tensor:
    """The reward itself: A_i = r_i, (N,) -> (N,). Unbiased, of the highest variance. Williams 1992."""
    return torch.where(_scored(rewards_N, scored_N), rewards_N, 0.0)


def batch_baseline(rewards_N: Tensor, group_size: int = 1, scored_N: Tensor | None = None) -> Tensor:
    """Reward minus the mean of the batch's M scored rewards, r_i included: A_i = r_i - mean(r).

    (N,) -> (N,). Because the mean includes r_i the expected gradient is (M - 1) / M of the true one: right in
    direction, shorter. A batch with a single scored rollout gives 0.
    """
    scored_N = _scored(rewards_N, scored_N)
    return torch.where(scored_N, rewards_N - masked_mean(rewards_N, scored_N), 0.0)


def leave_one_out(rewards_N: Tensor, group_size: int, scored_N: Tensor | None = None) -> Tensor:
    """Leave-one-out advantage: A_i = r_i - mean of the other scored rewards of its group.

    rewards_N in runs of G -> (N,). Unbiased. Raises ValueError if G < 2 or N is no multiple of G. A group
    with a single scored member, or with equal rewards, gives 0. Ahmadian et al. 2024, arXiv:2402.14740.
    """
    centred_PG, count_P1 = _centred(rewards_N, group_size, scored_N)
    return (centred_PG * count_P1 / (count_P1 - 1).clamp(min=1)).flatten()


def group_centred(rewards_N: Tensor, group_size: int, scored_N: Tensor | None = None) -> Tensor:
    """Reward minus the mean of its group, itself included: A_i = r_i - mean(r).

    rewards_N in runs of G -> (N,). The expected gradient is (G - 1) / G of the true one. Raises and
    degenerates as leave_one_out. Liu et al. 2025, arXiv:2503.20783 (Dr. GRPO).
    """
    centred_PG, _ = _centred(rewards_N, group_size, scored_N)
    return centred_PG.flatten()


def group_standardised(
    rewards_N: Tensor, group_size: int, scored_N: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """Group reward in deviations: A_i = (r_i - mean(r)) / (std(r) + eps), std over G - 1 degrees of freedom.

    rewards_N in runs of G -> (N,). Biased: dividing by each group's deviation changes the direction of the
    expected gradient. Raises and degenerates as leave_one_out. Shao et al. 2024, arXiv:2402.03300 (GRPO).
    """
    centred_PG, count_P1 = _centred(rewards_N, group_size, scored_N)
    variance_P1 = centred_PG.square().sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)
    return (centred_PG / (variance_P1.sqrt() + eps)).flatten()


class MovingBaseline(NamedTuple):
    """The mean reward of earlier batches, each weighing decay times the next; `batches` have entered."""

    mean: float = 0.0
    decay: float = 0.9
    batches: int = 0


def moving_average(
    rewards_N: Tensor, baseline: MovingBaseline, scored_N: Tensor | None = None
) -> tuple[Tensor, MovingBaseline]:
    """Reward minus the mean of earlier batches, A_i = r_i - mean, and the baseline after this batch.

    (N,) -> (N,). Unbiased: a batch never enters its own baseline. The first scored batch, having no earlier
    one, takes the mean of its other rollouts instead (0 for a single one). mean += (batch mean - mean) * (1 -
    decay) / (1 - decay^batches): the exponential average without the pull of its start. A batch without
    scores leaves the baseline as it is. Raises ValueError unless 0 <= decay < 1.
    """
    if not 0 <= baseline.decay < 1:
        raise ValueError(f"baseline decay {baseline.decay} must be at least 0 and below 1; 0.9 is usual")
    scored_N = _scored(rewards_N, scored_N)
    scored_count = int(scored_N.sum())
    if scored_count == 0:
        return torch.zeros_like(rewards_N), baseline
    if baseline.batches > 0:
        advantage_N = torch.where(scored_N, rewards_N - baseline.mean, 0.0)
    elif scored_count > 1:
        advantage_N = leave_one_out(rewards_N, rewards_N.shape[0], scored_N)
    else:
        advantage_N = torch.zeros_like(rewards_N)
    batches = baseline.batches + 1
    share = (1 - baseline.decay) / (1 - baseline.decay**batches)
    batch_mean = float(masked_mean(rewards_N.cpu().double(), scored_N.cpu()))
    mean = baseline.mean + share * (batch_mean - baseline.mean)
    return advantage_N, MovingBaseline(mean, baseline.decay, batches)


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Values in deviations: (x - mean) / sqrt(var + eps), plus the mean again where shift_mean is False.

    values and mask of one shape -> the same, 0 outside the mask; mean and population variance are of the
    masked values only. A single value gives 0, or itself where the mean is kept. Ziegler et al. 2019 whiten
    rewards without shifting the mean, advantages fully.
    """
    mean = masked_mean(values, mask)
    whitened = (values - mean) * whitening_factor(values, mask, eps)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0.0)


def whitening_factor(values: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """What `whiten` multiplies distances from the mean by: 1 / sqrt(population variance + eps), a scalar."""
    return torch.rsqrt(_variance(values, mask) + eps)


def gae(
    token_rewards_NT: Tensor, values_NT: Tensor, mask_NT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimate: A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t.

    values_NT[:, t] is the value before token t; after the last token of a row value and advantage are 0,
    whatever the padding holds. (N, T) -> advantages and returns (A + V), both (N, T) and 0 in the padding.
    With gamma = lam = 1: return - value. Raises ValueError unless both lie in [0, 1]. Schulman et al. 2016,
    arXiv:1506.02438.
    """
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma {gamma} and lam {lam} must lie between 0 and 1; 1 and 0.95 are usual")
    rewards_NT = torch.where(mask_NT, token_rewards_NT, 0.0)
    value_NT = torch.where(mask_NT, values_NT, 0.0)
    next_value_NT = torch.nn.functional.pad(value_NT[:, 1:], (0, 1))
    delta_NT = rewards_NT + gamma * next_value_NT - value_NT
    advantage_N = torch.zeros_like(delta_NT[:, 0])
    backwards = []
    for delta_N in reversed(delta_NT.unbind(1)):
        advantage_N = delta_N + gamma * lam * advantage_N
        backwards.append(advantage_N)
    advantage_NT = torch.stack(backwards[::-1], dim=1)
    return advantage_NT, advantage_NT + value_NT


def state_mask(mask_NT: Tensor) -> Tensor:
    """The states of each completion: before every token, and the finished text, one position past the last.

    mask_NT with trailing padding -> (N, U), U = T + 1; a row without tokens has no state.
    """
    state_U = torch.arange(mask_NT.shape[1] + 1, device=mask_NT.device)
    length_N1 = mask_NT.sum(1, keepdim=True)
    return (state_U <= length_N1) & (length_N1 > 0)


class Targets(NamedTuple):
    """What a critic makes of a batch; nothing carries a gradient, and outside the masks all is 0.

    advantage_NT for the policy; return_NU, which the values are to reach; raw_advantage_NT before whitening;
    reward_scale: the factor of the rewards' whitening, 1 without it.
    """

    advantage_NT: Tensor
    return_NU: Tensor
    raw_advantage_NT: Tensor
    reward_scale: Tensor


def critic_targets(
    reward_NU: Tensor,
    value_NU: Tensor,
    value_mask_NU: Tensor,
    policy_mask_NT: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    whiten_rewards: bool = True,
    whiten_advantages: bool = True,
) -> Targets:
    """Advantages and returns of states by `gae`, rewards and advantages whitened over their own masks.

    reward_NU[:, t] is paid on leaving state t: the price of KL by token t, and on the finished text, which no
    token leaves, the score. So value_mask_NU reaches one position past policy_mask_NT, and a policy mask in
    its place would lose the score. Rewards keep their mean, advantages do not. Raises ValueError as `gae`,
    and where the masks do not lie so. Ziegler et al. 2019, arXiv:1909.08593; Huang et al. 2024,
    arXiv:2403.17031.
    """
    if not torch.equal(state_mask(policy_mask_NT), value_mask_NU):
        raise ValueError(
            "value_mask_NU must be True on the states before each token of policy_mask_NT and on the one "
            "after its last; make it with state_mask"
        )
    scale = torch.ones((), dtype=reward_NU.dtype, device=reward_NU.device)
    if whiten_rewards:
        scale = whitening_factor(reward_NU, value_mask_NU)
        reward_NU = whiten(reward_NU, value_mask_NU, shift_mean=False)
    advantage_NU, return_NU = gae(reward_NU, value_NU, value_mask_NU, gamma, lam)
    raw_NT = torch.where(policy_mask_NT, advantage_NU[:, :-1], 0.0)
    advantage_NT = whiten(raw_NT, policy_mask_NT) if whiten_advantages else raw_NT
    return Targets(advantage_NT, return_NU, raw_NT, scale)


def explained_variance(value: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Share of the targets' variance that the values account for: 1 - var(target - value) / var(target).

    Tensors of one shape -> scalar of at most 1; 0 for a constant value, negative for values worse than one.
    Targets that are all equal have nothing to explain and give 0.
    """
    variance = _variance(target, mask)
    share = 1 - _variance(target - value, mask) / variance
    return torch.where(variance > 0, share, 0.0)


def _variance(values: Tensor, mask: Tensor) -> Tensor:
    return masked_mean((values - masked_mean(values, mask)).square(), mask)


def _scored(rewards_N: Tensor, scored_N: Tensor | None) -> Tensor:
    return torch.ones_like(rewards_N, dtype=torch.bool) if scored_N is None else scored_N


def _centred(rewards_N: Tensor, group_size: int, scored_N: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rewards minus their group's mean, (P, G), 0 where not scored, and the count of scored ones, (P, 1)."""
    total = rewards_N.shape[0]
    if group_size < 2:
        raise ValueError(
            f"group_size {group_size} leaves nothing to compare with; use num_generations of 2 or more"
        )
    if total % group_size:
        fits = total - total % group_size
        either = f"{fits} or {fits + group_size}" if fits else f"{group_size}"
        raise ValueError(f"{total} rollouts are not divisible by group_size {group_size}; try {either}")
    scored_PG = _scored(rewards_N, scored_N).view(-1, group_size)
    rewards_PG = rewards_N.view(-1, group_size)
    count_P1 = scored_PG.sum(1, keepdim=True)
    # Measured from the group's lowest, equal rewards are exactly 0 and leave no rounding to be magnified.
    lowest_P1 = rewards_PG.masked_fill(~scored_PG, torch.inf).amin(1, keepdim=True)
    above_PG = torch.where(scored_PG, rewards_PG - lowest_P1, 0.0)
    mean_P1 = above_PG.sum(1, keepdim=True) / count_P1.clamp(min=1)
    return torch.where(scored_PG, above_PG - mean_P1, 0.0), count_P1
