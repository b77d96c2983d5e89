"""One view of the weights of GPT-2, GPT-Neo and Llama-type models, for a decode loop without module calls.

The three families differ in how the weights are stored (GPT-2 keeps them transposed), in the norm, in
positions (learned or rotary), in the feed-forward activation and in GPT-Neo's unscaled, windowed attention.
`decode_view` states those differences as data. With LoRA adapters in place the view holds the merged
weights, so the sampler draws from the policy that the trainer scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from talltree.maths.products import Product, packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Norm(NamedTuple):
    """Layer norm, or root-mean-square norm where bias is None."""

    weight: Tensor
    bias: Tensor | None
    eps: float


class BareNorm(NamedTuple):
    """x / sqrt(|x|^2 + floor^2), floor = sqrt(width * eps): three calls on a CPU, the library makes seven.

    That is what is left of a root-mean-square norm whose weight, and the root of the width, the product after
    it has taken in.
    """

    floor: Tensor


class Layer(NamedTuple):
    """The norms and products of one block, and how far back its attention sees."""

    attention_norm: Norm | BareNorm
    qkv: Product  # where positions are rotary, the two numbers that a rotation turns are neighbours
    attention_out: Product
    mlp_norm: Norm | BareNorm
    mlp_in: Product  # gate and up stacked where the feed-forward is gated
    mlp_out: Product
    window: int | None  # positions that a query sees, itself included; None: all


class DecodeView(NamedTuple):
    """What a decode loop needs: the layers in order and the few choices that tell families apart."""

    embedding: Tensor  # (V, hidden)
    positions: Tensor | None  # learned (context, hidden)
    rotary: nn.Module | None  # the model's own module: handles every scaling of its family
    layers: list[Layer]
    final_norm: Norm | BareNorm
    head: Product
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    gated: bool  # silu(gate) * up, otherwise gelu in its tanh form


def base_model(model: Any) -> Any:
    """The library's own model inside adapters, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decode_view(model: PreTrainedModel) -> DecodeView | None:
    """The view of a model's current weights, or None where the architecture or an option is not covered.

    Some weights are the model's own and some are copies, reordered: take a new view after every update.
    """
    base: Any = base_model(model)
    match type(base).__name__:
        case "GPT2LMHeadModel":
            return _gpt2(base)
        case "GPTNeoForCausalLM":
            return _gpt_neo(base)
        case "LlamaForCausalLM":
            return _llama(base)
        case _:
            return None


def _gpt2(model: Any) -> DecodeView | None:
    config, body = model.config, model.transformer
    plain = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx
    if not plain or config.activation_function != "gelu_new" or config.add_cross_attention:
        return None
    layers = [
        Layer(
            _norm(block.ln_1),
            _product(block.attn.c_attn),
            _product(block.attn.c_proj),
            _norm(block.ln_2),
            _product(block.mlp.c_fc),
            _product(block.mlp.c_proj),
            None,
        )
        for block in body.h
    ]
    return _learned_positions(model, body, layers, config.num_attention_heads, scaled=True)


def _gpt_neo(model: Any) -> DecodeView | None:
    config, body = model.config, model.transformer
    if config.activation_function != "gelu_new":
        return None
    layers = []
    for block, kind in zip(body.h, config.attention_layers, strict=True):
        attention = block.attn.attention
        layers.append(
            Layer(
                _norm(block.ln_1),
                _product(attention.q_proj, attention.k_proj, attention.v_proj),
                _product(attention.out_proj),
                _norm(block.ln_2),
                _product(block.mlp.c_fc),
                _product(block.mlp.c_proj),
                config.window_size if kind == "local" else None,
            )
        )
    # GPT-Neo does not divide attention scores by the root of the head size.
    return _learned_positions(model, body, layers, config.num_heads, scaled=False)


def _learned_positions(model: Any, body: Any, layers: list[Layer], heads: int, scaled: bool) -> DecodeView:
    embedding = body.wte.weight.detach()
    head_dim = embedding.shape[1] // heads
    return DecodeView(
        embedding=embedding,
        positions=body.wpe.weight.detach(),
        rotary=None,
        layers=layers,
        final_norm=_norm(body.ln_f),
        head=_product(model.lm_head),
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        scale=head_dim**-0.5 if scaled else 1.0,
        gated=False,
    )


def _llama(model: Any) -> DecodeView | None:
    config, body = model.config, model.model
    # Rotary frequencies that change with the length of the text cannot be tabled ahead.
    rotary = str(getattr(body.rotary_emb, "rope_type", "default"))
    if config.hidden_act != "silu" or "dynamic" in rotary or rotary == "longrope":
        return None
    head_dim = body.layers[0].self_attn.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    order = _pairs_side_by_side(heads, kv_heads, head_dim).to(model.device)
    final_norm, head = _norm_and_product(body.norm, model.lm_head)
    layers = [
        Layer(
            *_norm_and_product(
                block.input_layernorm,
                block.self_attn.q_proj,
                block.self_attn.k_proj,
                block.self_attn.v_proj,
                order=order,
            ),
            _product(block.self_attn.o_proj),
            *_norm_and_product(block.post_attention_layernorm, block.mlp.gate_proj, block.mlp.up_proj),
            _product(block.mlp.down_proj),
            None,
        )
        for block in body.layers
    ]
    return DecodeView(
        embedding=body.embed_tokens.weight.detach(),
        positions=None,
        rotary=body.rotary_emb,
        layers=layers,
        final_norm=final_norm,
        head=head,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        gated=True,
    )


def _pairs_side_by_side(heads: int, kv_heads: int, head_dim: int) -> Tensor:
    """Order of queries, keys and values in which the two numbers that a rotation turns are neighbours.

    The library pairs i with i + head_dim / 2. An order that queries and keys share changes no score.
    """
    within = torch.arange(head_dim).view(2, -1).T.reshape(-1)
    turned = torch.arange(heads + kv_heads).unsqueeze(1) * head_dim + within
    values = torch.arange((heads + kv_heads) * head_dim, (heads + 2 * kv_heads) * head_dim)
    return torch.cat((turned.reshape(-1), values))


def _norm(module: Any) -> Norm:
    if isinstance(module, nn.LayerNorm):
        return Norm(module.weight.detach(), module.bias.detach(), module.eps)
    return Norm(module.weight.detach(), None, module.variance_epsilon)


def _norm_and_product(
    norm: Any, *modules: Any, order: Tensor | None = None
) -> tuple[Norm | BareNorm, Product]:
    """A root-mean-square norm and the product after it, on a CPU in float32 with its weight taken in."""
    scale = norm.weight.detach()
    if scale.device.type != "cpu" or scale.dtype != torch.float32:
        return _norm(norm), _product(*modules, order=order)
    width = len(scale)
    floor = torch.tensor((width * norm.variance_epsilon) ** 0.5)
    return BareNorm(floor), _product(*modules, scale=scale * width**0.5, order=order)


def _product(*modules: Any, scale: Tensor | None = None, order: Tensor | None = None) -> Product:
    """The product with a module's weight, or with those of several stacked.

    scale (in,) multiplies its x, and order (out,) says which of its results stands where.
    """
    parts = [_weight_and_bias(module) for module in modules]
    biases = [bias for _, bias in parts if bias is not None]
    weight = parts[0][0] if len(parts) == 1 else torch.cat([weight for weight, _ in parts])
    bias = None if not biases else biases[0] if len(biases) == 1 else torch.cat(biases)
    if order is not None:
        weight, bias = weight[order], None if bias is None else bias[order]
    return packed(weight if scale is None else weight * scale, bias)


def _weight_and_bias(module: Any) -> tuple[Tensor, Tensor | None]:
    """Its weight (out, in) and bias (out,) or None, with LoRA adapters merged."""
    linear = module.base_layer if hasattr(module, "base_layer") else module
    weight = linear.weight.detach()
    for adapter in getattr(module, "active_adapters", []):
        apart = adapter in module.lora_A and adapter not in module.merged_adapters
        if apart and not module.disable_adapters:
            weight = weight + module.get_delta_weight(adapter).detach()
    if type(linear).__name__ == "Conv1D":
        weight = weight.T
    return weight, None if linear.bias is None else linear.bias.detach()
