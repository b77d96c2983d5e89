"""Preflight: the numeric contract measured on the user's own model, reward and prompts before a run starts.

Each check is a row of a table: what was measured, the value, the bound. A breach stops the run, because every
one of these defects trains without complaint and only spoils the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from talltree.errors import ContractError
from talltree.maths.logprobs import logprobs
from talltree.models.critic import Critic
from talltree.models.policy import Reference
from talltree.models.score import hidden_states, likelihood, likelihoods
from talltree.types import Rollout, Truncation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-4
"""Nats: the bound of DESIGN's contract for log-probs, KL and ratio before the first update, in float32."""

BFLOAT16_TOLERANCE = 0.5
"""Nats: bfloat16 keeps 8 bits, so a log-prob of -10 is off by up to 0.03 and outliers reach tenths."""


class Check(NamedTuple):
    """One measured line: status is "ok", "note" (worth knowing) or "breach" (the run must not start)."""

    name: str
    value: str
    bound: str
    status: str


def preflight(
    policy: PreTrainedModel,
    reference: Reference,
    rollout: Rollout,
    *,
    temperature: float,
    stop_ids: Sequence[int],
    max_completion_length: int,
    truncation: Truncation | None = None,
    tolerance: float = TOLERANCE,
    is_own_reference: bool = True,
) -> list[Check]:
    """Measures the contract on a small rollout of the untrained policy; differences are maxima, in nats.

    is_own_reference: the reference is the policy as it starts; another one may lie anywhere, so its distance
    is told and not bounded.
    """
    trained = likelihoods(policy, rollout, temperature)
    again = likelihoods(policy, rollout, temperature)
    alone = _one_by_one(policy, rollout, temperature)
    with reference.model() as model:
        ref_logp_NT = likelihoods(model, rollout, temperature)
    mask_NT = rollout.completion_mask_NT
    ratio_NT = torch.exp(trained - rollout.logp_NT)
    kl_N = (rollout.logp_NT - ref_logp_NT).double().sum(1)

    def bounded(name: str, value: float, bound: float = tolerance) -> Check:
        return Check(name, f"{value:.2e}", f"at most {bound:.0e}", "ok" if value <= bound else "breach")

    def distance(name: str, value: float) -> Check:
        if is_own_reference:
            return bounded(name, value)
        status = "note" if value < float("inf") else "breach"
        return Check(name, f"{value:.2e}", "finite: the reference is another model", status)

    return [
        bounded("log-probs: padded batch against each text alone (nats)", _gap(trained, alone)),
        bounded("log-probs: sampler against trainer (nats)", _gap(rollout.logp_NT, trained)),
        distance("log-probs: policy against reference (nats)", _gap(trained, ref_logp_NT)),
        bounded("ratio before the first update: distance from 1", _gap(ratio_NT[mask_NT], torch.ones(()))),
        distance(
            "KL before the first update (nats a token)", float(kl_N.abs().sum() / mask_NT.sum().clamp(min=1))
        ),
        _dropout_off(policy, _gap(trained, again)),
        _stop_reachable(policy, rollout, temperature, stop_ids, truncation),
        _truncation(rollout, max_completion_length, truncation),
        Check(
            "sampled distribution",
            f"softmax(logits / {temperature:g}), whole vocabulary",
            "no top-k, no top-p",
            "ok",
        ),
    ]


def critic_checks(critic: Critic, rollout: Rollout, starts_at_zero: bool) -> list[Check]:
    """What a critic must keep: values of 0 under a zero head, no dropout, and no look at later tokens.

    The last two are measured on the hidden states that the value head reads, which says more than its values
    while it is 0; a body that attends to later tokens reads padding too.
    """
    value_NU = critic.values(rollout)
    low, high = float(value_NU.min()), float(value_NU.max())
    with torch.no_grad():
        texts = [
            torch.tensor([ids + tokens[mask].tolist()], device=tokens.device)
            for ids, tokens, mask in zip(
                rollout.prompt_ids, rollout.completion_ids_NT, rollout.completion_mask_NT, strict=True
            )
        ]
        whole, again = ([hidden_states(critic.body, text) for text in texts] for _ in range(2))
        halves = [text.shape[1] // 2 + 1 for text in texts]
        first = [hidden_states(critic.body, text[:, :half]) for text, half in zip(texts, halves, strict=True)]
        later = max(
            _gap(one, other[:, :half]) / max(float(one.abs().max()), 1e-6)
            for one, other, half in zip(first, whole, halves, strict=True)
        )
    status = "ok" if not starts_at_zero or low == high == 0.0 else "breach"
    bound = "0: the value head starts at zero" if starts_at_zero else "any: the value head is a loaded one"
    dropout = _dropout_off(critic.body, max(map(_gap, whole, again)))
    name = "critic: states of half a text against those of the whole (share of the largest)"
    return [
        Check("values before the first update", f"{low:g} to {high:g}", bound, status),
        dropout._replace(name="critic: dropout off: two passes differ by"),
        Check(name, f"{later:.2e}", f"at most {TOLERANCE:.0e}", "ok" if later <= TOLERANCE else "breach"),
    ]


def require(checks: Sequence[Check]) -> None:
    """Raises ContractError naming every breach."""
    breaches = [
        f"{check.name} is {check.value}, allowed {check.bound}"
        for check in checks
        if check.status == "breach"
    ]
    if breaches:
        raise ContractError(
            "preflight stopped the run, because its numbers would be wrong: "
            + "; ".join(breaches)
            + " (float32 and a tested architecture keep the contract)"
        )


def _one_by_one(policy: PreTrainedModel, rollout: Rollout, temperature: float) -> Tensor:
    """Log-probs of each text alone, without any padding, laid out like those of the batch."""
    logp_NT = torch.zeros_like(rollout.logp_NT)
    with torch.no_grad():
        for row, ids in enumerate(rollout.prompt_ids):
            length = int(rollout.completion_mask_NT[row].sum())
            tokens = rollout.completion_ids_NT[row : row + 1, :length]
            mask = rollout.completion_mask_NT[row : row + 1, :length]
            logp_NT[row, :length] = likelihood(policy, [ids], tokens, mask, temperature)[0]
    return logp_NT


def _dropout_off(policy: PreTrainedModel, gap: float) -> Check:
    """Two passes over the same texts must agree in every bit, and no module may be in training mode."""
    training = sum(module.training for module in policy.modules())
    value = f"{gap:.2e}" + (f", {training} modules in training mode" if training else "")
    status = "ok" if gap == 0.0 and not training else "breach"
    return Check("dropout off: two passes differ by (nats)", value, "0, every module in eval mode", status)


def _stop_reachable(
    policy: PreTrainedModel,
    rollout: Rollout,
    temperature: float,
    stop_ids: Sequence[int],
    truncation: Truncation | None,
) -> Check:
    """The highest probability of the required end where it may stand in the samples; 0: none can end."""
    ends, start = (stop_ids, 0) if truncation is None else truncation
    best = 0.0
    is_seen = False
    with torch.no_grad():
        for ids, tokens, mask in zip(
            rollout.prompt_ids, rollout.completion_ids_NT, rollout.completion_mask_NT, strict=True
        ):
            text = torch.tensor([ids + tokens[mask].tolist()], device=tokens.device)
            logits_SV = policy(input_ids=text, use_cache=False).logits[0, len(ids) - 1 + start :]
            if len(logits_SV):
                logp_SV = logprobs(logits_SV, temperature)
                best = max(best, float(logp_SV[:, list(ends)].exp().sum(-1).max()))
                is_seen = True
    status = "breach" if best == 0.0 and is_seen else "ok" if best > 0.01 else "note"
    tokens = ", ".join(map(str, ends[:8])) + (", ..." if len(ends) > 8 else "")
    what = f"stop token ({tokens})"
    if truncation is not None:
        what = f"truncate token ({tokens}) from position {start}"
    name = f"{what} reachable: highest probability seen"
    return Check(name, f"{best:.2e}", "above 0", status)


def _truncation(rollout: Rollout, max_completion_length: int, truncation: Truncation | None) -> Check:
    cut = 1.0 - float(rollout.ended_N.float().mean())
    name = f"completions cut at {max_completion_length} tokens"
    if truncation is not None:
        name = f"completions without their truncate token within {max_completion_length} tokens"
    return Check(name, f"{cut:.0%}", "declared", "note" if cut else "ok")


def _gap(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max())
