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

from talltree.models.shape import Shape


def build(shape: Shape, tokenizer: Any, seed: int) -> PreTrainedModel:
    """A new float32 model without dropout whose special tokens are the tokenizer's.

    Matrices ~ N(0, s^2) with s = 0.5 / sqrt(hidden_size); those that write into the residual stream have
    s / sqrt(2 * layers), so that the stream's variance does not grow with depth (Radford et al. 2019).
    """
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model: PreTrainedModel
    if shape.architecture == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                n_embd=shape.hidden_size, n_layer=shape.layers, n_head=shape.heads,
                n_inner=shape.intermediate_size, n_positions=shape.context,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **tokens,
            )
        )  # fmt: skip
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=shape.hidden_size, num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
                intermediate_size=shape.intermediate_size, max_position_embeddings=shape.context,
                tie_word_embeddings=shape.tie_embeddings, **tokens,
            )
        )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    std = 0.5 / shape.hidden_size**0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                continue
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight"))
            scale = std / (2 * shape.layers) ** 0.5 if into_residual else std
            parameter.copy_(torch.empty_like(parameter).normal_(0.0, scale, generator=generator))
    return model.float().eval()
