"""Drawing one token a row by inverse CDF, and its log-prob, from one softmax."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256
"""Tokens whose mass is summed first; about the root of a usual vocabulary."""


def draw(logits_NV: Tensor, uniform_N: Tensor) -> tuple[Tensor, Tensor]:
    """Token v_i with sum_{v < v_i} p_v <= u_i < sum_{v <= v_i} p_v, and log p_{v_i} in nats.

    logits_NV (N, V), uniform_N (N,) float64 in [0, 1) -> tokens (N,), log-probs (N,) float32. The mass is
    summed by blocks, then one block is searched: no random number per vocabulary entry and no sort.
    A token of zero mass (logit -inf) is never drawn. Rows with a NaN logit give a NaN log-prob. Logits below
    float32 are widened first.
    """
    N, V = logits_NV.shape
    if logits_NV.dtype != torch.float64:
        logits_NV = logits_NV.float()
    mass_NV = torch.softmax(logits_NV, -1)
    whole = V // BLOCK * BLOCK
    sums = [mass_NV[:, :whole].view(N, -1, BLOCK).sum(-1)]
    if whole < V:
        sums.append(mass_NV[:, whole:].sum(-1, keepdim=True))
    # float64 from here on: float32 would round the tail of the distribution away.
    edge_NB = torch.cat(sums, -1).double().cumsum(-1)
    total_N1 = edge_NB[:, -1:]
    target_N1 = uniform_N.double().unsqueeze(1) * total_N1
    block_N1 = _search(edge_NB, target_N1)
    before_N1 = torch.where(block_N1 > 0, edge_NB.gather(1, (block_N1 - 1).clamp(min=0)), 0.0)
    index_NK = block_N1 * BLOCK + torch.arange(BLOCK, device=logits_NV.device)
    inside_NK = mass_NV.gather(1, index_NK.clamp(max=V - 1)).double().masked_fill_(index_NK >= V, 0.0)
    offset_N1 = _search(inside_NK.cumsum(-1), target_N1 - before_N1)
    token_N1 = block_N1 * BLOCK + offset_N1
    # The softmax sums to 1 within its own rounding; dividing by the sum that was drawn from removes that.
    logp_N1 = (mass_NV.gather(1, token_N1).double() / total_N1).log()
    return token_N1.squeeze(1), logp_N1.squeeze(1).float()


def _search(edge_NK: Tensor, target_N1: Tensor) -> Tensor:
    """First k with target < edge_k; rounding past the end falls back to the last k that adds mass."""
    last_N1 = (edge_NK < edge_NK[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum((edge_NK <= target_N1).sum(-1, keepdim=True), last_N1)
