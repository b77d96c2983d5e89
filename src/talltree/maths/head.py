"""The vocabulary head with its log-probs, in chunks: logits of a whole batch are never held.

On small models the head is most of the work, and N x T x V numbers are most of the memory. Each chunk's
logits are made, reduced to two numbers a token and dropped; the backward pass makes them again, which costs
one more matrix product and saves several passes over memory that would not fit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_NUMBERS = 4_000_000
"""Logits held at a time: 16 MB in float32, which a CPU's cache still helps with."""


def head_logprobs(
    hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, tokens_M: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-prob of each token, and entropy, under softmax((hidden @ weight.T + bias) / temperature).

    hidden_MH (M, hidden), weight_VH (V, hidden), bias_V (V,) or None, tokens_M (M,) -> logp (M,) in nats,
    differentiable in hidden, weight and bias; entropy (M,) in nats, without gradient. Both float32, or
    float64 where hidden is. Equal to `logprobs.token_logprobs` and `logprobs.entropy` of the whole logits.
    """
    if torch.is_grad_enabled():
        return _HeadLogprobs.apply(hidden_MH, weight_VH, bias_V, tokens_M, temperature)
    return _reduce(hidden_MH, weight_VH, bias_V, tokens_M, temperature)


def _rows(weight_VH: Tensor) -> int:
    return max(CHUNK_NUMBERS // weight_VH.shape[0], 16)


def _log_softmax(hidden: Tensor, weight_VH: Tensor, bias_V: Tensor | None, temperature: float) -> Tensor:
    logits = F.linear(hidden, weight_VH, bias_V)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    return torch.log_softmax(logits, -1)


def _reduce(
    hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, tokens_M: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    rows = _rows(weight_VH)
    logp, entropy = [], []
    # The caller has chosen the types; autocast would narrow the sums over the vocabulary.
    with torch.autocast(hidden_MH.device.type, enabled=False):
        for hidden, tokens in zip(hidden_MH.split(rows), tokens_M.split(rows), strict=True):
            all_logp = _log_softmax(hidden, weight_VH, bias_V, temperature)
            logp.append(all_logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1))
            # A token of probability 0 contributes nothing: exp(-inf) = 0 times the least finite number.
            probability = all_logp.exp()
            least = torch.finfo(all_logp.dtype).min
            entropy.append(-torch.linalg.vecdot(probability, all_logp.clamp_(min=least)))
    return torch.cat(logp), torch.cat(entropy)


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        tokens_M: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden_MH, weight_VH, bias_V, tokens_M)
        ctx.temperature = temperature
        logp_M, entropy_M = _reduce(hidden_MH, weight_VH, bias_V, tokens_M, temperature)
        ctx.mark_non_differentiable(entropy_M)
        return logp_M, entropy_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MH, weight_VH, bias_V, tokens_M = ctx.saved_tensors
        rows = _rows(weight_VH)
        grad_hidden = torch.empty_like(hidden_MH)
        # Summed over the chunks in float32 at least: bfloat16 would round small terms away.
        wide = torch.promote_types(weight_VH.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight_VH, dtype=wide) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias_V) if bias_V is not None and ctx.needs_input_grad[2] else None
        for start in range(0, len(hidden_MH), rows):
            part = slice(start, start + rows)
            hidden, tokens, grad = hidden_MH[part], tokens_M[part], grad_M[part].unsqueeze(-1)
            # d logp_token / d logits = (one-hot of the token - softmax) / temperature
            slope = _log_softmax(hidden, weight_VH, bias_V, ctx.temperature).exp_().mul_(-grad)
            slope.scatter_add_(-1, tokens.unsqueeze(-1), grad.to(slope.dtype))
            slope = (slope / ctx.temperature if ctx.temperature != 1.0 else slope).to(hidden.dtype)
            grad_hidden[part] = slope @ weight_VH
            if grad_weight is not None and slope.dtype == wide:
                grad_weight.addmm_(slope.T, hidden)
            elif grad_weight is not None:
                grad_weight += slope.T @ hidden
            if grad_bias is not None:
                grad_bias += slope.sum(0)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_VH.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None
