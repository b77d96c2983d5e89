"""Cross-entropy of a vocabulary head with its gradient, in chunks: `maths.head` for the plainest loss.

Every token's loss is -log p times one number, so the slope is known beforehand: the chunk's softmax, less one
at its token, is the gradient of the logits as it stands. That saves the log-probs of the whole vocabulary,
the entropy and most passes over a chunk: 0.3 of the 2.0 s that the head takes of 4,096 tokens at V = 32,000.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from talltree.maths.products import packed

CHUNK_NUMBERS = {"cpu": 16_000_000, "cuda": 256_000_000}
"""Logits held at a time by kind of device: rows enough for the products, and 64 MB on a CPU."""


def head_cross_entropy(hidden_MH: Tensor, weight_VH: Tensor, tokens_M: Tensor, scale: float) -> Tensor:
    """Sum of -log softmax(hidden @ weight.T)[token] in nats, times scale: a scalar.

    hidden_MH (M, hidden), weight_VH (V, hidden), tokens_M (M,). Differentiable, once, in hidden and weight:
    d / d logits = scale (softmax - one-hot(token)), made on the way forward. Logits and sums in float32, or
    float64 where hidden is. 0 for M = 0.
    """
    # The caller has chosen the types; autocast would narrow the sums over the vocabulary.
    with torch.autocast(hidden_MH.device.type, enabled=False):
        loss: Tensor = _HeadCrossEntropy.apply(hidden_MH, weight_VH, tokens_M, scale)
    return loss


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MH: Tensor, weight_VH: Tensor, tokens_M: Tensor, scale: float) -> Tensor:
        # Summed over the chunks in float32 at least: bfloat16 would round small terms away.
        wide = torch.promote_types(weight_VH.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden_MH)
        grad_weight = torch.zeros_like(weight_VH, dtype=wide)
        total = torch.zeros((), dtype=wide, device=hidden_MH.device)
        numbers = CHUNK_NUMBERS.get(hidden_MH.device.type, CHUNK_NUMBERS["cpu"])
        logits = packed(weight_VH, None)
        rows = max(numbers // weight_VH.shape[0], 16)
        for start in range(0, len(hidden_MH), rows):
            part = slice(start, start + rows)
            hidden, token = hidden_MH[part], tokens_M[part].unsqueeze(-1)
            mass = logits(hidden).to(wide)
            # Before the softmax takes the logits' place, so that a probability of 0 still has its log.
            below_top = mass.amax(-1, keepdim=True) - mass.gather(-1, token)
            torch.softmax(mass, -1, out=mass)
            # The greatest probability is 1 / sum(exp(logit - greatest logit)), but for the rounding of
            # torch's softmax over a large vocabulary, which the sum of what it returns puts right.
            total += (below_top + (mass.sum(-1, keepdim=True) / mass.amax(-1, keepdim=True)).log()).sum()
            mass.scatter_add_(-1, token, torch.full_like(below_top, -1.0))
            steep = mass.to(hidden.dtype)
            torch.mm(steep, weight_VH, out=grad_hidden[part])
            if steep.dtype == wide:
                grad_weight.addmm_(steep.T, hidden, alpha=scale)
            else:
                grad_weight.add_(steep.T @ hidden, alpha=scale)
            # Freed before the next chunk is made: two at a time would be twice the memory.
            del mass, steep
        ctx.gradients = grad_hidden.mul_(scale), grad_weight.to(weight_VH.dtype)
        return total * scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("head_cross_entropy can be differentiated once; call it again for another")
        # Mostly 1, and in place: another pass over the head's gradient, or a copy, would be felt.
        if upstream != 1:
            gradients = tuple(each.mul_(upstream) for each in gradients)
        return *gradients, None, None
