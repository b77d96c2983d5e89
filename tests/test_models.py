"""Loading and saving in the hub's layout, the frozen reference, and LoRA."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.activations import NewGELUActivation

from talltree.errors import ConfigError, ModelError
from talltree.models.load import (
    compute_device,
    context_length,
    encode,
    fuse_gelu,
    load_model,
    load_tokenizer,
    save_model,
    stop_ids,
    weights_sha256,
)
from talltree.models.policy import Reference, add_lora
from talltree.preflight import preflight
from talltree.types import Prompt, Rollout

from .tiny import MODELS, STOP, gpt2, llama, save, tokenizer, with_lora

TEXT = torch.tensor([[3, 7, 1, 9, 4, 2, 8, 6]])


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "model", llama())


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=TEXT).logits


def error_of(action, *arguments):
    """The text of the one clear line that a ModelError is."""
    with pytest.raises(ModelError) as caught:
        action(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


# loading


def test_the_fused_gelu_is_the_librarys_function_with_its_gradient():
    x = torch.linspace(-9, 9, 2001, dtype=torch.float64, requires_grad=True)
    block = torch.nn.Sequential(NewGELUActivation())
    plain = block(x)
    fuse_gelu(block)
    assert type(block[0]) is torch.nn.GELU
    fused = block(x)
    torch.testing.assert_close(fused, plain, atol=1e-14, rtol=0)
    slopes = [torch.autograd.grad(each.sum(), x)[0] for each in (fused, plain)]
    torch.testing.assert_close(*slopes, atol=1e-13, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo"])
def test_a_loaded_model_has_the_fused_gelu_and_saves_the_config_it_had(name, tmp_path):
    loaded = load_model(str(save(tmp_path / "model", MODELS[name]())))
    kinds = [type(module) for module in loaded.modules()]
    assert torch.nn.GELU in kinds and NewGELUActivation not in kinds
    save_model(tmp_path / "again", loaded, load_tokenizer(str(tmp_path / "model")))
    assert json.loads((tmp_path / "again" / "config.json").read_text())["activation_function"] == "gelu_new"


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_loads_with_the_same_logits(name, tmp_path):
    model = MODELS[name]()
    loaded = load_model(str(save(tmp_path / "model", model)))
    assert type(loaded) is type(model)
    assert not loaded.training
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    # Fused GELU rounds otherwise; without one the bits are the same.
    torch.testing.assert_close(logits_of(loaded), logits_of(model), atol=1e-5, rtol=0)
    fuse_gelu(model)
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert stop_ids(loaded, load_tokenizer(str(tmp_path / "model"))) == (STOP,)
    assert context_length(loaded) == 64


def test_loading_in_another_dtype(folder):
    assert next(load_model(str(folder), torch.bfloat16).parameters()).dtype == torch.bfloat16


def test_weights_stored_in_half_precision_load_as_float32(tmp_path):
    save(tmp_path / "half", llama().half())
    assert next(load_model(str(tmp_path / "half")).parameters()).dtype == torch.float32


def test_the_real_models_awkward_special_tokens(stories260K):
    model, words = load_model(str(stories260K)), load_tokenizer(str(stories260K))
    # generation_config.json names both; config.json and the tokenizer know only 2.
    assert stop_ids(model, words) == (1, 2)
    ids = encode(words, ["Once upon a time"])[0]
    assert ids[0] == words.bos_token_id
    assert ids[-1] not in (1, 2)
    assert context_length(model) == 512


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "llama_tied"])
def test_dropout_is_off_after_loading(name, tmp_path):
    model = load_model(str(save(tmp_path / "model", MODELS[name](dropout=0.1))))
    assert not any(module.training for module in model.modules())
    assert torch.equal(logits_of(model), logits_of(model))
    # The same weights in training mode do differ from pass to pass: the proof above can fail.
    model.train()
    assert not torch.equal(logits_of(model), logits_of(model))


def test_a_missing_pad_token_is_fine(folder):
    words = load_tokenizer(str(folder))
    assert words.pad_token_id is None
    assert encode(words, ["w3 w7", "w1"]) == [[3, 7], [1]]
    assert stop_ids(load_model(str(folder)), words) == (STOP,)


def test_a_final_eos_that_the_tokenizer_adds_is_no_part_of_a_prompt(folder):
    words = load_tokenizer(str(folder))

    class Adding:
        eos_token_id = STOP

        def __init__(self, start):
            self.start = start

        def __call__(self, text):
            return {"input_ids": [*self.start, *words(text)["input_ids"], STOP]}

    assert encode(Adding([]), ["w3 w7"]) == [[3, 7]]
    assert encode(Adding([5]), ["w3", ""]) == [[5, 3], [5]]


# the end of a text


def no_eos():
    words = tokenizer()
    words.eos_token = None
    return words


def test_no_eos_anywhere(tmp_path):
    model = gpt2()
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    assert "has no end-of-sequence token; set eos_token_id" in error_of(stop_ids, model, no_eos())
    model.generation_config.eos_token_id = []
    assert "has no end-of-sequence token" in error_of(stop_ids, model, no_eos())


def test_where_the_stop_tokens_come_from():
    model = gpt2()
    model.generation_config.eos_token_id = [4, 2, 4]
    model.config.eos_token_id = 7
    assert stop_ids(model, tokenizer()) == (2, 4)
    model.generation_config.eos_token_id = None
    assert stop_ids(model, tokenizer()) == (7,)
    model.config.eos_token_id = None
    assert stop_ids(model, tokenizer()) == (STOP,)


@pytest.mark.parametrize("eos", [23, -1, [0, 50256]])
def test_eos_outside_the_vocabulary(eos):
    model = gpt2()
    model.generation_config.eos_token_id = eos
    text = error_of(stop_ids, model, tokenizer())
    assert f"eos_token_id {eos}" in text
    assert "outside its vocabulary of 23 tokens" in text


# saving


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_lora_policy_is_merged_and_plain(name, tmp_path):
    policy = with_lora(MODELS[name]())
    expected, weights = logits_of(policy), {k: v.clone() for k, v in policy.state_dict().items()}
    save_model(tmp_path / "final", policy, tokenizer())
    assert not list((tmp_path / "final").glob("adapter*"))
    for loaded in (
        AutoModelForCausalLM.from_pretrained(tmp_path / "final"),
        load_model(str(tmp_path / "final")),
    ):
        torch.testing.assert_close(logits_of(loaded), expected, atol=1e-5, rtol=0)
    # The policy itself goes on as it was.
    assert torch.equal(logits_of(policy), expected)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in policy.state_dict().items())


def test_a_saved_policy_keeps_tokenizer_and_stop_tokens(tmp_path):
    model = llama()
    model.generation_config.eos_token_id = [0, 2]
    save_model(tmp_path / "final", model, tokenizer())
    loaded, words = load_model(str(tmp_path / "final")), load_tokenizer(str(tmp_path / "final"))
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert stop_ids(loaded, words) == (0, 2)
    assert encode(words, ["w5 w6"]) == [[5, 6]]


def test_preflight_tells_a_reloaded_policy_from_one_in_training_mode(tmp_path):
    """The planted defect model.train(): found on a model whose config has dropout."""
    model = load_model(str(save(tmp_path / "model", gpt2(dropout=0.1))))
    tokens = torch.tensor([[7, 1, STOP]])
    rollout = Rollout(
        [Prompt("w3")], [[3]], ["w7 w1"], tokens, tokens >= 0, torch.zeros(1, 3), torch.tensor([True])
    )

    def dropout_status():
        checks = preflight(
            model, Reference(model), rollout, temperature=1.0, stop_ids=[STOP], max_completion_length=3
        )
        return next(check.status for check in checks if check.name.startswith("dropout"))

    assert dropout_status() == "ok"
    model.train()
    assert dropout_status() == "breach"


def test_the_hash_of_the_weights_sees_every_weight_but_no_adapter():
    model = llama()
    before = weights_sha256(model)
    assert before == weights_sha256(llama())
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-3
    assert weights_sha256(model) != before
    adapted = add_lora(llama(), 2, 4.0, 0)
    before = weights_sha256(adapted)
    with torch.no_grad():
        next(p for name, p in adapted.named_parameters() if "lora_A" in name)[0, 0] += 1
    assert weights_sha256(adapted) == before


def test_where_to_compute(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert compute_device("auto") == compute_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        compute_device("cuda")
    with pytest.raises(ConfigError, match="bfloat16 is for GPUs; use float32 on this CPU"):
        compute_device("auto", "bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert compute_device("auto", "bfloat16").type == "cuda"
    assert compute_device("cpu").type == "cpu"
