"""The decode loop: the prompts once, then one token a step for all rollouts, written for small models.

Small models are bound by call overhead and by skinny matrix products, not by arithmetic. So the loop works on
the weights themselves (`models.views`), reordered once for products with few rows; a prompt that several
rollouts share is read once; the cache is allocated once; rollouts that have ended are compacted away; and a
token is drawn by inverse CDF from one softmax. `fast=False` takes the library's cache and modules instead.
Every rollout has its own row of uniforms, so what it draws does not depend on its neighbours in the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from talltree.models.views import decode_view
from talltree.sampling.caches import LibraryCache, WeightCache
from talltree.sampling.draw import draw
from talltree.types import Truncation

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Sampled(NamedTuple):
    """Sampled tokens (N, T), left-aligned, 0 outside mask_NT; log-probs in nats; ended_N as in `Rollout`.

    The mask is True on every sampled token, the one that ended it included. T is the longest completion.
    """

    tokens_NT: Tensor
    mask_NT: Tensor
    logp_NT: Tensor
    ended_N: Tensor


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    *,
    max_completion_length: int,
    stop_ids: tuple[int, ...],
    temperature: float,
    generator: torch.Generator,
    truncation: Truncation | None = None,
    rows: int = 256,
    fast: bool = True,
) -> Sampled:
    """One completion per prompt from softmax(logits / temperature), `rows` of them at a time.

    prompt_ids: N lists of at least one token each; put equal prompts next to each other, they are then read
    once. The generator gives one float64 uniform per rollout and position up front, so neither `rows` nor
    early stopping changes what is drawn. A truncated completion is not sampled further, so there are no
    tokens beyond the cut that log-probs or a gradient could cover. fast=False takes the library's cache for
    every architecture.
    """
    uniforms_NT = torch.rand(
        len(prompt_ids), max_completion_length, dtype=torch.float64, generator=generator
    ).to(model.device)
    view = decode_view(model) if fast else None
    parts = []
    for start in range(0, len(prompt_ids), rows):
        some = prompt_ids[start : start + rows]
        cache = LibraryCache(model, some) if view is None else WeightCache(view, some, max_completion_length)
        parts.append(_decode(cache, uniforms_NT[start : start + rows], stop_ids, temperature, truncation))
    tokens, mask, logp, ended = (torch.cat(part) for part in zip(*parts, strict=True))
    longest = int(mask.any(0).sum())
    return Sampled(tokens[:, :longest], mask[:, :longest], logp[:, :longest], ended)


def _decode(
    cache: WeightCache | LibraryCache,
    uniforms_NT: Tensor,
    stop_ids: tuple[int, ...],
    temperature: float,
    truncation: Truncation | None = None,
) -> Sampled:
    N, T = uniforms_NT.shape
    device = uniforms_NT.device
    tokens_NT = torch.zeros(N, T, dtype=torch.long, device=device)
    logp_NT = torch.zeros(N, T, device=device)
    stops = torch.tensor(stop_ids, device=device)
    cuts = torch.tensor(() if truncation is None else truncation.token_ids, dtype=torch.long, device=device)
    cut_from = T if truncation is None else truncation.after
    active = torch.arange(N, device=device)  # the rollout that each row of the cache continues
    done = torch.zeros(N, dtype=torch.bool, device=device)
    logits = cache.logits
    for t in range(T):
        token, logp = draw(logits if temperature == 1 else logits / temperature, uniforms_NT[active, t])
        tokens_NT[active, t], logp_NT[active, t] = token, logp
        done |= torch.isin(token, stops)
        if t >= cut_from:
            done |= torch.isin(token, cuts)
        ended = int(done.sum())
        if ended == len(done) or t + 1 == T:
            break
        # Dropping rows copies the cache, so ended rows run on, unread, until they are an eighth of the batch.
        if 8 * ended >= len(done):
            rows = (~done).nonzero().squeeze(1)
            cache.keep(rows)
            active, token, done = active[rows], token[rows], done[rows]
        logits = cache.step(token)
    stop_NT = torch.isin(tokens_NT, stops)
    cut_NT = torch.isin(tokens_NT, cuts) & (torch.arange(T, device=device) >= cut_from)
    end_NT = stop_NT | cut_NT
    mask_NT = end_NT.cumsum(1) - end_NT.long() == 0
    required_NT = stop_NT if truncation is None else cut_NT
    return Sampled(
        tokens_NT.masked_fill(~mask_NT, 0),
        mask_NT,
        logp_NT.masked_fill(~mask_NT, 0.0),
        (required_NT & mask_NT).any(1),
    )
