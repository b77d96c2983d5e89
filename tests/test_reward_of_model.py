"""A reward model as a reward: in use beside others, its files, and what is refused."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from talltree import checkpoint, rewards
from talltree.errors import DataError, ModelError, RewardError, RunError
from talltree.models.reward_format import Reading, model_folder, read_format
from talltree.models.reward_model import (
    RewardModel,
    load_member,
    load_reward_model,
    reading_tokenizer,
    score_texts,
    token_ids,
)
from talltree.types import Reward

from .tiny import llama, save
from .tiny_reward import COMPLETIONS, CPU, PROMPTS, saved, trained


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return save(tmp_path_factory.mktemp("reward") / "model", llama())


@pytest.fixture(scope="module")
def stored(body):
    """A saved reward model and what it gives."""
    model = trained(body)
    return saved(body.parent / "stored", model), score_texts(model, PROMPTS, COMPLETIONS)[0]


# In use


def test_it_is_a_plain_reward(stored, body):
    folder, expected = stored
    reward: Reward = rewards.load(str(folder))
    values, components = rewards.score(reward, PROMPTS, COMPLETIONS, {"answer": [1, 2, 3, 4, 5]})
    assert values == expected and components == {"reward_model": expected}
    assert all(type(value) is float for value in values)
    assert reward([], []) == []
    run = body.parent / "run"
    run.mkdir()
    (run / "config.yaml").write_text("")
    with pytest.raises(RewardError, match="has no final/: the run has not ended"):
        rewards.load(str(run))
    shutil.copytree(folder, run / "final")
    assert rewards.load(str(run))(PROMPTS, COMPLETIONS) == expected
    assert model_folder(run) == run / "final"


def test_it_works_in_a_weighted_sum(stored, tmp_path, monkeypatch):
    folder, expected = stored
    monkeypatch.chdir(folder.parent)
    other = shutil.copytree(folder, tmp_path / "a - b")
    for text, name in ((folder.name, "reward_model"), (f"0.5*{folder}", "reward_model")):
        spec = f"{text} - 0.25*length"
        values, components = rewards.score(rewards.load(spec), PROMPTS, COMPLETIONS, {})
        weight = 0.5 if "*" in text else 1.0
        lengths = [len(text.split()) for text in COMPLETIONS]
        assert values == [weight * r - 0.25 * n for r, n in zip(expected, lengths, strict=True)]
        assert components[name] == expected
    both = rewards.load(f"{folder} + reward_model(path={str(other)!r})")
    assert [term.name for term in both.terms] == [str(folder), f"reward_model(path={str(other)!r})"]
    assert rewards.load(str(other))(PROMPTS, COMPLETIONS) == expected


def test_its_files_say_which_weights_it_has(stored):
    folder, _ = stored
    for spec in (str(folder), f"2*{folder} - length", f"reward_model(path={str(folder)!r})"):
        assert rewards.files(spec) == [folder / "manifest.json"]
    assert rewards.files("length + alliteration") == []


def test_changed_weights_are_found(stored, tmp_path):
    folder = shutil.copytree(stored[0], tmp_path / "reward")
    path = folder / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(RunError, match="model.safetensors does not have the SHA-256"):
        rewards.load(str(folder))
    (folder / "README.md").write_text("a card may be edited")
    path.write_bytes((stored[0] / "model.safetensors").read_bytes())
    assert rewards.load(str(folder))(PROMPTS, COMPLETIONS) == stored[1]


def test_a_policy_with_another_tokenizer_is_served(stored):
    """The reward reads text: what the policy's tokens are plays no part."""
    folder, _ = stored
    reward = rewards.load(str(folder))
    tokenizer = load_reward_model(folder, CPU).tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    texts = ["Once upon a time", " there was a tree.\n\u2603"]
    assert len(tokenizer(texts[0] + texts[1])["input_ids"]) > 4
    assert math.isfinite(reward(texts[:1], texts[1:])[0])


# What is refused


def test_a_model_without_its_head_is_refused(body, stored, tmp_path):
    with pytest.raises(
        RewardError, match="is no reward model: its config.json .LlamaForCausalLM. has no talltree"
    ):
        rewards.load(str(body))
    folder = shutil.copytree(stored[0], tmp_path / "reward")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if k != "score.weight"},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(RunError, match="is damaged"):
        rewards.load(str(folder))
    (folder / checkpoint.MANIFEST).unlink()
    with pytest.raises(RewardError, match="no reward head: score.weight is not among its weights"):
        rewards.load(str(folder))
    with pytest.raises(ModelError, match="no reward head"):
        load_reward_model(folder, CPU)
    with pytest.raises(ModelError, match="no reward head to keep"):
        load_member(str(body), 1, 0, kept_head=True)
    # A body that lacks a weight does not start at random either.
    save_file(
        {k: v for k, v in weights.items() if k != "model.norm.weight"},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ModelError, match="lacks 1 of its weights .model.norm.weight"):
        load_reward_model(folder, CPU)


def test_a_kept_head_is_the_one_that_was_stored(stored):
    folder, _ = stored
    kept, new = load_member(str(folder), 1, 5, kept_head=True), load_member(str(folder), 1, 5)
    assert torch.equal(kept.head, load_file(folder / "model.safetensors")["score.weight"])
    assert not torch.equal(kept.head, new.head)


def test_texts_too_long_are_refused_or_cut_at_the_beginning_and_said(body, tmp_path, capsys):
    prompts, completions = ["w1 w2 w3"], [" w4 w5 w6"]
    model = trained(body, max_length=5, too_long="truncate")
    ids, cut = token_ids(model.tokenizer, model.format.reading, prompts, completions)
    assert (ids, cut) == ([[2, 3, 4, 5, 6]], [0])
    reward = rewards.load(str(saved(tmp_path / "cut", model)))
    assert reward(prompts, completions) == reward(["w2 w3"], completions)
    said = capsys.readouterr().err
    assert said.count("1 of 1 texts are longer than the 5 tokens that it reads") == 1
    reward(prompts, completions)
    assert capsys.readouterr().err == ""
    strict = Reading(None, 5, "refuse")
    with pytest.raises(DataError, match="text 0 .* has 6 tokens, more than the 5"):
        token_ids(model.tokenizer, strict, prompts, completions)
    refusing = saved(
        tmp_path / "refusing",
        RewardModel(model.members, model.tokenizer, dataclasses.replace(model.format, reading=strict)),
    )
    with pytest.raises(RewardError, match="text 0 .* has 6 tokens, more than the 5"):
        rewards.load(str(refusing))(prompts, completions)


def test_the_start_token_stays_when_the_beginning_is_cut(stories260K):
    tokenizer = reading_tokenizer(str(stories260K))
    ids, _ = token_ids(tokenizer, Reading(1, 6, "truncate"), ["Once upon a time"], [" there was"])
    whole, _ = token_ids(tokenizer, Reading(1, 99, "refuse"), ["Once upon a time"], [" there was"])
    assert ids == [[1, *whole[0][-5:]]] and whole[0][0] == 1 and whole[0][-1] == 1


def test_an_empty_text_is_refused(stored):
    with pytest.raises(RewardError, match="text 1 is empty"):
        rewards.load(str(stored[0]))(["w1", ""], ["", ""])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere/at/all", "there is no such folder"),
        ("reward_model", "needs a value for path"),
        ("reward_model(path='nowhere')", "is not a folder"),
        ("reward_model(path='{folder}', combine='best')", "combine 'best' is unknown; use mean, worst"),
        ("reward_model(path='{folder}', device='tpu')", "device 'tpu' is unknown"),
        ("reward_model(path='{folder}', weight=2)", "no parameter 'weight'"),
    ],
)
def test_specs_that_cannot_be_used(stored, spec, message):
    with pytest.raises(RewardError, match=message):
        rewards.load(spec.format(folder=stored[0]))


def test_an_unreadable_format_is_refused(stored, tmp_path):
    folder = shutil.copytree(stored[0], tmp_path / "reward")
    (folder / checkpoint.MANIFEST).unlink()
    config = json.loads((folder / "config.json").read_text())
    for changed in ({"format": 9}, {"scales": "no"}, {"combined": None}):
        (folder / "config.json").write_text(
            json.dumps(config | {"talltree_reward": config["talltree_reward"] | changed})
        )
        with pytest.raises(ModelError, match="talltree_reward cannot be read"):
            read_format(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not valid JSON"):
        read_format(folder)
