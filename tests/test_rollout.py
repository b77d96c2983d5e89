"""Rollouts: prompts checked, texts continued, rewards and KL joined, and the columns that are stored."""

import dataclasses

import pytest
import torch

from talltree.errors import ConfigError, DataError, ModelError, RewardError
from talltree.models.load import load_model, load_tokenizer, stop_ids
from talltree.models.policy import Reference
from talltree.models.score import likelihoods
from talltree.rollout import (
    collect,
    encode_prompts,
    sample_columns,
    score,
    state_rewards,
    truncation_at,
)
from talltree.types import Prompt, Rollout, Scored, Truncation

from .tiny import STOP, gpt2, tokenizer

PROMPTS = [Prompt("w3 w7 w1", {"level": 1})] * 2 + [Prompt("w5", {"level": 2})] * 2


def collected(model, words, prompts=PROMPTS, stop=(STOP,), temperature=1.0):
    return collect(
        model,
        words,
        prompts,
        encode_prompts(words, model, prompts, 8),
        max_completion_length=8,
        stop_ids=stop,
        temperature=temperature,
        generator=torch.Generator().manual_seed(4),
    )


def length_reward(prompts, completions, **columns):
    return [float(len(completion.split())) for completion in completions]


def scored_with(reward, coef=0.5, kl_in_reward=True, missing_end=None, ended_N=None):
    model = gpt2(seed=0)
    rollout = collected(model, tokenizer())
    if ended_N is not None:
        rollout = dataclasses.replace(rollout, ended_N=ended_N)
    reference = Reference(gpt2(seed=1))
    return score(
        rollout,
        reward,
        reference,
        temperature=1.0,
        coef=coef,
        kl_in_reward=kl_in_reward,
        missing_end=missing_end,
    )


def test_prompt_ids_by_text():
    assert encode_prompts(tokenizer(), gpt2(), PROMPTS, 8) == {"w3 w7 w1": [3, 7, 1], "w5": [5]}


@pytest.mark.parametrize(
    ("text", "length", "message"),
    [
        ("", 8, "prompt '' has no tokens"),
        ("w3 " * 10, 55, "context is 64; shorten the prompt, or set max_completion_length to 54 or less"),
        ("w3 " * 64, 1, "has 64 tokens and max_completion_length is 1, but the model's context is 64"),
    ],
)
def test_prompts_that_cannot_be_used(text, length, message):
    with pytest.raises(DataError) as caught:
        encode_prompts(tokenizer(), gpt2(), [Prompt(text)], length)
    assert message in str(caught.value)
    assert "to 0 or less" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_prompt_may_fill_the_context_to_the_last_token():
    assert len(encode_prompts(tokenizer(), gpt2(), [Prompt("w3 " * 10)], 54)) == 1


def test_a_tokenizer_of_another_model():
    with pytest.raises(ModelError, match="gives token 22 for prompt 'w22', but the model has 9 tokens"):
        encode_prompts(tokenizer(), gpt2(vocabulary=9), [Prompt("w22")], 8)


def test_completions_are_what_is_added_to_the_prompt():
    rollout = collected(gpt2(), tokenizer())
    for row, prompt in enumerate(PROMPTS):
        tokens = rollout.completion_ids_NT[row][rollout.completion_mask_NT[row]].tolist()
        words = "".join(f" w{token}" for token in tokens if token != STOP)
        assert rollout.completions[row] == words
        assert rollout.prompts[row] is prompt


def test_no_space_is_lost_where_the_tokenizer_eats_the_first(stories260K):
    model, words = load_model(str(stories260K)), load_tokenizer(str(stories260K))
    prompt = Prompt("Once upon a time")
    rollout = collected(model, words, [prompt] * 4, stop=stop_ids(model, words))
    assert all(completion[0] in " ," for completion in rollout.completions)
    for ids, mask, completion in zip(
        rollout.completion_ids_NT, rollout.completion_mask_NT, rollout.completions, strict=True
    ):
        whole = words.decode(rollout.prompt_ids[0] + ids[mask].tolist(), skip_special_tokens=True)
        assert whole == prompt.text + completion


def test_score_joins_reward_and_kl():
    scored = scored_with(length_reward)
    rollout = scored.rollout
    mask_NT = rollout.completion_mask_NT
    assert scored.reward_N.tolist() == length_reward([], rollout.completions)
    assert scored.scored_N.all()
    expected = likelihoods(gpt2(seed=1), rollout, 1.0)
    torch.testing.assert_close(scored.ref_logp_NT, expected, atol=1e-5, rtol=0)
    # The return is the reward less half a point per nat of the sequence's KL.
    kl_N = (rollout.logp_NT - expected).sum(1)
    returns_N = scored.token_reward_NT.sum(1)
    torch.testing.assert_close(returns_N, scored.reward_N.float() - 0.5 * kl_N, atol=1e-4, rtol=0)
    assert kl_N.abs().min() > 0.01
    assert (scored.token_reward_NT[~mask_NT] == 0).all()
    without = scored_with(length_reward, kl_in_reward=False).token_reward_NT
    assert (without.count_nonzero(1) <= 1).all()
    torch.testing.assert_close(without.sum(1), scored.reward_N.float())


def test_columns_reach_the_reward_and_unscored_completions_are_marked():
    seen = {}

    def some(prompts, completions, level, **columns):
        seen.update(prompts=list(prompts), level=level)
        return [1.0, None, 0.0, -2.0]

    scored = scored_with(some)
    assert seen == {"prompts": [prompt.text for prompt in PROMPTS], "level": [1, 1, 2, 2]}
    assert scored.scored_N.tolist() == [True, False, True, True]
    assert scored.reward_N.tolist() == [1.0, 0.0, 0.0, -2.0]


def test_a_reward_that_scores_nothing_is_refused():
    with pytest.raises(RewardError, match="scored none of 4 completions"):
        scored_with(lambda prompts, completions, **columns: [None] * 4)


ENDED = torch.tensor([True, False, False, True])


def test_a_missing_end_gets_the_fixed_score_whatever_the_reward_says():
    def some(prompts, completions, **columns):
        return [5.0, 7.0, None, None]

    scored = scored_with(some, missing_end=-1.0, ended_N=ENDED)
    assert scored.reward_N.tolist() == [5.0, -1.0, -1.0, 0.0]
    assert scored.scored_N.tolist() == [True, True, True, False]
    assert list(scored.components.values()) == [[5.0, 7.0, None, None]]
    kl_N = (scored.rollout.logp_NT - scored.ref_logp_NT).sum(1)
    expected_N = scored.reward_N.float() - 0.5 * kl_N
    torch.testing.assert_close(scored.token_reward_NT.sum(1), expected_N, atol=1e-4, rtol=0)
    without = scored_with(some, ended_N=ENDED)
    assert without.reward_N.tolist() == [5.0, 7.0, 0.0, 0.0]


def test_state_rewards_are_the_price_of_each_token_and_then_the_score():
    scored = scored_with(length_reward)
    rollout = scored.rollout
    reward_NU = state_rewards(scored, 0.5)
    kl_NT = rollout.logp_NT - scored.ref_logp_NT
    assert reward_NU.shape == (4, kl_NT.shape[1] + 1)
    for row, length in enumerate(rollout.completion_mask_NT.sum(1).tolist()):
        torch.testing.assert_close(reward_NU[row, :length], -0.5 * kl_NT[row, :length])
        assert reward_NU[row, length] == scored.reward_N[row]
        assert not reward_NU[row, length + 1 :].any()
    torch.testing.assert_close(reward_NU.sum(1), scored.token_reward_NT.sum(1), atol=1e-5, rtol=0)


def test_the_token_of_a_truncation_is_found_by_its_text():
    # Whole words stand behind a space in the middle of a text.
    assert truncation_at(tokenizer(), "w7", 3, 23) == Truncation((7,), 3)
    with pytest.raises(
        ConfigError, match=r"truncate_token 'w7 w8' is not the text of one token .* as \[7, 8\]"
    ):
        truncation_at(tokenizer(), "w7 w8", 3, 23)
    with pytest.raises(ConfigError, match="truncate_token 'w7'"):
        truncation_at(tokenizer(), "w7", 3, 7)


def test_the_full_stop_and_the_line_break_of_gpt2(shared):
    """As Ziegler's tokens 13 and 198; ' .', '."' and two line breaks are other tokens."""
    words = load_tokenizer(str(shared / "models" / "gpt2-tokenizer"))
    assert truncation_at(words, ".", 16, 50257) == Truncation((13,), 16)
    assert truncation_at(words, "\n", 55, 50257) == Truncation((198,), 55)


def test_the_full_stop_of_a_sentencepiece_tokenizer(stories260K):
    words = load_tokenizer(str(stories260K))
    ids = truncation_at(words, ".", 0, 512).token_ids
    sentence = words("The cat sat. The dog", add_special_tokens=False)["input_ids"]
    (stop,) = [token for token in sentence if token in ids]
    text = words.decode(sentence[: sentence.index(stop) + 1])
    assert text == "The cat sat."


def test_stored_columns_by_hand():
    mask_NT = torch.tensor([[True, True, True], [True, False, False]])
    rollout = Rollout(
        [Prompt("a"), Prompt("b")], [[1, 2], [3]], [" x y", " z"],
        torch.tensor([[5, 6, 0], [7, 0, 0]]), mask_NT,
        torch.tensor([[-1.0, -2.0, -0.5], [-1.0, 0.0, 0.0]]), torch.tensor([True, False]),
    )  # fmt: skip
    scored = Scored(
        rollout, torch.tensor([4.0, 0.0]), torch.tensor([True, False]),
        {"one": [1.5, None], "two": [2.5, None]},
        torch.tensor([[-2.0, -2.5, -1.0], [-0.5, 0.0, 0.0]]), torch.zeros(2, 3),
    )  # fmt: skip
    advantage_NT = torch.tensor([[3.0, 3.0, 3.0], [-3.0, 9.0, 9.0]])
    assert sample_columns(
        scored, advantage_NT, lambda prompt, completion: [(0, len(prompt + completion))]
    ) == {
        "prompt": ["a", "b"],
        "completion": [" x y", " z"],
        "prompt_ids": [[1, 2], [3]],
        "completion_ids": [[5, 6, 0], [7]],
        "reward": [4.0, None],
        "kl": [2.0, -0.5],
        "logp": [-3.5, -1.0],
        "ref_logp": [-5.5, -0.5],
        "advantage": [3.0, -3.0],
        "ended": [True, False],
        "spans": [[[0, 5]], [[0, 3]]],
        "reward/one": [1.5, None],
        "reward/two": [2.5, None],
    }
