"""Two ways to go on from a prompt: a cache over the weights, and the library's own for any other model.

Both read the prompts on construction and then answer `step(token_N) -> logits_NV`; `keep(rows)` drops the
others. They differ in speed only: the tests hold their log-probs together.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from talltree.models.views import BareNorm, DecodeView, Layer, Norm

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class WeightCache:
    """Keys and values of N rows in one preallocated block per layer, prompts to the left, no padding between.

    Each row has its own position, so prompts of unequal length lie side by side. A prompt that several rows
    share is read once.
    """

    def __init__(self, view: DecodeView, prompt_ids: list[list[int]], room: int) -> None:
        device = view.embedding.device
        unique, rows = _unique(prompt_ids, device)
        longest = max(map(len, unique))
        self.view = view
        self.rotary = _rotary_tables(view, longest + room)
        tokens_PL = torch.zeros(len(unique), longest, dtype=torch.long, device=device)
        for row, ids in enumerate(unique):
            tokens_PL[row, : len(ids)] = torch.tensor(ids, device=device)
        last_P = torch.tensor([len(ids) - 1 for ids in unique], device=device)

        self.layers: list[tuple[Tensor, Tensor]] = []
        hidden = self._embed(tokens_PL, torch.arange(longest, device=device))
        for layer in view.layers:
            hidden, keys, values = self._read(layer, hidden)
            self.layers.append((self._roomy(keys, rows, room), self._roomy(values, rows, room)))
        hidden = hidden[torch.arange(len(unique), device=device), last_P]
        self.logits = self._head(hidden).index_select(0, rows)
        self.position = (last_P + 1).index_select(0, rows)
        self.length = longest  # columns in use, counted here because asking a GPU would stop it
        # Equal lengths stay equal, and then neither a mask nor a scattered write is needed.
        self.level = all(len(ids) == longest for ids in unique)

    def keep(self, rows: Tensor) -> None:
        self.layers = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.layers]
        self.position = self.position[rows]

    def step(self, token_N: Tensor) -> Tensor:
        view, N = self.view, len(token_N)
        self.length += 1
        length = self.length
        masks = {window: self._visible(length, window) for window in {layer.window for layer in view.layers}}
        hidden = view.embedding[token_N]
        if view.positions is not None:
            hidden = hidden + view.positions[self.position]
        turn = None
        if self.rotary is not None:
            turn = tuple(table[self.position].unsqueeze(1) for table in self.rotary)
        row_N = torch.arange(N, device=token_N.device)
        for layer, (keys, values) in zip(view.layers, self.layers, strict=True):
            q, k, v = self._project(layer, hidden, turn)
            if self.level:
                keys[:, :, length - 1], values[:, :, length - 1] = k, v
            else:
                keys[row_N, :, self.position], values[row_N, :, self.position] = k, v
            # Grouped-query heads stand where several query positions would: no key is copied.
            out = F.scaled_dot_product_attention(
                q.reshape(N, view.kv_heads, -1, view.head_dim),
                keys[:, :, :length],
                values[:, :, :length],
                attn_mask=masks[layer.window],
                scale=view.scale,
            )
            hidden = _feed_forward(view, layer, hidden + layer.attention_out(out.reshape(N, -1)))
        self.position = self.position + 1
        return self._head(hidden)

    def _head(self, hidden: Tensor) -> Tensor:
        return self.view.head(_normalise(self.view.final_norm, hidden)).float()

    def _visible(self, length: int, window: int | None) -> Tensor | None:
        if self.level and (window is None or length <= window):
            return None
        place = torch.arange(length, device=self.position.device)
        visible = place <= self.position.unsqueeze(1)
        if window is not None:
            visible &= place > self.position.unsqueeze(1) - window
        return visible[:, None, None, :]

    def _read(self, layer: Layer, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        view = self.view
        P, L, _ = hidden.shape
        turn = None
        if self.rotary is not None:
            turn = tuple(table[:L].unsqueeze(1) for table in self.rotary)
        q, k, v = (part.transpose(1, 2) for part in self._project(layer, hidden, turn))
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
        out = layer.attention_out(out.transpose(1, 2).reshape(P, L, -1))
        return _feed_forward(view, layer, hidden + out), k, v

    def _project(
        self, layer: Layer, hidden: Tensor, turn: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (..., heads, head_dim); queries and keys turned together."""
        view = self.view
        qkv = layer.qkv(_normalise(layer.attention_norm, hidden))
        qkv = qkv.view(*hidden.shape[:-1], -1, view.head_dim)
        if turn is None:
            q, k, v = qkv.split_with_sizes((view.heads, view.kv_heads, view.kv_heads), -2)
            return q, k, v
        qk, v = qkv.split_with_sizes((view.heads + view.kv_heads, view.kv_heads), -2)
        q, k = _rotate(qk, turn).split_with_sizes((view.heads, view.kv_heads), -2)
        return q, k, v

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
        unique, rows = _unique(prompt_ids, model.device)
        longest = max(map(len, unique))
        tokens, mask = (
            torch.tensor([[pad] * (longest - len(ids)) + real(ids) for ids in unique], device=model.device)
            for pad, real in ((0, list), (0, lambda ids: [1] * len(ids)))
        )
        self.model = model
        self.mask = mask
        self.past: Any = None
        # Logits of the whole prompt would be most of the memory; models differ in offering to leave them out.
        last_only = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.last_only = {"logits_to_keep": 1} if last_only else {}
        self.logits = self._forward(tokens, (mask.cumsum(-1) - 1).clamp(min=0)).index_select(0, rows)
        self.keep(rows)

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
            **self.last_only,
        )
        self.past = out.past_key_values
        return out.logits[:, -1].float()


def _unique(prompt_ids: list[list[int]], device: torch.device) -> tuple[list[list[int]], Tensor]:
    """The different prompts, and which of them each of the N rows starts from."""
    unique = [list(ids) for ids in dict.fromkeys(map(tuple, prompt_ids))]
    row_of = {tuple(ids): row for row, ids in enumerate(unique)}
    return unique, torch.tensor([row_of[tuple(ids)] for ids in prompt_ids], device=device)


def _normalise(norm: Norm | BareNorm, x: Tensor) -> Tensor:
    if isinstance(norm, BareNorm):
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(norm.floor)
    if norm.bias is None:
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def _feed_forward(view: DecodeView, layer: Layer, hidden: Tensor) -> Tensor:
    inner = layer.mlp_in(_normalise(layer.mlp_norm, hidden))
    if view.gated:
        gate, up = inner.chunk(2, -1)
        inner = F.silu(gate) * up
    else:
        inner = F.gelu(inner, approximate="tanh")
    return hidden + layer.mlp_out(inner)


def _rotary_tables(view: DecodeView, length: int) -> tuple[Tensor, Tensor] | None:
    if view.rotary is None:
        return None
    place = torch.arange(length, device=view.embedding.device).unsqueeze(0)
    cos, sin = (table[0] for table in view.rotary(view.embedding, place))
    left, right = sin.chunk(2, -1)
    return cos, torch.cat((-left, right), -1)


def _rotate(x: Tensor, turn: tuple[Tensor, ...]) -> Tensor:
    """(left, right) -> (left, right) * cos + (-right, left) * sin; the sign is in the table of sines."""
    cos, sin = turn
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)
