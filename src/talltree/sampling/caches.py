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
        self.turns = _rotary_turns(view, longest + room)
        tokens_PL = torch.zeros(len(unique), longest, dtype=torch.long, device=device)
        for row, ids in enumerate(unique):
            tokens_PL[row, : len(ids)] = torch.tensor(ids, device=device)
        last_P = torch.tensor([len(ids) - 1 for ids in unique], device=device)

        # Keys and values of a layer stand in one block (N, 2 kv_heads, positions, head_dim), keys first.
        self.layers: list[Tensor] = []
        hidden = self._embed(tokens_PL, torch.arange(longest, device=device)).flatten(0, 1)
        for layer in view.layers:
            hidden, kv = self._read(layer, hidden, len(unique))
            self.layers.append(self._roomy(kv, rows, room))
        hidden = hidden.view(len(unique), longest, -1)[torch.arange(len(unique), device=device), last_P]
        self.logits = self._head(hidden).index_select(0, rows)
        self.position = (last_P + 1).index_select(0, rows)
        self.length = longest  # columns in use, counted here because asking a GPU would stop it
        # Equal lengths stay equal, and then neither a mask nor a scattered write is needed.
        self.level = all(len(ids) == longest for ids in unique)

    def keep(self, rows: Tensor) -> None:
        self.layers = [kv.index_select(0, rows) for kv in self.layers]
        self.position = self.position[rows]

    def step(self, token_N: Tensor) -> Tensor:
        view, N = self.view, len(token_N)
        self.length += 1
        length = self.length
        masks = {window: self._visible(length, window) for window in {layer.window for layer in view.layers}}
        hidden = self._embed(token_N, self.position)
        turn = None if self.turns is None else self.turns[self.position]
        row_N = torch.arange(N, device=token_N.device)
        for layer, block in zip(view.layers, self.layers, strict=True):
            q, kv = self._project(layer, hidden, turn, N)
            if self.level:
                block[:, :, length - 1] = kv
            else:
                block[row_N, :, self.position] = kv
            keys, values = block[:, :, :length].chunk(2, 1)
            # Grouped-query heads stand where several query positions would: no key is copied.
            out = F.scaled_dot_product_attention(
                q.reshape(N, view.kv_heads, -1, view.head_dim),
                keys,
                values,
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

    def _read(self, layer: Layer, hidden: Tensor, prompts: int) -> tuple[Tensor, Tensor]:
        """A layer over whole prompts, hidden (prompts * L, hidden); its keys and values, keys first."""
        view = self.view
        L = len(hidden) // prompts
        turn = None if self.turns is None else self.turns[:L]
        q, kv = (part.transpose(1, 2) for part in self._project(layer, hidden, turn, prompts, L))
        mask = None
        if layer.window is not None and layer.window < L:
            place = torch.arange(L, device=hidden.device)
            gap = place.unsqueeze(1) - place
            mask = (gap >= 0) & (gap < layer.window)
        share = view.heads // view.kv_heads
        keys, values = (part.repeat_interleave(share, 1) for part in kv.chunk(2, 1))
        out = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, is_causal=mask is None, scale=view.scale
        )
        out = layer.attention_out(out.transpose(1, 2).reshape(prompts * L, -1))
        return _feed_forward(view, layer, hidden + out), kv

    def _project(
        self, layer: Layer, hidden: Tensor, turn: Tensor | None, *rows: int
    ) -> tuple[Tensor, Tensor]:
        """Queries (*rows, heads, head_dim), and keys with values; turned where positions are rotary."""
        view = self.view
        qkv = layer.qkv(_normalise(layer.attention_norm, hidden))
        if turn is None:
            qkv = qkv.view(*rows, -1, view.head_dim)
        else:
            # There are no complex numbers of two bfloat16.
            wide = qkv.to(turn.dtype.to_real()).view(*rows, -1, view.head_dim // 2, 2)
            qkv = torch.view_as_real(torch.view_as_complex(wide) * turn).flatten(-2).to(qkv.dtype)
        q, kv = qkv.split_with_sizes((view.heads, 2 * view.kv_heads), -2)
        return q, kv

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


def _rotary_turns(view: DecodeView, length: int) -> Tensor | None:
    """e^(i angle) for every place, head and pair (length, heads + 2 kv_heads, head_dim / 2); 1 for values.

    With values in it, one multiplication turns what a product gives, and keys and values stay together.
    """
    if view.rotary is None:
        return None
    place = torch.arange(length, device=view.embedding.device).unsqueeze(0)
    kind = torch.promote_types(view.embedding.dtype, torch.float32)
    cos, sin = (table[0].chunk(2, -1)[0].to(kind) for table in view.rotary(view.embedding, place))
    turn = torch.complex(cos, sin).unsqueeze(1)
    turned = view.heads + view.kv_heads
    return torch.cat((turn.expand(-1, turned, -1), torch.ones_like(turn).expand(-1, view.kv_heads, -1)), 1)
