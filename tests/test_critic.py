"""The critic: which states it reads, what it starts from, what it shares with the policy, and refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from talltree.errors import ModelError
from talltree.models.critic import Lora, build_critic, save_critic
from talltree.models.policy import add_lora
from talltree.models.reward_format import Format, Reading, Scale
from talltree.models.reward_model import Member, RewardModel, save_reward_model
from talltree.models.score import completion_loss, precision, rollout_values, state_values
from talltree.types import Prompt, Rollout

from .tiny import MODELS, gpt2, llama, save, tokenizer, with_lora

PROMPTS = [[3, 7, 1, 9], [5], [11, 2]]
IDS_NT = torch.tensor([[8, 2, 0, 17], [4, 17, 17, 17], [9, 12, 3, 6]])
MASK_NT = torch.tensor([[True, True, True, False], [True, False, False, False], [True] * 4])


def built(policy, **options):
    options = {
        "body": "separate",
        "init_from": None,
        "head": "zero",
        "lora": None,
        "longest_text": 12,
    } | options
    return build_critic(policy, tokenizer(), **options)


def with_head(critic, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in critic.head.parameters():
            parameter.normal_(generator=generator)
    return critic


def rollout():
    return Rollout(
        [Prompt("")] * 3,
        PROMPTS,
        [""] * 3,
        IDS_NT,
        MASK_NT,
        torch.zeros(3, 4),
        torch.ones(3, dtype=torch.bool),
    )


def by_hand(body, head):
    """Text by text, without padding: the state before each token and the finished text."""
    value_NU = torch.zeros(3, 5)
    for row, prompt in enumerate(PROMPTS):
        length = int(MASK_NT[row].sum())
        text = torch.tensor([prompt + IDS_NT[row, :length].tolist()])
        hidden = body(input_ids=text).last_hidden_state[0, len(prompt) - 1 :]
        assert len(hidden) == length + 1
        value_NU[row, : length + 1] = (hidden @ head.weight[0] + head.bias[0]).detach()
    return value_NU


# Values


@pytest.mark.parametrize("name", [*MODELS, "lora"])
def test_states_are_read_where_tokens_are_drawn_and_at_the_last_one(name):
    policy = with_lora(llama()) if name == "lora" else MODELS[name]()
    critic = with_head(built(policy if name != "lora" else llama(), body="shared"))._replace(body=policy)
    body = policy.get_base_model().model if name == "lora" else policy.base_model
    expected = by_hand(body, critic.head)
    found = state_values(policy, critic.head, PROMPTS, IDS_NT, MASK_NT)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for rows in (None, 1, 2):
        some = rollout_values(policy, critic.head, rollout(), rows)
        torch.testing.assert_close(some, expected, atol=1e-5, rtol=0)
        assert not some.requires_grad
    assert (found[1, 2:] == 0).all()


@pytest.mark.parametrize("fast", [True, False])
def test_a_shared_body_gives_loss_and_values_with_the_gradients_of_two_passes(fast):
    policy = gpt2().double()
    critic = with_head(built(policy, body="shared"))

    def gradients(loss):
        policy.zero_grad()
        critic.head.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in (*policy.parameters(), *critic.head.parameters())]

    def token_loss(logp, part):
        return -logp

    def loss_of(value_head):
        return completion_loss(
            policy, PROMPTS, IDS_NT, MASK_NT, 0.8, token_loss, fast=fast, value_head=value_head
        )

    alone = loss_of(None)
    assert alone.value_NU is None
    values = state_values(policy, critic.head, PROMPTS, IDS_NT, MASK_NT)
    expected = gradients(alone.loss + (values**2).sum())
    together = loss_of(critic.head)
    torch.testing.assert_close(together.value_NU, values, atol=1e-12, rtol=0)
    found = gradients(together.loss + (together.value_NU**2).sum())
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, atol=1e-10, rtol=0)


def test_under_bfloat16_the_head_still_computes_in_float32():
    critic = with_head(built(gpt2()))
    exact = state_values(critic.body, critic.head, PROMPTS, IDS_NT, MASK_NT)
    with precision(torch.device("cpu"), True):
        found = state_values(critic.body, critic.head, PROMPTS, IDS_NT, MASK_NT)
    assert found.dtype == torch.float32
    # bfloat16 keeps 8 bits: hidden states of a few units are off by a few hundredths.
    torch.testing.assert_close(found, exact, atol=0.3, rtol=0)
    assert not torch.equal(found, exact)
    found.sum().backward()
    assert critic.head.weight.grad.abs().sum() > 0
    assert critic.body.wte.weight.grad.abs().sum() > 0


# What it starts from


@pytest.mark.parametrize("body", ["separate", "shared"])
def test_values_are_0_at_the_start(body):
    critic = built(gpt2(), body=body)
    assert not critic.values(rollout()).any()
    assert not any(module.training for module in critic.body.modules())


def test_a_separate_body_is_a_copy_that_trains_by_itself():
    policy = llama()
    critic = built(policy)
    own, theirs = critic.parameters(), dict(policy.model.named_parameters())
    assert own.keys() == {f"body.{name}" for name in theirs} | {"head.weight", "head.bias"}
    for name, parameter in theirs.items():
        assert torch.equal(own[f"body.{name}"], parameter)
        assert own[f"body.{name}"].data_ptr() != parameter.data_ptr()
    assert built(policy, body="shared").parameters().keys() == {"head.weight", "head.bias"}


@pytest.mark.parametrize("family", [llama, gpt2])
def test_with_lora_a_separate_body_has_adapters_over_the_same_frozen_weights(family):
    policy = family()
    critic = built(policy, lora=Lora(2, 4.0, 1))
    adapted = add_lora(policy, 2, 4.0, 0)
    own = critic.parameters()
    assert all("lora_" in name or name.startswith("head.") for name in own)
    mine = {id(p) for p in adapted.parameters() if p.requires_grad}
    assert not mine & {id(p) for p in own.values()}
    frozen = {p.data_ptr() for p in critic.body.parameters() if not p.requires_grad}
    assert frozen <= {p.data_ptr() for p in policy.parameters()}
    assert len(frozen) > 10
    # Adapters of the one do not reach the other.
    with_head(critic)
    before = critic.values(rollout())
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    assert torch.equal(critic.values(rollout()), before)
    with torch.no_grad():
        for name, parameter in own.items():
            if "lora_B" in name:
                parameter.fill_(0.5)
    assert not torch.allclose(critic.values(rollout()), before, atol=1e-2)


def reward_model(folder, heads=1, words=None):
    """A reward model as talltree reward saves one, with gains and biases of its own."""
    torch.manual_seed(0)
    config = llama(seed=5).config
    config.num_labels = heads
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() < 2 else 0.0, 0.3)
    scales = tuple(Scale(2.0 + head, -1.0 - head) for head in range(heads))
    combined = {name: Scale(1.5, 0.25) for name in ("mean", "worst", "mean_minus_variance")}
    format = Format(Reading(0, 64, "refuse"), 1, heads, scales, "mean", 0.0, combined, 1.0)
    words = words or tokenizer()
    save_reward_model(folder, RewardModel((Member(model, model.base_model),), words, format))
    return model, format


@pytest.mark.parametrize("heads", [1, 3])
def test_a_reward_models_head_gives_its_reward_at_the_last_token(tmp_path, heads):
    """Gain and bias are part of the head: what the reward gives a finished text is its value."""
    from talltree.models.reward_model import rewards_of

    model, format = reward_model(tmp_path, heads)
    critic = built(llama(), init_from=str(tmp_path), head="loaded")
    texts = [prompt + IDS_NT[row][MASK_NT[row]].tolist() for row, prompt in enumerate(PROMPTS)]
    with torch.no_grad():
        last = [model.model(input_ids=torch.tensor([text])).last_hidden_state[0, -1] for text in texts]
        logits = torch.stack(last) @ model.score.weight.T
    rewards = rewards_of(logits, format)
    values = critic.values(rollout())
    length_N = MASK_NT.sum(1)
    torch.testing.assert_close(values[torch.arange(3), length_N], rewards, atol=1e-4, rtol=0)
    assert rewards.abs().max() > 0.1
    assert all(parameter.requires_grad for parameter in critic.parameters().values())
    zero = built(llama(), init_from=str(tmp_path))
    assert not zero.values(rollout()).any()
    assert torch.equal(zero.body.embed_tokens.weight, model.model.embed_tokens.weight)


@pytest.mark.parametrize("lora", [None, Lora(2, 4.0, 1)])
@pytest.mark.parametrize("body", ["separate", "shared"])
def test_a_saved_critic_comes_back_with_the_same_values(tmp_path, body, lora):
    policy = llama()
    critic = with_head(built(policy, body=body, lora=lora))
    expected = critic.values(rollout())
    save_critic(tmp_path, critic, tokenizer())
    again = built(llama(), body=body, init_from=str(tmp_path), head="loaded")
    torch.testing.assert_close(again.values(rollout()), expected, atol=1e-6, rtol=0)
    # And a critic that started as a reward model is not taken for one.
    reward = tmp_path / "reward"
    reward_model(reward)
    tuned = with_head(built(policy, init_from=str(reward), head="loaded"))
    save_critic(tmp_path / "next", tuned, tokenizer())
    assert "talltree_reward" not in json.loads((tmp_path / "next" / "config.json").read_text())
    last = built(policy, init_from=str(tmp_path / "next"), head="loaded")
    torch.testing.assert_close(last.values(rollout()), tuned.values(rollout()), atol=1e-6, rtol=0)


def test_saving_does_not_change_the_critic(tmp_path):
    critic = with_head(built(llama(), lora=Lora(2, 4.0, 1)))
    before = critic.values(rollout())
    save_critic(tmp_path, critic, tokenizer())
    assert torch.equal(critic.values(rollout()), before)
    assert any("lora_" in name for name in critic.parameters())


# Refusals


def refused(tmp_path, said, **options):
    with pytest.raises(ModelError) as caught:
        built(llama(), init_from=str(tmp_path), **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_head_has_none_to_load(tmp_path):
    save(tmp_path, llama())
    refused(tmp_path, "has no reward head to keep", head="loaded")
    # Its body is enough where the head starts at zero.
    assert not built(llama(), init_from=str(tmp_path)).values(rollout()).any()


def test_a_head_that_was_cut_off_is_refused(tmp_path):
    reward_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path, "score.weight is not among its weights", head="loaded")


def test_another_tokenizer_is_refused_and_the_reward_recommended(tmp_path):
    words = {"<end>": 0} | {f"w{i}": i + 1 for i in range(1, 22)} | {"w22": 1}
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words)), eos_token="<end>")
    reward_model(tmp_path, words=other)
    refused(tmp_path, "reads other tokens than the policy writes: 'w")
    refused(tmp_path, "can be the reward, which reads text, but not the critic")


def test_more_tokens_than_the_policys_are_no_harm(tmp_path):
    """A reward model may have got a PAD token that the policy does not write."""
    more = tokenizer()
    more.add_special_tokens({"pad_token": "<|pad|>"})
    reward_model(tmp_path, words=more)
    built(llama(), init_from=str(tmp_path))


def test_a_context_that_is_too_short_is_refused(tmp_path):
    reward_model(tmp_path)
    refused(tmp_path, "reads 64 tokens, but prompt and completion have up to 65", longest_text=65)


def test_a_folder_that_is_none_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "nowhere is not a folder")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "is not valid JSON")


@pytest.mark.parametrize("bias", ["0.5", None, float("nan")])
def test_a_bias_that_is_no_number_is_refused(tmp_path, bias):
    critic = with_head(built(llama()))
    save_critic(tmp_path, critic, tokenizer())
    config = json.loads((tmp_path / "config.json").read_text())
    config["talltree_critic"] = {"bias": bias}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, "talltree_critic is", head="loaded")


def test_a_shared_body_takes_a_head_of_its_own_size_only(tmp_path):
    policy = gpt2()
    wide = llama(seed=1)
    save_critic(tmp_path, with_head(built(wide)), tokenizer())
    narrow = gpt2(seed=2)
    assert built(policy, body="shared", init_from=str(tmp_path), head="loaded").body is policy
    narrow.config.hidden_size = 8
    with pytest.raises(ModelError, match="has a head over 16 numbers, but the policy's hidden states have 8"):
        built(narrow, body="shared", init_from=str(tmp_path), head="loaded")
