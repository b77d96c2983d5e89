"""Model folders that cannot be used: one line that names the file and the fix; no code of theirs is run."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from talltree.models import load
from talltree.models.load import (
    encode,
    load_model,
    load_tokenizer,
)

from .test_models import error_of, logits_of
from .tiny import llama, save


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "model", llama())


def edit(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


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
