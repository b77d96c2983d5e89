"""What is trained: a model together with its loss over rows of tokens, as one module that can be wrapped."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from talltree.maths.cross_entropy import head_cross_entropy
from talltree.maths.head import head_logprobs
from talltree.models.score import precision

NO_TARGET = -100
"""Of a place whose next token is not learned: torch's own mark."""


class Objective(nn.Module):
    """scale * sum of -log p(target) in nats over the places that have one.

    separated: EOS begins a document, and attention and position ids do not reach back behind it; None leaves
    a row as one text. bfloat16: the forward pass, in autocast. chunked: through `head_cross_entropy`.
    """

    def __init__(
        self, model: PreTrainedModel, *, separated: int | None, bfloat16: bool, chunked: bool
    ) -> None:
        super().__init__()
        self.model = model
        self._separated = separated
        self._bfloat16 = bfloat16
        self._chunked = chunked
        # Sharding by blocks finds them by this name, which it asks of the outermost module.
        self._no_split_modules = list(getattr(model, "_no_split_modules", None) or [])

    def forward(self, ids_NT: Tensor, target_NT: Tensor, scale: float) -> Tensor:
        """The loss of inputs (N, T) and targets (N, T), NO_TARGET where there is none."""
        with precision(ids_NT.device, self._bfloat16):
            hidden_NTH = self._hidden(ids_NT)
            if not self._chunked and torch.is_grad_enabled():
                logits_NTV = self._head(hidden_NTH).float()
                total = F.cross_entropy(
                    logits_NTV.flatten(0, 1), target_NT.flatten(), ignore_index=NO_TARGET, reduction="sum"
                )
                return total * scale
            kept = target_NT != NO_TARGET
            if kept.all():
                hidden_MH, target_M = hidden_NTH.flatten(0, 1), target_NT.flatten()
            else:
                hidden_MH, target_M = hidden_NTH[kept], target_NT[kept]
            # Autocast does not reach a gradient of our own, so the types are set here.
            if self._bfloat16:
                hidden_MH = hidden_MH.to(torch.bfloat16)
            weight_VH = self._head.weight.to(hidden_MH.dtype)
            if not len(target_M):
                return hidden_MH.sum() * 0.0  # nothing to predict, and a gradient of 0
            if torch.is_grad_enabled():
                return head_cross_entropy(hidden_MH, weight_VH, target_M, scale)
            return -scale * head_logprobs(hidden_MH, weight_VH, None, target_M, 1.0).sum()

    @property
    def _head(self) -> nn.Linear:
        head: nn.Linear = self.model.lm_head
        return head

    def _hidden(self, ids_NT: Tensor) -> Tensor:
        # Only the training step has one shape; a compiled forward would be made again for every other.
        body = self.model.base_model if torch.is_grad_enabled() else self.model.base_model.forward
        if self._separated is None:
            return body(input_ids=ids_NT, use_cache=False).last_hidden_state
        position_NT, mask_NTT = apart(ids_NT, self._separated)
        return body(
            input_ids=ids_NT, position_ids=position_NT, attention_mask=mask_NTT.unsqueeze(1), use_cache=False
        ).last_hidden_state


def apart(ids_NT: Tensor, eos: int) -> tuple[Tensor, Tensor]:
    """Position ids (N, T) and attention mask (N, T, T), True where a query may look, of rows of documents.

    EOS ends a document where it is predicted and begins the next where it is read, at position 0. A document
    that is cut at the left edge of a row counts from there.
    """
    place_T = torch.arange(ids_NT.shape[1], device=ids_NT.device)
    starts_NT = ids_NT == eos
    document_NT = starts_NT.cumsum(1)
    begun_NT = torch.where(starts_NT, place_T, 0).cummax(1).values
    same_NTT = document_NT.unsqueeze(2) == document_NT.unsqueeze(1)
    return place_T - begun_NT, same_NTT & (place_T.unsqueeze(1) >= place_T)
