"""One step: completions, rewards, values and advantages, then the updates on them."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from talltree.algorithms import GAE
from talltree.console import Story
from talltree.maths.advantages import MovingBaseline, Targets, state_mask
from talltree.maths.kl import kl_loss
from talltree.models.critic import Critic
from talltree.models.optim import schedule
from talltree.models.score import precision
from talltree.rollout import state_rewards
from talltree.stages.rl.config import Config
from talltree.stages.rl.measure import collect_rollout, columns_of, score_rollout, seeded
from talltree.stages.rl.parts import Parts
from talltree.stages.rl.shares import shared_rows
from talltree.stages.rl.state import State
from talltree.stages.rl.update import BrokenStep, Figures, Objective, Passes, update
from talltree.stages.rl.value import NonFinite, ValueObjective
from talltree.types import Prompt, Rollout, Scored


class Batch(NamedTuple):
    """A step's completions and what is known before the update; making one changes only the generator.

    targets: what a critic made of them, None without one. columns: the main process's alone.
    """

    scored: Scored
    advantage_NT: Tensor
    targets: Targets | None
    baseline: MovingBaseline
    columns: dict[str, list[Any]]
    coef: float
    clock: list[float]


def make_batch(config: Config, parts: Parts, state: State) -> Batch:
    """Rollout, rewards, values, advantages. Raises RewardError, and NonFinite with its source."""
    step, coef = state.step + 1, state.controller.coef
    clock = [time.monotonic()]
    rollout = collect_rollout(config, parts, _step_prompts(config, parts, step), state.generator)
    if not torch.isfinite(rollout.logp_NT).all():
        raise BrokenStep(
            "non-finite log-prob of a sample: the weights are too large; use a lower learning_rate"
        )
    clock.append(time.monotonic())
    scored = score_rollout(config, parts, rollout, coef)
    if not torch.isfinite(scored.ref_logp_NT).all():
        raise NonFinite("non-finite log-prob under the reference")
    if parts.critic is not None:
        scored = dataclasses.replace(scored, value_NU=_values(config, parts, parts.critic, rollout))
    advantage_NT, baseline, targets = _advantages(config, parts, state, scored, coef)
    if not torch.isfinite(advantage_NT).all():
        low, high = float(scored.reward_N.min()), float(scored.reward_N.max())
        raise NonFinite(f"non-finite advantage, from rewards of {low:g} to {high:g}; scale the reward down")
    columns = parts.team.together(
        lambda: columns_of(parts, scored, advantage_NT) if parts.team.is_main else {}
    )
    clock.append(time.monotonic())
    return Batch(scored, advantage_NT, targets, baseline, columns, coef, clock)


def warms_up(config: Config, step: int) -> bool:
    """Whether the critic learns alone in that step."""
    return config.algorithm == "ppo" and step <= config.critic.warmup_steps


def _values(config: Config, parts: Parts, critic: Critic, rollout: Rollout) -> Tensor:
    """The critic's values before the step's updates, in their precision. Raises NonFinite."""
    with precision(rollout.logp_NT.device, config.dtype == "bfloat16"):
        value_NU = shared_rows(parts.team, rollout, critic.values)
    if not torch.isfinite(value_NU).all():
        raise NonFinite("non-finite value of the critic; use a lower critic.learning_rate")
    return value_NU


def _advantages(
    config: Config, parts: Parts, state: State, scored: Scored, coef: float
) -> tuple[Tensor, MovingBaseline, Targets | None]:
    mask_NT = scored.rollout.completion_mask_NT
    row = parts.algorithm.advantage
    if isinstance(row, GAE):
        if scored.value_NU is None:
            raise TypeError("an advantage by GAE needs the values of a critic")
        policy_mask_NT = mask_NT & scored.scored_N.unsqueeze(1)
        targets = row(
            state_rewards(scored, coef), scored.value_NU, state_mask(policy_mask_NT), policy_mask_NT
        )
        return targets.advantage_NT, state.baseline, targets
    advantage_NT, baseline = row(
        scored.token_reward_NT, mask_NT, scored.scored_N, config.num_generations, state.baseline
    )
    return advantage_NT, baseline, None


def make_update(config: Config, parts: Parts, state: State, batch: Batch) -> Figures:
    """The step's optimiser updates. Raises NonFinite, and BrokenStep where weights have moved already."""
    total = config.steps * config.iterations * config.num_mini_batches

    def next_learning_rate() -> float:
        factor = schedule(config.lr_scheduler_type, state.updates, total, config.warmup_steps)
        state.updates += 1
        return config.learning_rate * factor

    objective = Objective(
        parts.algorithm,
        batch.scored,
        batch.advantage_NT,
        config.temperature,
        batch.coef,
        kl_loss(config.kl.loss),
        _value_objective(config, parts, batch),
    )
    passes = Passes(
        config.iterations,
        config.num_mini_batches,
        config.gradient_accumulation_steps,
        config.clip,
        config.max_grad_norm,
        config.dtype == "bfloat16",
        config.fast,
        parts.recompute_reason is not None,
        warms_up(config, state.step + 1),
    )
    figures = update(
        parts.policy, parts.optimizer, objective, passes, next_learning_rate, state.generator, parts.team
    )
    batch.clock.append(time.monotonic())
    return figures


def _value_objective(config: Config, parts: Parts, batch: Batch) -> ValueObjective | None:
    scored = batch.scored
    if parts.critic is None or scored.value_NU is None or batch.targets is None:
        return None
    policy_mask_NT = scored.rollout.completion_mask_NT & scored.scored_N.unsqueeze(1)
    return ValueObjective(
        parts.critic,
        scored.value_NU,
        batch.targets.return_NU,
        state_mask(policy_mask_NT),
        config.value_coef,
        config.value_clip,
    )


def typical_story(batch: Batch) -> Story:
    """The completion of median reward: the best would flatter the run."""
    columns = batch.columns
    scored = [i for i, is_scored in enumerate(batch.scored.scored_N.tolist()) if is_scored]
    median = sorted(scored, key=lambda i: float(batch.scored.reward_N[i]))[len(scored) // 2]
    return Story(columns["prompt"][median], columns["completion"][median], columns["spans"][median])


def _step_prompts(config: Config, parts: Parts, step: int) -> list[Prompt]:
    """The groups of a step: prompts in an order shuffled anew in each pass, from seed and step alone."""
    groups, count = config.batch_size // config.num_generations, len(parts.prompts)
    chosen = []
    for place in range((step - 1) * groups, step * groups):
        order = torch.randperm(count, generator=seeded(config.seed * 1_000_003 + place // count))
        chosen.append(parts.prompts[int(order[place % count])])
    return [prompt for prompt in chosen for _ in range(config.num_generations)]
