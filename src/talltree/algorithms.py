"""The algorithms as rows of one table: advantage, surrogate, weights, and where the KL stands.

One update is loss = sum(weights_NT * surrogate(logp, old_logp, advantage)). A new algorithm is one more
function that returns an `Algorithm`, and its line in ROWS; its keyword arguments are its options.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from talltree.errors import ConfigError
from talltree.maths import advantages, losses, weights
from talltree.maths.advantages import MovingBaseline, Targets, critic_targets
from talltree.maths.losses import Surrogate

T = TypeVar("T")

Weights = Callable[..., Tensor]
"""(mask_NT, dtype=float32) -> weights_NT."""


Advantage = Callable[..., tuple[Tensor, MovingBaseline]]
"""(token_reward_NT, mask_NT, scored_N, group_size, baseline) -> (advantage_NT, next baseline).

advantage_NT is 0 in the padding; a baseline that an algorithm does not use is handed back as it came.
"""


class GAE(NamedTuple):
    """An advantage that takes a critic: the settings of `maths.advantages.critic_targets`."""

    gamma: float
    lam: float
    whiten_rewards: bool
    whiten_advantages: bool

    def __call__(
        self, reward_NU: Tensor, value_NU: Tensor, value_mask_NU: Tensor, policy_mask_NT: Tensor
    ) -> Targets:
        """`critic_targets` with these settings."""
        return critic_targets(reward_NU, value_NU, value_mask_NU, policy_mask_NT, **self._asdict())


class Algorithm(NamedTuple):
    """Four choices; kl_in says whether -coef * k1 stands in each token's reward or coef * k3 in the loss."""

    advantage: Advantage | GAE
    surrogate: Surrogate
    weights: Weights
    kl_in: Literal["reward", "loss"]


Estimate = Callable[[Tensor, int, Tensor, MovingBaseline], tuple[Tensor, MovingBaseline]]
"""(return_N, group_size, scored_N, baseline) -> (advantage_N, next baseline)."""


def per_rollout(estimate: Estimate) -> Advantage:
    """An advantage per rollout, from its return, repeated on each of its tokens."""

    def advantage(
        token_reward_NT: Tensor,
        mask_NT: Tensor,
        scored_N: Tensor,
        group_size: int,
        baseline: MovingBaseline,
    ) -> tuple[Tensor, MovingBaseline]:
        return_N = advantages.returns(token_reward_NT, mask_NT)
        advantage_N, baseline = estimate(return_N, group_size, scored_N, baseline)
        return torch.where(mask_NT, advantage_N.unsqueeze(1), 0.0), baseline

    return advantage


def stateless(estimate: Callable[[Tensor, int, Tensor], Tensor]) -> Advantage:
    """per_rollout for an estimate that keeps nothing from one batch to the next."""
    return per_rollout(
        lambda return_N, size, scored_N, baseline: (estimate(return_N, size, scored_N), baseline)
    )


BASELINES: dict[str, Advantage] = {
    "none": stateless(advantages.no_baseline),
    "moving": per_rollout(
        lambda r_N, _, scored_N, baseline: advantages.moving_average(r_N, baseline, scored_N)
    ),
    "batch": stateless(advantages.batch_baseline),
}


def reinforce(baseline: str = "none") -> Algorithm:
    """REINFORCE: reward, or reward minus a "moving" or "batch" baseline. Williams 1992."""
    return Algorithm(
        _known("baseline", baseline, BASELINES), losses.policy_gradient, weights.per_rollout, "reward"
    )


def rloo() -> Algorithm:
    """REINFORCE leave-one-out: reward minus the mean of the others in its group. arXiv:2402.14740."""
    return Algorithm(
        stateless(advantages.leave_one_out), losses.policy_gradient, weights.per_rollout, "reward"
    )


def grpo(
    standardise: bool = True,
    constant_length: float | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Algorithm:
    """GRPO, arXiv:2402.03300; with standardise False and constant_length set, Dr. GRPO, arXiv:2503.20783.

    constant_length (tokens, as a rule max_completion_length) replaces the division by each rollout's own
    length.
    """
    estimate = advantages.group_standardised if standardise else advantages.group_centred
    surrogate = _clipped(clip_low, clip_high)
    normalise: Weights = weights.per_sequence
    if constant_length is not None:
        if not constant_length > 0:
            raise ConfigError(f"constant_length {constant_length} must be above 0; use max_completion_length")
        normalise = partial(weights.constant_length, length=constant_length)
    return Algorithm(stateless(estimate), surrogate, normalise, "loss")


def ppo(
    gamma: float = 1.0,
    lam: float = 0.95,
    whiten_rewards: bool = True,
    whiten_advantages: bool = True,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Algorithm:
    """PPO with a critic: GAE(gamma, lam) over rewards per token, clipped ratio. Ziegler et al. 2019."""
    for name, value in (("gamma", gamma), ("lam", lam)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} {value:g} must lie between 0 and 1; 1 and 0.95 are usual")
    estimate = GAE(gamma, lam, whiten_rewards, whiten_advantages)
    return Algorithm(estimate, _clipped(clip_low, clip_high), weights.per_token, "reward")


ROWS: dict[str, Callable[..., Algorithm]] = {
    "reinforce": reinforce,
    "rloo": rloo,
    "grpo": grpo,
    "ppo": ppo,
}
GROUPED = frozenset({"rloo", "grpo"})
"""Algorithms that compare the generations of one prompt, hence need two or more."""


def algorithm(name: str, **options: Any) -> Algorithm:
    """The named row with its options; an option of None means the row's own default.

    Raises ConfigError for an unknown name (with the nearest), an option that the row does not have, or its
    bad value.
    """
    row = _known("algorithm", name, ROWS)
    given = {key: value for key, value in options.items() if value is not None}
    accepted = inspect.signature(row).parameters
    for key, value in given.items():
        if key not in accepted:
            has = f"its options are {', '.join(accepted)}" if accepted else "it has no options"
            raise ConfigError(f"{key} {value!r} does not belong to algorithm {name!r}; {has}")
    return row(**given)


def check_groups(name: str, num_generations: int, batch_size: int) -> None:
    """Raises ConfigError unless the batch splits into groups that are large enough for the algorithm."""
    least = 2 if name in GROUPED else 1
    if num_generations < least:
        raise ConfigError(f"num_generations {num_generations} is too few for {name}; use {least} or more")
    if batch_size < 1 or batch_size % num_generations:
        below = batch_size - batch_size % num_generations
        sizes = f"{below} or {below + num_generations}" if below > 0 else f"{num_generations}"
        raise ConfigError(
            f"batch_size {batch_size} is not divisible by num_generations {num_generations}; try {sizes}"
        )


def _clipped(low: float, high: float) -> Surrogate:
    try:
        return losses.clipped(low, high)
    except ValueError as refusal:
        raise ConfigError(str(refusal)) from None


def _known(what: str, name: str, table: dict[str, T]) -> T:
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"{what} {name!r} is unknown; {hint}known: {', '.join(table)}")
