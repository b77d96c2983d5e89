"""A Llama-type or GPT-2 model from its dimensions, with weights drawn from an explicit generator."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from talltree.models.load import fuse_gelu
from talltree.models.shape import Shape, dimensions


def vocabulary_size(tokenizer: Any) -> int:
    """Rows of the embedding: one more than the highest token id, above their number where ids have holes."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))


def build(shape: Shape, tokenizer: Any, seed: int) -> PreTrainedModel:
    """A new float32 model without dropout whose special tokens are the tokenizer's.

    Matrices ~ N(0, s^2) with s = 0.5 / sqrt(hidden_size); those that write into the residual stream have
    s / sqrt(2 * layers), so that the stream's variance does not grow with depth (Radford et al. 2019).
    """
    model = architecture(
        shape,
        {
            "vocab_size": vocabulary_size(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    size = dimensions(shape)
    generator = torch.Generator().manual_seed(seed)
    std = 0.5 / size.hidden_size**0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                continue
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight"))
            scale = std / (2 * size.layers) ** 0.5 if into_residual else std
            parameter.copy_(torch.empty_like(parameter).normal_(0.0, scale, generator=generator))
    fuse_gelu(model)
    return model.float().eval()


def architecture(shape: Shape, tokens: dict[str, Any]) -> PreTrainedModel:
    """The library's model of a shape with its own initial weights; tokens: vocab_size and special tokens."""
    size = dimensions(shape)
    if size.architecture == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                n_embd=size.hidden_size, n_layer=size.layers, n_head=size.heads,
                n_inner=size.intermediate_size, n_positions=size.context,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **tokens,
            )
        )  # fmt: skip
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=size.hidden_size, num_hidden_layers=size.layers,
            num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
            intermediate_size=size.intermediate_size, max_position_embeddings=size.context,
            tie_word_embeddings=size.tie_embeddings, **tokens,
        )
    )  # fmt: skip
