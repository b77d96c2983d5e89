"""The row of metrics.jsonl that a step leaves; docs/metrics.md gives units and formulas."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from talltree.evals.diversity import diversity, near_duplicates
from talltree.maths.advantages import Targets, explained_variance, state_mask
from talltree.maths.kl import k1, k3, sequence_kl, token_kl
from talltree.metrics import component_key
from talltree.stages.rl.update import Figures
from talltree.types import Scored


def metrics_row(
    step: int,
    scored: Scored,
    advantage_NT: Tensor,
    figures: Figures,
    targets: Targets | None = None,
    *,
    group_size: int,
    coef: float,
    clock: Sequence[float],
) -> dict[str, Any]:
    """One flat row; clock holds four instants in seconds: start, sampled, scored, trained."""
    rollout = scored.rollout
    mask_NT = rollout.completion_mask_NT
    k1_NT, k3_NT = (k(rollout.logp_NT, scored.ref_logp_NT) for k in (k1, k3))
    reward = scored.reward_N[scored.scored_N].tolist()
    advantage = ((advantage_NT * mask_NT).sum(1) / mask_NT.sum(1)).tolist()
    tokens = int(mask_NT.sum())
    varied = diversity(rollout.completions)
    return {
        "step": step,
        "episodes": step * len(mask_NT),
        "reward/mean": statistics.fmean(reward),
        "reward/std": _deviation(reward),
        "reward/max": max(reward),
        **_components(scored),
        "kl/sequence": float(sequence_kl(k1_NT, mask_NT).mean()),
        "kl/token": float(token_kl(k1_NT, mask_NT)),
        "kl/k3": float(token_kl(k3_NT, mask_NT)),
        "kl/coef": coef,
        "policy/entropy": figures.entropy,
        "policy/loss": figures.loss,
        "policy/grad_norm": figures.grad_norm,
        "policy/ratio_mean": figures.ratio_mean,
        "policy/clip_share": figures.clip_share,
        "policy/approx_kl": figures.approx_kl,
        "policy/learning_rate": figures.learning_rate,
        "completion/length": tokens / len(mask_NT),
        "completion/ended": float(rollout.ended_N.float().mean()),
        "diversity/distinct_1": varied.distinct_1,
        "diversity/distinct_2": varied.distinct_2,
        "diversity/unique": varied.unique,
        "diversity/near_duplicates": near_duplicates(rollout.completions),
        "groups/zero_variance": _zero_variance(scored, group_size),
        "advantage/std": _deviation(advantage),
        **({} if targets is None else _critic(scored, targets, figures)),
        "time/sample": clock[1] - clock[0],
        "time/score": clock[2] - clock[1],
        "time/train": clock[3] - clock[2],
        "time/step": clock[3] - clock[0],
        "time/tokens_per_second": tokens / (clock[3] - clock[0]),
    }


def _critic(scored: Scored, targets: Targets, figures: Figures) -> dict[str, Any]:
    """What a critic adds: its loss over the updates, and values, returns and advantages before them."""
    if scored.value_NU is None or figures.value is None:
        raise TypeError("a step with value targets has values and a value loss")
    mask_NT = scored.rollout.completion_mask_NT & scored.scored_N.unsqueeze(1)
    states_NU = state_mask(mask_NT)
    value, target = scored.value_NU[states_NU].double(), targets.return_NU[states_NU].double()
    raw = targets.raw_advantage_NT[mask_NT].double()
    row = {
        "advantage/raw_mean": float(raw.mean()),
        "advantage/raw_std": float(raw.std(correction=0)),
        "value/loss": figures.value.loss,
        "value/clip_share": figures.value.clip_share,
        "value/explained_variance": float(
            explained_variance(value, target, torch.ones_like(value, dtype=torch.bool))
        ),
        "value/mean": float(value.mean()),
        "return/mean": float(target.mean()),
        "return/std": float(target.std(correction=0)),
        "return/scale": float(targets.reward_scale),
    }
    if figures.value.grad_norm is not None:
        row["value/grad_norm"] = figures.value.grad_norm
    return row


def _components(scored: Scored) -> dict[str, float]:
    """Mean of each component where there are several; one that scored nothing has none."""
    if len(scored.components) < 2:
        return {}
    known = {
        component_key(name): [value for value in values if value is not None]
        for name, values in scored.components.items()
    }
    return {key: statistics.fmean(values) for key, values in known.items() if values}


def _zero_variance(scored: Scored, group_size: int) -> float:
    """Share of groups whose scored rewards are all equal, and which thus teach nothing."""
    rewards_PG = scored.reward_N.view(-1, group_size).tolist()
    scored_PG = scored.scored_N.view(-1, group_size).tolist()
    groups = [
        {reward for reward, known in zip(*group, strict=True) if known}
        for group in zip(rewards_PG, scored_PG, strict=True)
    ]
    return sum(len(group) < 2 for group in groups) / len(groups)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
