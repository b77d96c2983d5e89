"""Two ways to go on from a prompt: a cache over plain weights, and the library's own for any other model.

Both read the prompts on construction and then answer `step(token_N) -> logits_NV`; `keep(rows)` drops the
others. They differ in speed only: the tests hold their log-probs together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from talltree.models.views import Affine, DecodeView, Layer, Norm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SKINNY = 512
"""Up to this many rows a product with the vocabulary head runs on weights reordered for few rows."""


class PlainCache:
    """Keys and values of N rows in one preallocated block per layer, prompts to the left, no padding between.

    Each row has its own position, so prompts of unequal length lie side by side. A prompt that several rows
    share is read once.
    """

    def __init__(self, view: DecodeView, prompt_ids: list[list[int]], room: int) -> None:
        device = view.embedding.device
        unique = [list(ids) for ids in dict.fromkeys(map(tuple, prompt_ids))]
        row_of = {tuple(ids): row for row, ids in enumerate(unique)}
        longest = max(map(len, unique))
        self.view = view
        self.rotary = _rotary_tables(view, longest + room)
        self.head = _head(view.head, rows=len(prompt_ids))
        tokens_PL = torch.zeros(len(unique), longest, dtype=torch.long, device=device)
        for row, ids in enumerate(unique):
            tokens_PL[row, : len(ids)] = torch.tensor(ids, device=device)
        last_P = torch.tensor([len(ids) - 1 for ids in unique], device=device)

        rows = torch.tensor([row_of[tuple(ids)] for ids in prompt_ids], device=device)
        self.layers: list[tuple[Tensor, Tensor]] = []
        hidden = self._embed(tokens_PL, torch.arange(longest, device=device))
        for layer in view.layers:
            hidden, keys, values = self._read(layer, hidden)
            self.layers.append((self._roomy(keys, rows, room), self._roomy(values, rows, room)))
        hidden = hidden[torch.arange(len(unique), device=device), last_P]
        self.logits = self.head(_normalise(view.final_norm, hidden)).index_select(0, rows)
        self.position = (last_P + 1).index_select(0, rows)
        # Equal lengths stay equal, and then neither a mask nor a scattered write is needed.
        self.level: int | None = longest if bool((last_P + 1 == longest).all()) else None

    def keep(self, rows: Tensor) -> None:
        self.layers = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.layers]
        self.position = self.position[rows]

    def step(self, token_N: Tensor) -> Tensor:
        view, N = self.view, len(token_N)
        length = (self.level if self.level is not None else int(self.position.max())) + 1
        masks = {window: self._visible(length, window) for window in {layer.window for layer in view.layers}}
        hidden = view.embedding[token_N]
        if view.positions is not None:
            hidden = hidden + view.positions[self.position]
        turn = None
        if self.rotary is not None:
            turn = tuple(table[self.position].unsqueeze(1) for table in self.rotary)
        row_N = torch.arange(N, device=token_N.device)
        for layer, (keys, values) in zip(view.layers, self.layers, strict=True):
            q, k, v = self._project(layer, hidden)
            if turn is not None:
                q, k = _rotate(q, turn), _rotate(k, turn)
            if self.level is not None:
                keys[:, :, self.level], values[:, :, self.level] = k, v
            else:
                keys[row_N, :, self.position], values[row_N, :, self.position] = k, v
            # Grouped-query heads stand where several query positions would: no key is copied.
            out = F.scaled_dot_product_attention(
                q.view(N, view.kv_heads, -1, view.head_dim),
                keys[:, :, :length],
                values[:, :, :length],
                attn_mask=masks[layer.window],
                scale=view.scale,
            )
            hidden = _feed_forward(view, layer, hidden + _apply(layer.attention_out, out.reshape(N, -1)))
        self.position = self.position + 1
        self.level = None if self.level is None else self.level + 1
        return self.head(_normalise(view.final_norm, hidden))

    def _visible(self, length: int, window: int | None) -> Tensor | None:
        if self.level is not None and (window is None or length <= window):
            return None
        place = torch.arange(length, device=self.position.device)
        visible = place <= self.position.unsqueeze(1)
        if window is not None:
            visible &= place > self.position.unsqueeze(1) - window
        return visible[:, None, None, :]

    def _read(self, layer: Layer, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        view = self.view
        P, L, _ = hidden.shape
        q, k, v = (part.view(P, L, -1, view.head_dim).transpose(1, 2) for part in self._split(layer, hidden))
        if self.rotary is not None:
            turn = tuple(table[:L] for table in self.rotary)
            q, k = _rotate(q, turn), _rotate(k, turn)
        mask = None
        if layer.window is not None and layer.window < L:
            place = torch.arange(L, device=hidden.device)
            gap = place.unsqueeze(1) - place
            mask = (gap >= 0) & (gap < layer.window)
        share = view.heads // view.kv_heads
        out = F.scaled_dot_product_attention(
            q,
            k.repeat_interleave(share, 1),
            v.repeat_interleave(share, 1),
            attn_mask=mask,
            is_causal=mask is None,
            scale=view.scale,
        )
        out = _apply(layer.attention_out, out.transpose(1, 2).reshape(P, L, -1))
        return _feed_forward(view, layer, hidden + out), k, v

    def _project(self, layer: Layer, hidden: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.view(len(hidden), -1, self.view.head_dim) for part in self._split(layer, hidden))

    def _split(self, layer: Layer, hidden: Tensor) -> tuple[Tensor, ...]:
        view = self.view
        sizes = [heads * view.head_dim for heads in (view.heads, view.kv_heads, view.kv_heads)]
        return _apply(layer.qkv, _normalise(layer.attention_norm, hidden)).split(sizes, -1)

    def _embed(self, tokens: Tensor, place: Tensor) -> Tensor:
        hidden = self.view.embedding[tokens]
        return hidden if self.view.positions is None else hidden + self.view.positions[place]

    @staticmethod
    def _roomy(part: Tensor, rows: Tensor, room: int) -> Tensor:
        P, heads, L, size = part.shape
        block = part.new_zeros(len(rows), heads, L + room, size)
        block[:, :, :L] = part.index_select(0, rows)
        return block


class LibraryCache:
    """The library's cache behind the same methods; prompts padded on the left, positions follow the mask."""

    def __init__(self, model: PreTrainedModel, prompt_ids: list[list[int]]) -> None:
        longest = max(map(len, prompt_ids))
        device = model.device
        tokens = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompt_ids], device=device)
        self.model = model
        self.mask = torch.tensor(
            [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=device
        )
        self.past: Any = None
        self.logits = self._forward(tokens, (self.mask.cumsum(-1) - 1).clamp(min=0))

    def keep(self, rows: Tensor) -> None:
        self.mask = self.mask[rows]
        self.past.batch_select_indices(rows)

    def step(self, token_N: Tensor) -> Tensor:
        self.mask = F.pad(self.mask, (0, 1), value=1)
        return self._forward(token_N.unsqueeze(1), self.mask.sum(-1, keepdim=True) - 1)

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        out = self.model(
            input_ids=tokens,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.past,
            use_cache=True,
        )
        self.past = out.past_key_values
        return out.logits[:, -1].float()


def _head(head: Affine, rows: int) -> Callable[[Tensor], Tensor]:
    weight, bias = head
    on_cpu = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if on_cpu and weight.dtype == torch.float32 and rows <= SKINNY:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        return lambda hidden: torch.ops.mkldnn._linear_pointwise(hidden, packed, bias, "none", [], "")
    return lambda hidden: F.linear(hidden, weight, bias).float()


def _apply(affine: Affine, x: Tensor) -> Tensor:
    return F.linear(x, affine.weight, affine.bias)


def _normalise(norm: Norm, x: Tensor) -> Tensor:
    if norm.bias is None:
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def _feed_forward(view: DecodeView, layer: Layer, hidden: Tensor) -> Tensor:
    inner = _apply(layer.mlp_in, _normalise(layer.mlp_norm, hidden))
    if view.gated:
        gate, up = inner.chunk(2, -1)
        inner = F.silu(gate) * up
    else:
        inner = F.gelu(inner, approximate="tanh")
    return hidden + _apply(layer.mlp_out, inner)


def _rotary_tables(view: DecodeView, length: int) -> tuple[Tensor, Tensor] | None:
    if view.rotary is None:
        return None
    place = torch.arange(length, device=view.embedding.device).unsqueeze(0)
    cos, sin = view.rotary(view.embedding, place)
    return cos[0], sin[0]


def _rotate(x: Tensor, turn: tuple[Tensor, ...]) -> Tensor:
    cos, sin = turn
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin
