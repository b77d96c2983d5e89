"""Random weights and a tokenizer for a shape, in the hub's layout, so that both sides load the same files.

Every completion must have the same number of tokens on both sides, and no sampler may be slowed down to get
there (a minimum length costs `generate` a pass over the scores of every token). So the weights themselves
close the stop token: one hidden dimension is held constant, and only the stop token's head row is lowered in
it, which puts its logit about 25 below the rest. Its probability is below 1e-12 a token: above 0, as our
preflight demands, and never drawn. The tokens that were really sampled are counted all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.machine import peak_memory
from bench.shapes import PROMPT_TOKENS, Shape, from_json
from talltree.models.load import save_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PAD, STOP = 0, 1
SEED = 0
_CLOSED = 25.0


def work(task: Mapping[str, Any]) -> dict[str, Any]:
    """Writes model and tokenizer of the task's row into its folder `model`; gives its peak memory."""
    shape = from_json(task["row"]).shape
    folder = Path(task["model"])
    folder.mkdir(parents=True)
    save_model(folder, build(shape), tokenizer(shape.vocabulary))
    return {"peak_bytes": peak_memory()}


def build(shape: Shape) -> PreTrainedModel:
    """The float32 model with the library's initial weights (deviation 0.02, fixed seed), without dropout."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoConfig,
        GPTNeoForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
    )

    tokens: dict[str, Any] = {
        "vocab_size": shape.vocabulary, "bos_token_id": STOP, "eos_token_id": STOP, "pad_token_id": PAD,
    }  # fmt: skip
    model: PreTrainedModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if shape.family == "llama":
            model = LlamaForCausalLM(
                LlamaConfig(
                    hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
                    num_key_value_heads=shape.heads, intermediate_size=shape.intermediate,
                    max_position_embeddings=shape.context, tie_word_embeddings=True, rms_norm_eps=1e-5,
                    **tokens,
                )
            )  # fmt: skip
        elif shape.family == "gpt_neo":
            model = GPTNeoForCausalLM(
                GPTNeoConfig(
                    hidden_size=shape.hidden, num_layers=shape.layers, num_heads=shape.heads,
                    intermediate_size=shape.intermediate, max_position_embeddings=shape.context,
                    attention_types=[[["global", "local"], shape.layers // 2]], window_size=shape.window,
                    resid_dropout=0.0, embed_dropout=0.0, attention_dropout=0.0, **tokens,
                )
            )  # fmt: skip
        else:
            model = GPT2LMHeadModel(
                GPT2Config(
                    n_embd=shape.hidden, n_layer=shape.layers, n_head=shape.heads,
                    n_inner=shape.intermediate, n_positions=shape.context,
                    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **tokens,
                )
            )  # fmt: skip
    _close_stop(model, shape)
    return model.eval()


@torch.no_grad()
def _close_stop(model: Any, shape: Shape) -> None:
    """Holds dimension 0 of the last hidden state constant and lowers the stop token's head row there."""
    embedding_VH = model.get_input_embeddings().weight
    if shape.family == "llama":
        # RMSNorm has no bias, so the stream itself carries the constant and no block may write over it.
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        embedding_VH[:, 0] = 0.3
        model.model.norm.weight[0] = 5.0
        hidden_S = model.model(input_ids=torch.tensor([prompt_ids()])).last_hidden_state[0, :, 0]
        constant = float(hidden_S.min())
    else:
        norm = model.transformer.ln_f
        norm.weight[0], norm.bias[0] = 0.0, 5.0
        embedding_VH[:, 0] = 0.0
        constant = 5.0
    embedding_VH[STOP, 0] -= _CLOSED / constant


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word a token, the first letters evenly spread, so that the alliteration reward varies."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<stop>": STOP} | {word(token): token for token in range(2, vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<stop>")


def prompt() -> str:
    """The one prompt of every measurement."""
    return " ".join(word(token) for token in prompt_ids())


def prompt_ids() -> list[int]:
    """Its tokens, the first ones that are words."""
    return list(range(2, 2 + PROMPT_TOKENS))


def word(token: int) -> str:
    """The word of a token; first letters take turns."""
    return f"{chr(ord('a') + token % 26)}{token}"
