"""Tiny random models of the tested families and a tokenizer for them, in the hub's layout where asked."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

VOCABULARY = 23
STOP = 0


def gpt2(vocabulary=VOCABULARY, dropout=0.0, seed=0, **options):
    config = GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=64, vocab_size=vocabulary, eos_token_id=STOP,
        bos_token_id=STOP, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, **options,
    )  # fmt: skip
    return _random(GPT2LMHeadModel, config, seed)


def gpt_neo(vocabulary=VOCABULARY, dropout=0.0, seed=0):
    """Its local layer sees 4 positions: fewer than every text of the tests has."""
    config = GPTNeoConfig(
        hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        max_position_embeddings=64, vocab_size=vocabulary, window_size=4, eos_token_id=STOP,
        bos_token_id=STOP, resid_dropout=dropout, embed_dropout=dropout, attention_dropout=dropout,
    )  # fmt: skip
    return _random(GPTNeoForCausalLM, config, seed)


def llama(vocabulary=VOCABULARY, tied=True, dropout=0.0, seed=0, **options):
    """Four query heads on two key-value heads."""
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, vocab_size=vocabulary, tie_word_embeddings=tied,
        attention_dropout=dropout, eos_token_id=STOP, bos_token_id=STOP, **options,
    )  # fmt: skip
    return _random(LlamaForCausalLM, config, seed)


MODELS = {
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "llama_tied": llama,
    "llama_untied": lambda **options: llama(tied=False, **options),
    "llama_biased": lambda **options: llama(attention_bias=True, mlp_bias=True, **options),
}


def tokenizer():
    """One token per word: `<end>` is 0, `w1` is 1 and so on; without a pad token."""
    words = {"<end>": STOP} | {f"w{i}": i for i in range(1, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w1"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def save(folder, model):
    """A model folder as the hub has it."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def with_lora(model, seed=0):
    """The model with LoRA adapters whose B is not 0, so that they matter."""
    from talltree.models.policy import add_lora

    adapted = add_lora(model, r=2, alpha=8.0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return adapted


def _random(architecture, config, seed):
    """Weights large enough that the logits spread over several nats and positions matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture(config)
        for name, parameter in model.named_parameters():
            is_norm = parameter.dim() < 2 and name.endswith("weight")
            torch.nn.init.normal_(parameter, 1.0 if is_norm else 0.0, 0.3)
    return model.eval()
