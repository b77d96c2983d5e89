"""The vocabulary head with its log-probs and its gradient, in chunks: logits of a whole batch are never held.

On small models the head is most of the work, and N x T x V numbers are most of the memory. Here each chunk's
logits are made once, reduced to two numbers a token, turned into the gradient, and dropped. That is
three products with the weights instead of the four of a head that makes its logits again in the backward
pass. The loss of a token must therefore be known when its log-prob is: it is passed as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_ROWS = 512
"""Tokens whose logits are made at a time, at least: enough for the products to reach a CPU's rate, and 65 MB
in float32 at V = 32,000."""

CHUNK_NUMBERS = 8_000_000
"""Logits made at a time, at least: a small vocabulary takes more tokens."""

BLOCK_NUMBERS = 400_000
"""Logits whose softmax is taken at a time on a CPU: 1.6 MB in float32, which a core's own cache holds."""

TokenLoss = Callable[[Tensor, slice], Tensor]
"""(log-probs of some tokens, which of the M they are) -> the loss of each, to be summed."""


class HeadLoss(NamedTuple):
    """A scalar loss with its gradient, and without gradient each token's logp_M and entropy_M in nats."""

    loss: Tensor
    logp_M: Tensor
    entropy_M: Tensor


def head_loss(
    hidden_MH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    tokens_M: Tensor,
    temperature: float,
    token_loss: TokenLoss,
) -> HeadLoss:
    """Sum of token_loss(log-prob) under softmax((hidden @ weight.T + bias) / temperature).

    hidden_MH (M, hidden), weight_VH (V, hidden), bias_V (V,) or None, tokens_M (M,). The loss is
    differentiable, once, in hidden, weight and bias; the gradient is made on the way forward. token_loss is
    called on consecutive stretches of the M tokens and must treat each token on its own: with log-prob l and
    slope g = d loss / d l, the gradient of the logits is g (one-hot(token) - softmax) / temperature. float32,
    or float64 where hidden is. Equal to automatic differentiation of the whole logits.
    """
    # The caller has chosen the types; autocast would narrow the sums over the vocabulary.
    with torch.autocast(hidden_MH.device.type, enabled=False):
        return HeadLoss(*_HeadLoss.apply(hidden_MH, weight_VH, bias_V, tokens_M, temperature, token_loss))


@torch.no_grad()
def head_logprobs(
    hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, tokens_M: Tensor, temperature: float
) -> Tensor:
    """Log-prob of each token under softmax((hidden @ weight.T + bias) / temperature), without gradient.

    Shapes as in `head_loss` -> (M,) in nats. Equal to `logprobs.token_logprobs` of the whole logits.
    """
    found = []
    with torch.autocast(hidden_MH.device.type, enabled=False):
        for part, logits in _chunks(hidden_MH, weight_VH, bias_V, temperature):
            for some, token in _blocks(logits, tokens_M[part].unsqueeze(-1)):
                drawn = some.sub_(some.amax(-1, keepdim=True)).gather(-1, token)
                found.append((drawn - some.exp_().sum(-1, keepdim=True).log()).squeeze(-1))
    return torch.cat(found)


def chunk_rows(vocabulary: int) -> int:
    """Tokens whose logits are made at a time."""
    return max(CHUNK_ROWS, CHUNK_NUMBERS // vocabulary)


def _chunks(
    hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, temperature: float
) -> Iterator[tuple[slice, Tensor]]:
    """Stretches of the M tokens with their logits / temperature, in float32 at least.

    Each takes the memory of the one before, or below float32 is widened into its own: as many pieces of that
    size would scatter what is free.
    """
    rows = chunk_rows(len(weight_VH))
    room = hidden_MH.new_empty(min(rows, len(hidden_MH)), len(weight_VH))
    for start in range(0, len(hidden_MH), rows):
        part = slice(start, start + rows)
        hidden = hidden_MH[part]
        logits = room[: len(hidden)]
        if bias_V is None:
            torch.mm(hidden, weight_VH.T, out=logits)
        else:
            torch.addmm(bias_V, hidden, weight_VH.T, out=logits)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        yield part, logits if temperature == 1.0 else logits.div_(temperature)


def _blocks(logits_MV: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few rows of each at a time on a CPU, so that the passes over them run in its inner caches."""
    rows = max(BLOCK_NUMBERS // logits_MV.shape[1], 1) if logits_MV.device.type == "cpu" else len(logits_MV)
    return zip(*(each.split(rows) for each in (logits_MV, *others)), strict=True)


class _Reduced(NamedTuple):
    """steep_MV = total (softmax - one-hot(token)) and its total_M1; logp_M and entropy_M in nats."""

    steep_MV: Tensor
    total_M1: Tensor
    logp_M: Tensor
    entropy_M: Tensor


def _reduce(logits_MV: Tensor, token_M1: Tensor) -> _Reduced:
    """What a chunk of logits is reduced to; steep_MV takes their memory.

    Not torch's softmax: that divides by a total which it adds up one by one in float32, off by up to 1e-4
    over a large vocabulary. sum() adds in pairs.
    """
    totals, logp, entropy = [], [], []
    for logits, token in _blocks(logits_MV, token_M1):
        # A token of probability 0 contributes 0 times the least finite number to the entropy.
        below = (logits - logits.amax(-1, keepdim=True)).clamp_(min=torch.finfo(logits.dtype).min)
        total = torch.exp(below, out=logits).sum(-1, keepdim=True)
        totals.append(total)
        logp.append((below.gather(-1, token) - total.log()).squeeze(-1))
        expected = below.mul_(logits).sum(-1, keepdim=True) / total
        entropy.append((total.log() - expected).squeeze(-1))
        logits.scatter_add_(-1, token, -total)
    return _Reduced(logits_MV, torch.cat(totals), torch.cat(logp), torch.cat(entropy))


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        tokens_M: Tensor,
        temperature: float,
        token_loss: TokenLoss,
    ) -> tuple[Tensor, Tensor, Tensor]:
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        # Summed over the chunks in float32 at least: bfloat16 would round small terms away.
        wide = torch.promote_types(weight_VH.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden_MH) if need_hidden else None
        grad_weight = torch.empty_like(weight_VH, dtype=wide) if need_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=wide) if bias_V is not None and need_bias else None
        losses, logp, entropy = [], [], []
        for part, logits in _chunks(hidden_MH, weight_VH, bias_V, temperature):
            hidden, token = hidden_MH[part], tokens_M[part].unsqueeze(-1)
            reduced = _reduce(logits, token)
            logp.append(reduced.logp_M)
            entropy.append(reduced.entropy_M)
            with torch.enable_grad():
                leaf = logp[-1].detach().requires_grad_()
                loss = token_loss(leaf, part).sum()
            losses.append(loss.detach())
            (slope,) = torch.autograd.grad(loss, leaf)
            # Rows are scaled on the side that is hidden wide, not on the one that is a vocabulary wide.
            scale_M1 = -slope.unsqueeze(-1) / (temperature * reduced.total_M1)
            steep_MV = reduced.steep_MV.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mul(steep_MV @ weight_VH, scale_M1, out=grad_hidden[part])
            if grad_weight is not None:
                scaled_MH = (hidden * scale_M1).to(hidden.dtype)
                # The first chunk writes over what is there: zeros beforehand would be one more pass.
                if steep_MV.dtype == wide:
                    grad_weight.addmm_(steep_MV.T, scaled_MH, beta=0 if part.start == 0 else 1)
                elif part.start == 0:
                    grad_weight.copy_(steep_MV.T @ scaled_MH)
                else:
                    grad_weight += steep_MV.T @ scaled_MH
            if grad_bias is not None:
                grad_bias += (steep_MV.T @ scale_M1.to(hidden.dtype)).squeeze(-1)
            # Freed before the next chunk is made, where it has memory of its own.
            del logits, reduced, steep_MV
        ctx.gradients = (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight_VH.dtype),
            None if grad_bias is None or bias_V is None else grad_bias.to(bias_V.dtype),
        )
        outputs = torch.stack(losses).sum(), torch.cat(logp), torch.cat(entropy)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("head_loss can be differentiated once; call it again for another backward")
        # Mostly 1, and in place: another pass over the head's gradient, or a copy, would be felt.
        if upstream != 1:
            gradients = tuple(None if each is None else each.mul_(upstream) for each in gradients)
        return *gradients, None, None, None
