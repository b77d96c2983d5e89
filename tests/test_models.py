"""Loading and saving in the hub's layout, the frozen reference, and LoRA."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from talltree.errors import ConfigError, ModelError
from talltree.models import load
from talltree.models.load import (
    compute_device,
    context_length,
    encode,
    load_model,
    load_tokenizer,
    save_model,
    stop_ids,
    weights_sha256,
)
from talltree.models.policy import Reference, add_lora, trainable
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


def edit(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def error_of(action, *arguments):
    """The text of the one clear line that a ModelError is."""
    with pytest.raises(ModelError) as caught:
        action(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


# loading


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_loads_with_the_same_logits(name, tmp_path):
    model = MODELS[name]()
    loaded = load_model(str(save(tmp_path / "model", model)))
    assert type(loaded) is type(model)
    assert not loaded.training
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
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


# what can be wrong with a folder


def test_missing_folder(tmp_path):
    text = error_of(load_model, str(tmp_path / "nowhere"))
    assert "nowhere does not exist" in text
    assert "runs/a/final does not exist" in error_of(load_tokenizer, "runs/a/final")


def test_a_file_in_place_of_a_folder(folder):
    text = error_of(load_model, str(folder / "model.safetensors"))
    assert "is a file; give the model folder" in text


def test_folder_without_config(folder):
    (folder / "config.json").unlink()
    assert "has no config.json" in error_of(load_model, str(folder))
    assert encode(load_tokenizer(str(folder)), ["w3"]) == [[3]]  # as the stage `tokenizer` leaves one
    (folder / "tokenizer.json").unlink()
    assert "has no config.json or tokenizer.json" in error_of(load_tokenizer, str(folder))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
@pytest.mark.parametrize("action", [load_model, load_tokenizer])
def test_a_cut_file_is_named(folder, name, action):
    path = folder / name
    path.write_text(path.read_text()[: path.stat().st_size // 2])
    text = error_of(action, str(folder))
    assert f"{path} is not valid JSON" in text


@pytest.mark.parametrize("content", ["[]", "{}", '{"model_type": "zork"}', '{"model_type": "t5"}'])
def test_a_config_of_no_causal_language_model(folder, content):
    (folder / "config.json").write_text(content)
    assert f"cannot load the model in {folder}" in error_of(load_model, str(folder))


@pytest.mark.parametrize(("key", "value"), [("hidden_size", "wide"), ("hidden_act", "zork")])
def test_a_config_with_a_wrong_value(folder, key, value):
    edit(folder / "config.json", **{key: value})
    assert value in error_of(load_model, str(folder))


def test_missing_weights_file(folder):
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in error_of(load_model, str(folder))


def test_a_pickled_weights_file_is_no_substitute(folder):
    (folder / "model.safetensors").unlink()
    torch.save(llama().state_dict(), folder / "pytorch_model.bin")
    assert "model.safetensors" in error_of(load_model, str(folder))


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_truncated_weights(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"cannot load the model in {folder}" in error_of(load_model, str(folder))


def test_missing_keys_do_not_start_at_random(folder, capsys):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text = error_of(load_model, str(folder))
    assert "lacks 1 of its weights (model.layers.1.mlp.up_proj.weight" in text
    assert capsys.readouterr().err == ""  # no table of the library's beside the one line


def test_weights_of_another_shape(folder, capsys):
    edit(folder / "config.json", intermediate_size=20)
    text = error_of(load_model, str(folder))
    assert "6 weights differ in shape" in text
    assert "(16, 24), the config asks for (16, 20)" in text
    assert capsys.readouterr().err == ""


def test_an_unknown_hub_name_without_a_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for action, what in ((load_model, "model"), (load_tokenizer, "tokenizer")):
        text = error_of(action, "nobody/no-such-model")
        assert text.startswith(f"cannot load {what} nobody/no-such-model: no such local folder")


def test_missing_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert f"cannot load the tokenizer in {folder}" in error_of(load_tokenizer, str(folder))


def test_seedling_is_a_name_for_the_packages_own_model(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "SEEDLING", save(tmp_path / "own", llama()))
    assert torch.equal(logits_of(load_model("seedling")), logits_of(llama()))


def test_code_in_a_model_folder_is_never_run(folder, tmp_path):
    marker = tmp_path / "marker"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Evil: pass\n"
    (folder / "evil.py").write_text(code)
    classes = {
        "AutoConfig": "evil.Evil",
        "AutoModelForCausalLM": "evil.Evil",
        "AutoTokenizer": ["evil.Evil", None],
    }
    edit(folder / "config.json", auto_map=classes)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    # A known family: the library's own class serves. An unknown one: refused.
    assert type(load_model(str(folder))).__name__ == "LlamaForCausalLM"
    load_tokenizer(str(folder))
    edit(folder / "config.json", model_type="evil", architectures=["Evil"])
    assert "cannot load the model" in error_of(load_model, str(folder))
    assert not marker.exists()
    # The marker is what that code does: the proof above can fail.
    exec(compile(code, "evil.py", "exec"), {})
    assert marker.exists()


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


# reference


def step(policy):
    """One optimiser step that moves the policy far."""
    optimizer = torch.optim.SGD(trainable(policy).values(), lr=1.0)
    policy(input_ids=TEXT).logits.log_softmax(-1)[..., 3].sum().backward()
    optimizer.step()


class SharedWeights(Reference):
    """The planted defect: what looks like a frozen copy is the policy itself."""

    def __init__(self, policy):
        super().__init__(policy)
        self._copy = policy


def stays(reference, policy):
    with reference.model() as model:
        before = logits_of(model)
    moved_from = logits_of(policy)
    step(policy)
    assert (logits_of(policy) - moved_from).abs().max() > 0.1
    with reference.model() as model:
        return torch.equal(logits_of(model), before)


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_is_a_true_copy(name):
    policy = MODELS[name]()
    assert stays(Reference(policy), policy)
    with Reference(policy).model() as reference:
        assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_a_reference_that_shares_weights_is_caught():
    policy = gpt2()
    assert not stays(SharedWeights(policy), policy)


@pytest.mark.parametrize("name", MODELS)
def test_under_lora_the_reference_is_the_base_bit_for_bit(name):
    base = logits_of(MODELS[name]())
    policy = with_lora(MODELS[name]())
    assert (logits_of(policy) - base).abs().max() > 0.05
    reference = Reference(policy)
    with reference.model() as model:
        assert torch.equal(logits_of(model), base)
    assert stays(reference, policy)
    with reference.model() as model:
        assert torch.equal(logits_of(model), base)
    # Outside the block the adapters are on again, and still train.
    assert (logits_of(policy) - base).abs().max() > 0.05
    assert trainable(policy)


@pytest.mark.parametrize("name", MODELS)
def test_fresh_adapters_change_nothing_and_alone_train(name):
    base = logits_of(MODELS[name]())
    policy = add_lora(MODELS[name](), r=2, alpha=4.0, seed=0)
    assert torch.equal(logits_of(policy), base)
    assert not policy.training
    names = trainable(policy)
    assert names
    assert all("lora_" in name for name in names)
    assert not any("lm_head" in name for name in names)


def test_the_seed_decides_the_adapters_and_nothing_global_moves():
    state = torch.random.get_rng_state()
    first, again, other = (trainable(add_lora(llama(), 2, 4.0, seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_model_that_cannot_train_is_refused():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        trainable(gpt2().requires_grad_(False))


def test_tied_weights_train_once():
    names = trainable(llama(tied=True))
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert "lm_head.weight" in trainable(llama(tied=False))


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
    with pytest.raises(ConfigError, match="bfloat16 gains nothing on this CPU"):
        compute_device("auto", "bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert compute_device("auto", "bfloat16").type == "cuda"
    assert compute_device("cpu").type == "cpu"
