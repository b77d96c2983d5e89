"""Log-probs of given completions under a model: the trainer's and the reference's side of the contract."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from talltree.maths.head import head_logprobs
from talltree.maths.logprobs import entropy, token_logprobs
from talltree.models.views import base_model
from talltree.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Likelihood(NamedTuple):
    """logp_NT of the tokens and entropy_NT (no gradient) of the distributions: nats, 0 outside the mask."""

    logp_NT: Tensor
    entropy_NT: Tensor


def likelihood(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    completion_ids_NT: Tensor,
    completion_mask_NT: Tensor,
    temperature: float,
) -> Likelihood:
    """Log pi(completion | prompt) per token under softmax(logits / temperature); differentiable.

    Prompt and completion are joined and padded on the right, so that position ids count from 0 and no real
    token attends to padding: neither a mask nor position ids are needed, in any architecture. The vocabulary
    head runs on completion tokens alone. float32, or float64 where the model is.
    """
    device = completion_ids_NT.device
    N, T = completion_ids_NT.shape
    prompt_N = torch.tensor([len(ids) for ids in prompt_ids], device=device)
    length_N = prompt_N + completion_mask_NT.sum(1)
    tokens_NS = torch.zeros(N, int(length_N.max()), dtype=torch.long, device=device)
    for row, ids in enumerate(prompt_ids):
        tokens_NS[row, : len(ids)] = torch.tensor(ids, device=device)
    row_M, step_M = completion_mask_NT.nonzero(as_tuple=True)
    place_M = prompt_N[row_M] + step_M
    target_M = completion_ids_NT[row_M, step_M]
    tokens_NS[row_M, place_M] = target_M

    logp_M, entropy_M = _at(model, tokens_NS, row_M, place_M - 1, target_M, temperature)
    zeros_NT = logp_M.new_zeros(N, T)
    return Likelihood(
        zeros_NT.index_put((row_M, step_M), logp_M), zeros_NT.index_put((row_M, step_M), entropy_M)
    )


def precision(device: torch.device, bfloat16: bool) -> AbstractContextManager[object]:
    """The block's forward passes in bfloat16, or as they are."""
    return torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()


@torch.no_grad()
def likelihoods(model: PreTrainedModel, rollout: Rollout, temperature: float, rows: int = 16) -> Likelihood:
    """`likelihood` of a whole rollout without gradient, `rows` at a time to bound the logits in memory."""
    parts = [
        likelihood(
            model,
            rollout.prompt_ids[start : start + rows],
            rollout.completion_ids_NT[start : start + rows],
            rollout.completion_mask_NT[start : start + rows],
            temperature,
        )
        for start in range(0, len(rollout.prompt_ids), rows)
    ]
    logp, spread = zip(*parts, strict=True)
    return Likelihood(torch.cat(logp), torch.cat(spread))


def _at(
    model: PreTrainedModel,
    tokens_NS: Tensor,
    row_M: Tensor,
    place_M: Tensor,
    target_M: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Log-prob of the target and entropy at the given rows and places; the head sees no others if it can."""
    base = base_model(model)
    if type(base).__name__ in {"GPT2LMHeadModel", "GPTNeoForCausalLM", "LlamaForCausalLM"}:
        hidden_NSH = base.base_model(input_ids=tokens_NS, use_cache=False).last_hidden_state
        hidden_MH = hidden_NSH[row_M, place_M]
        if type(base.lm_head) is nn.Linear:
            # Autocast does not reach the backward pass of a function of our own, so the types are set here.
            kind = hidden_MH.device.type
            if torch.is_autocast_enabled(kind):
                hidden_MH = hidden_MH.to(torch.get_autocast_dtype(kind))
            weight_VH, bias_V = base.lm_head.weight.to(hidden_MH.dtype), base.lm_head.bias
            return head_logprobs(hidden_MH, weight_VH, bias_V, target_M, temperature)
        logits_MV = base.lm_head(hidden_MH)
    else:
        logits_MV = model(input_ids=tokens_NS, use_cache=False).logits[row_M, place_M]
    with torch.no_grad():
        entropy_M = entropy(logits_MV, temperature)
    return token_logprobs(logits_MV, target_M, temperature), entropy_M
