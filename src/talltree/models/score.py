"""Log-probs of given completions under a model: the trainer's and the reference's side of the contract.

Prompt and completion are joined and padded on the right, so that position ids count from 0 and no real token
attends to padding: neither a mask nor position ids are needed, in any architecture.

There are two paths through the vocabulary head. The plain one makes all logits and leaves the gradient to
autograd. The fast one, for the families whose head is known, runs the head on completion tokens alone, in
chunks (`maths.head`). They agree within float32's rounding, and `fast=False` takes the plain one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from talltree.maths.advantages import state_mask
from talltree.maths.head import TokenLoss, head_logprobs, head_loss
from talltree.maths.logprobs import entropy, token_logprobs
from talltree.models.views import base_model
from talltree.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS_AT_A_TIME = {"cpu": 1536, "cuda": 65536}
"""Tokens, padding included, in one pass through a model: enough for its products, and few enough for a CPU's
caches and for memory. Fixed by the device, so that the same run has the same bits on a busy machine."""


class Loss(NamedTuple):
    """A differentiable loss, and without gradient logp_NT of the tokens and entropy_NT in nats.

    value_NU, differentiable too, is there where a value head was given. All are 0 outside the completions.
    """

    loss: Tensor
    logp_NT: Tensor
    entropy_NT: Tensor
    value_NU: Tensor | None = None


class _Layout(NamedTuple):
    """Prompts and completions joined in tokens_NS, and where in it each of the M completion tokens is.

    row_M, step_M: the token's place in the completions (N, T), row by row; place_M: its column in tokens_NS;
    prompt_N: tokens of each prompt.
    """

    tokens_NS: Tensor
    row_M: Tensor
    step_M: Tensor
    place_M: Tensor
    target_M: Tensor
    prompt_N: Tensor


def likelihood(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids_NT: Tensor,
    completion_mask_NT: Tensor,
    temperature: float,
) -> Tensor:
    """Log pi(completion | prompt) per token under softmax(logits / temperature), by plain autograd.

    -> logp_NT in nats, 0 outside the mask; float32, or float64 where the model is.
    """
    layout = _lay_out(prompt_ids, completion_ids_NT, completion_mask_NT)
    logp_M = token_logprobs(_logits(model, layout), layout.target_M, temperature)
    return _scatter(logp_M, layout, completion_mask_NT)


def likelihoods(
    model: PreTrainedModel, rollout: Rollout, temperature: float, rows: int | None = None, fast: bool = True
) -> Tensor:
    """`likelihood` of a whole rollout without gradient, texts of similar length together.

    rows: texts at a time; None: as many as TOKENS_AT_A_TIME holds.
    """
    prompts, ids_NT, mask_NT = rollout.prompt_ids, rollout.completion_ids_NT, rollout.completion_mask_NT
    logp_NT = torch.zeros(mask_NT.shape, device=mask_NT.device)
    with torch.no_grad():
        for part in by_length(prompts, mask_NT, rows):
            width = int(mask_NT[part].sum(1).max())
            ids, mask = ids_NT[part, :width], mask_NT[part, :width]
            some = [prompts[row] for row in part.tolist()]
            head = vocabulary_head(model) if fast else None
            if head is None:
                found = likelihood(model, some, ids, mask, temperature)
            else:
                layout = _lay_out(some, ids, mask)
                hidden_NSH = hidden_states(model, layout.tokens_NS)
                hidden_MH, weight_VH, bias_V = _for_head(hidden_NSH, layout, head)
                logp_M = head_logprobs(hidden_MH, weight_VH, bias_V, layout.target_M, temperature)
                found = _scatter(logp_M, layout, mask)
            logp_NT = logp_NT.to(found.dtype)
            logp_NT[part, :width] = found
    return logp_NT


def completion_loss(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids_NT: Tensor,
    completion_mask_NT: Tensor,
    temperature: float,
    token_loss: TokenLoss,
    *,
    fast: bool = True,
    value_head: nn.Linear | None = None,
) -> Loss:
    """Sum over the completion tokens of token_loss(log-prob), whose gradient follows in one backward pass.

    token_loss(logp, part) is given the log-probs of a stretch `part` of the M = mask.sum() tokens, taken row
    by row, and returns the loss of each; it must treat each token on its own. value_head reads the same
    hidden states, as `state_values` does, without another pass where the fast head is known.
    """
    value_NU = None
    layout = _lay_out(prompt_ids, completion_ids_NT, completion_mask_NT)
    head = vocabulary_head(model) if fast else None
    if head is None:
        logits_MV = _logits(model, layout)
        logp_M = token_logprobs(logits_MV, layout.target_M, temperature)
        loss = token_loss(logp_M, slice(None)).sum()
        with torch.no_grad():
            entropy_M = entropy(logits_MV, temperature)
        if value_head is not None:
            hidden_NSH = hidden_states(model, layout.tokens_NS)
            value_NU = _values(value_head, hidden_NSH, layout, completion_mask_NT)
    else:
        hidden_NSH = hidden_states(model, layout.tokens_NS)
        if value_head is not None:
            value_NU = _values(value_head, hidden_NSH, layout, completion_mask_NT)
        hidden_MH, weight_VH, bias_V = _for_head(hidden_NSH, layout, head)
        loss, logp_M, entropy_M = head_loss(
            hidden_MH, weight_VH, bias_V, layout.target_M, temperature, token_loss
        )
    logp_NT = _scatter(logp_M.detach(), layout, completion_mask_NT)
    return Loss(loss, logp_NT, _scatter(entropy_M, layout, completion_mask_NT), value_NU)


def state_values(
    body: PreTrainedModel,
    value_head: nn.Linear,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids_NT: Tensor,
    completion_mask_NT: Tensor,
) -> Tensor:
    """Value of every state of the completions: value_head on the body's last hidden state. -> value_NU.

    Column t reads the token before completion token t, where the policy draws that token; the last one of a
    completion reads its last real token, the finished text. 0 outside; differentiable; no vocabulary head is
    run. float32, or float64 where the head is.
    """
    layout = _lay_out(prompt_ids, completion_ids_NT, completion_mask_NT)
    return _values(value_head, hidden_states(body, layout.tokens_NS), layout, completion_mask_NT)


def rollout_values(
    body: PreTrainedModel, value_head: nn.Linear, rollout: Rollout, rows: int | None = None
) -> Tensor:
    """`state_values` of a whole rollout without gradient, texts of similar length together; rows as above."""
    prompts, ids_NT, mask_NT = rollout.prompt_ids, rollout.completion_ids_NT, rollout.completion_mask_NT
    shape = len(mask_NT), mask_NT.shape[1] + 1
    value_NU = torch.zeros(shape, dtype=value_head.weight.dtype, device=mask_NT.device)
    with torch.no_grad():
        for part in by_length(prompts, mask_NT, rows):
            width = int(mask_NT[part].sum(1).max())
            some = [prompts[row] for row in part.tolist()]
            found = state_values(body, value_head, some, ids_NT[part, :width], mask_NT[part, :width])
            value_NU[part, : width + 1] = found
    return value_NU


def by_length(
    prompt_ids: Sequence[Sequence[int]], completion_mask_NT: Tensor, rows: int | None = None
) -> Iterator[Tensor]:
    """The N texts from short to long in parts, each a tensor of row numbers, so that padding is short.

    rows: texts in a part; None: as many as TOKENS_AT_A_TIME holds at the part's longest, at least one.
    """
    device = completion_mask_NT.device
    prompt_N = torch.tensor([len(ids) for ids in prompt_ids])
    length_N = prompt_N + completion_mask_NT.sum(1).cpu()
    order = torch.argsort(length_N, stable=True)
    start = 0
    while start < len(order):
        stop = start + (rows or 1)
        if rows is None:
            # Sorted, so a part's longest text is its last one.
            while stop < len(order) and (stop + 1 - start) * int(length_N[order[stop]]) <= tokens_at_a_time(
                device
            ):
                stop += 1
        yield order[start:stop].to(device)
        start = stop


def tokens_at_a_time(device: torch.device) -> int:
    """TOKENS_AT_A_TIME of a device; a kind that is not listed counts as a CPU."""
    return TOKENS_AT_A_TIME.get(device.type, TOKENS_AT_A_TIME["cpu"])


def precision(device: torch.device, bfloat16: bool) -> AbstractContextManager[object]:
    """The block's forward passes in bfloat16, or as they are."""
    return torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()


def _lay_out(
    prompt_ids: Sequence[Sequence[int]], completion_ids_NT: Tensor, completion_mask_NT: Tensor
) -> _Layout:
    device = completion_ids_NT.device
    prompt_N = torch.tensor([len(ids) for ids in prompt_ids], device=device)
    length_N = prompt_N + completion_mask_NT.sum(1)
    tokens_NS = torch.zeros(len(prompt_ids), int(length_N.max()), dtype=torch.long)
    for row, ids in enumerate(prompt_ids):
        tokens_NS[row, : len(ids)] = torch.tensor(ids)
    tokens_NS = tokens_NS.to(device)
    row_M, step_M = completion_mask_NT.nonzero(as_tuple=True)
    place_M = prompt_N[row_M] + step_M
    target_M = completion_ids_NT[row_M, step_M]
    tokens_NS[row_M, place_M] = target_M
    return _Layout(tokens_NS, row_M, step_M, place_M, target_M, prompt_N)


def _scatter(value_M: Tensor, layout: _Layout, mask_NT: Tensor) -> Tensor:
    return value_M.new_zeros(mask_NT.shape).index_put((layout.row_M, layout.step_M), value_M)


def _logits(model: PreTrainedModel, layout: _Layout) -> Tensor:
    """The logits (M, V) that predict the completion tokens, from the model's own forward pass."""
    return model(input_ids=layout.tokens_NS, use_cache=False).logits[layout.row_M, layout.place_M - 1]


def vocabulary_head(model: PreTrainedModel) -> nn.Linear | None:
    """The vocabulary head, where it is known that logits = head(last hidden state) and nothing else."""
    base = base_model(model)
    known = type(base).__name__ in {"GPT2LMHeadModel", "GPTNeoForCausalLM", "LlamaForCausalLM"}
    return base.lm_head if known and type(base.lm_head) is nn.Linear else None


def hidden_states(model: PreTrainedModel, tokens_NS: Tensor) -> Tensor:
    """The last hidden states (N, S, hidden) of a model or of a body without a head."""
    return base_model(model).base_model(input_ids=tokens_NS, use_cache=False).last_hidden_state


def _for_head(hidden_NSH: Tensor, layout: _Layout, head: nn.Linear) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states (M, hidden) that predict the completion tokens, and the head's weights in their type."""
    hidden_MH = hidden_NSH[layout.row_M, layout.place_M - 1]
    # Autocast does not reach a gradient of our own, so the types are set here.
    kind = hidden_MH.device.type
    if torch.is_autocast_enabled(kind):
        hidden_MH = hidden_MH.to(torch.get_autocast_dtype(kind))
    bias_V = head.bias
    return (
        hidden_MH,
        head.weight.to(hidden_MH.dtype),
        None if bias_V is None else bias_V.to(hidden_MH.dtype),
    )


def _values(value_head: nn.Linear, hidden_NSH: Tensor, layout: _Layout, mask_NT: Tensor) -> Tensor:
    state_NU = state_mask(mask_NT)
    row_K, step_K = state_NU.nonzero(as_tuple=True)
    place_K = layout.prompt_N[row_K] + step_K - 1
    # In the head's own precision: a sum over the hidden state in bfloat16 would round the values.
    with torch.autocast(hidden_NSH.device.type, enabled=False):
        value_K = value_head(hidden_NSH[row_K, place_K].to(value_head.weight.dtype)).squeeze(-1)
    return value_K.new_zeros(state_NU.shape).index_put((row_K, step_K), value_K)
