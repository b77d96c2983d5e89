"""Sampling, scoring and measuring a policy with a run's parts: the preflight, and before and after."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from talltree import checkpoint, rewards
from talltree.errors import RewardError
from talltree.evals.samples import summarise
from talltree.metrics import component_key
from talltree.models.score import precision
from talltree.preflight import BFLOAT16_TOLERANCE, TOLERANCE, Check, critic_checks, preflight
from talltree.rollout import collect, reference_logp, rewarded, sample_columns, scored
from talltree.stages.rl.config import Config
from talltree.stages.rl.parts import Parts
from talltree.stages.rl.shares import shared_rollout, shared_rows
from talltree.types import Prompt, Rollout, Scored

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFLIGHT_SAMPLES = 8
PREFLIGHT_STREAM, EVALUATION_STREAM = 2**40, 2**41
"""Added to the seed, so that no other seed's training draws the same numbers."""


def run_preflight(config: Config, parts: Parts) -> list[Check]:
    """The numeric contract, measured on a few samples. Raises RewardError if they cannot be scored."""
    prompts = repeated(parts.prompts, PREFLIGHT_SAMPLES)
    rollout = collect_rollout(config, parts, prompts, seeded(PREFLIGHT_STREAM + config.seed))
    scored = score_rollout(config, parts, rollout, config.coef)
    _check_names(scored)
    columns_of(parts, scored, torch.zeros_like(rollout.logp_NT))
    bfloat16 = config.dtype == "bfloat16"
    with precision(rollout.logp_NT.device, bfloat16):
        checks = preflight(
            parts.policy,
            parts.reference,
            rollout,
            temperature=config.temperature,
            stop_ids=parts.stop_ids,
            max_completion_length=config.max_completion_length,
            truncation=parts.truncation,
            tolerance=BFLOAT16_TOLERANCE if bfloat16 else TOLERANCE,
            is_own_reference=config.reference_model_name_or_path is None,
        )
    if parts.critic is not None:
        checks += critic_checks(parts.critic, rollout, config.critic.head == "zero")
    rewards_K = scored.reward_N[scored.scored_N]
    low, high = float(rewards_K.min()), float(rewards_K.max())
    status = "note" if low == high else "ok"
    checks.append(
        Check(f"reward over {PREFLIGHT_SAMPLES} samples", f"{low:g} to {high:g}", "not constant", status)
    )
    return checks


def _check_names(scored: Scored) -> None:
    """Raises RewardError for a component whose metric would be called like another one."""
    try:
        for name in scored.components if len(scored.components) > 1 else ():
            component_key(name)
    except ValueError as clash:
        raise RewardError(f"{clash}; rename the function") from clash


def measure(config: Config, parts: Parts, coef: float, rows: Path, model: PreTrainedModel) -> dict[str, Any]:
    """Fresh samples of a model from held-out prompts, stored in `rows` as JSON lines.

    A seed of their own pairs the draws before and after.
    """
    prompts = repeated(parts.held_out, config.eval_samples)
    draws = seeded(EVALUATION_STREAM + config.seed)
    rollout = collect_rollout(config, parts, prompts, draws, model)
    scored = score_rollout(config, parts, rollout, coef)
    columns = columns_of(parts, scored, torch.zeros_like(rollout.logp_NT))
    names = [name for name in columns if name not in ("prompt_ids", "completion_ids", "advantage")]
    lines = [
        json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False)
        for row in zip(*(columns[name] for name in names), strict=True)
    ]
    checkpoint.write_file(rows, ("\n".join(lines) + "\n").encode())
    return summarise(scored)


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def repeated(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` prompts, taken round and round, equal texts adjacent."""
    return sorted(itertools.islice(itertools.cycle(prompts), count), key=lambda prompt: prompt.text)


def collect_rollout(
    config: Config,
    parts: Parts,
    prompts: Sequence[Prompt],
    generator: torch.Generator,
    model: PreTrainedModel | None = None,
) -> Rollout:
    """`rollout.collect` from a model, or from the policy as it stands; each process samples its own rows.

    Every process draws for all rows, so a row's draws do not depend on the number of processes.
    """

    def draw(rows: slice) -> Rollout:
        return collect(
            parts.policy if model is None else model,
            parts.tokenizer,
            prompts[rows],
            parts.ids_of,
            max_completion_length=config.max_completion_length,
            stop_ids=parts.stop_ids,
            temperature=config.temperature,
            generator=generator,
            truncation=parts.truncation,
            fast=config.fast,
        )

    def drawn_elsewhere(rows: int) -> None:
        torch.rand(rows, config.max_completion_length, dtype=torch.float64, generator=generator)

    mine = parts.team.share(len(prompts))
    drawn_elsewhere(mine.start)
    rollout = shared_rollout(parts.team, len(prompts), draw, parts.policy.device)
    drawn_elsewhere(len(prompts) - mine.stop)
    return rollout


def score_rollout(config: Config, parts: Parts, rollout: Rollout, coef: float) -> Scored:
    """`rollout.scored` against the reference, which is read in the precision of what it is compared with.

    In the reward that is the sampler's float32, in the loss the trainer's passes. The main process calls the
    reward, on the whole batch.
    """
    given = parts.team.on_main(lambda: rewarded(rollout, parts.reward))
    kl_in_reward = parts.algorithm.kl_in == "reward"
    with precision(rollout.logp_NT.device, config.dtype == "bfloat16" and not kl_in_reward):
        ref_logp_NT = shared_rows(
            parts.team,
            rollout,
            lambda rows: reference_logp(rows, parts.reference, config.temperature, fast=config.fast),
        )
    return scored(
        rollout, given, ref_logp_NT, coef=coef, kl_in_reward=kl_in_reward, missing_end=config.missing_end
    )


def columns_of(parts: Parts, scored: Scored, advantage_NT: Tensor) -> dict[str, list[Any]]:
    """`rollout.sample_columns` with the spans that the reward names."""
    return sample_columns(
        scored, advantage_NT, lambda prompt, completion: rewards.spans(parts.reward, prompt, completion)
    )
