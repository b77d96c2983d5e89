"""Reward models: what they read, that the hub's library reads the same, saving, ensembles."""

import json
import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from talltree import checkpoint, rewards
from talltree.errors import RewardError, RunError
from talltree.models.reward_format import Reading, Scale, from_dict
from talltree.models.reward_model import (
    all_logits,
    combine,
    end_token,
    fitted_format,
    load_member,
    load_reward_model,
    logits,
    reading_tokenizer,
    rewards_of,
    score_texts,
    token_ids,
    with_pad,
)

from .tiny import MODELS, llama, save
from .tiny_reward import COMPLETIONS, CPU, PROMPTS, saved, trained


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return save(tmp_path_factory.mktemp("reward") / "model", llama())


# The head and where it reads


@pytest.mark.parametrize("name", MODELS)
def test_the_logit_is_the_head_at_the_last_real_token(name, tmp_path):
    member = load_member(str(save(tmp_path / "model", MODELS[name]())), 1, 0)
    rows = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11], [3, 2]]
    expected = [
        member.model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] @ member.head[0]
        for ids in rows
    ]
    found = logits(member, rows)
    # Padding and batching change the order of float32 sums, nothing else.
    torch.testing.assert_close(found[:, 0], torch.stack(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(member, rows, rows=1), found, rtol=1e-5, atol=1e-5)


def test_a_new_head_is_drawn_with_the_deviation_that_is_stated(tmp_path):
    folder = save(tmp_path / "model", llama())
    head = load_member(str(folder), 4000, 3).head
    assert head.shape == (4000, 16)
    # 64,000 draws: the deviation of their deviation is 1 / sqrt(2 * 64,000) = 0.3%, of the mean 0.4%.
    assert head.std().item() == pytest.approx(1 / math.sqrt(17), rel=0.015)
    assert abs(head.mean().item()) < 5 * (1 / math.sqrt(17)) / math.sqrt(64_000)
    assert torch.equal(head, load_member(str(folder), 4000, 3).head)
    assert not torch.equal(head, load_member(str(folder), 4000, 4).head)
    assert load_member(str(folder), 1, 3).model.score.bias is None


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "llama_tied"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("eos", ["none", "append"])
def test_the_hub_library_gives_the_same_logits_and_we_the_same_bits(name, lora, eos, tmp_path):
    model = trained(save(tmp_path / "model", MODELS[name]()), eos=eos, lora=lora)
    before = score_texts(model, PROMPTS[:4], COMPLETIONS[:4])[0]
    folder = saved(tmp_path / "reward", model)
    again = load_reward_model(folder, CPU)
    assert score_texts(again, PROMPTS[:4], COMPLETIONS[:4])[0] == (
        before if not lora else pytest.approx(before, abs=1e-4)  # adapters beside the weights, then in them
    )
    assert score_texts(load_reward_model(folder, CPU), PROMPTS, COMPLETIONS) == score_texts(
        again, PROMPTS, COMPLETIONS
    )
    ids, _ = token_ids(again.tokenizer, again.format.reading, PROMPTS, COMPLETIONS)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert theirs.config.num_labels == 1
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    with torch.no_grad():
        found = theirs(**batch).logits
    torch.testing.assert_close(found.double(), all_logits(again.members, ids), rtol=1e-4, atol=1e-5)
    if eos == "append":
        assert {each[-1] for each in ids} == {0} and tokenizer.pad_token_id != 0


def test_training_and_scoring_read_the_same_tokens_with_the_end_token_and_without(body, tmp_path):
    """Trained with an end token and scored without one, the same text had 1.61 against 0.98 elsewhere."""
    with_end, without = (trained(body, eos=eos) for eos in ("append", "none"))
    for model, last in ((with_end, [9, 0]), (without, [8, 9])):
        folder = saved(tmp_path / str(last[-1]), model)
        assert json.loads((folder / "config.json").read_text())["talltree_reward"]["end_token"] == (
            0 if last[-1] == 0 else None
        )
        again = load_reward_model(folder, CPU)
        ids = [
            token_ids(m.tokenizer, m.format.reading, PROMPTS[:1], COMPLETIONS[:1])[0][0]
            for m in (model, again)
        ]
        assert ids[0] == ids[1] and ids[0][-2:] == last
        scored = rewards.load(str(folder))(PROMPTS[:1], COMPLETIONS[:1])
        assert scored == score_texts(model, PROMPTS[:1], COMPLETIONS[:1])[0]
    # A text that brings its end token along is not given two.
    reading = with_end.format.reading
    assert token_ids(with_end.tokenizer, reading, ["w1"], [" w2<end>"])[0] == [[1, 2, 0]]
    assert score_texts(with_end, PROMPTS[:1], COMPLETIONS[:1]) != score_texts(
        without, PROMPTS[:1], COMPLETIONS[:1]
    )


def test_the_end_token_is_never_pad_where_another_is_known(stories260K):
    # Its EOS </s> is its PAD, and its stories end with <s>, which generation_config.json names.
    member, tokenizer = load_member(str(stories260K), 1, 0), reading_tokenizer(str(stories260K))
    end = end_token(str(stories260K), member.model, tokenizer)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, end) == (2, 2, 1)
    with_pad(member.model, tokenizer, end)
    assert (tokenizer.pad_token_id, member.model.config.vocab_size) == (2, 512)


def test_a_tokenizer_without_pad_gets_one_that_no_text_reads(body):
    member, tokenizer = load_member(str(body), 1, 0), reading_tokenizer(str(body))
    before = logits(member, [[1, 2, 3]])
    with_pad(member.model, tokenizer, 0)
    assert (tokenizer.pad_token_id, member.model.config.pad_token_id) == (23, 23)
    assert member.model.get_input_embeddings().weight[23].abs().sum() == 0
    assert torch.equal(logits(member, [[1, 2, 3]]), before)


def test_a_reward_does_not_depend_on_the_batch(body):
    model = trained(body)
    together = score_texts(model, PROMPTS, COMPLETIONS)[0]
    for prompt, completion, expected in zip(PROMPTS, COMPLETIONS, together, strict=True):
        if prompt or completion:
            # Other widths of a batch sum in another order: float32's rounding, no more.
            assert score_texts(model, [prompt], [completion])[0][0] == pytest.approx(expected, abs=1e-5)
    twice = score_texts(model, PROMPTS * 40, COMPLETIONS * 40)[0]
    assert twice == pytest.approx(together * 40, abs=1e-5)


# Gain, bias and ensembles


def test_reference_samples_have_mean_0_and_deviation_1(body):
    for how in ("mean", "worst", "mean_minus_variance"):
        model = trained(body, member_count=2, how=how)
        found = torch.tensor(score_texts(model, PROMPTS, COMPLETIONS)[0], dtype=torch.float64)
        assert found.mean().item() == pytest.approx(0, abs=1e-9)
        assert found.std(correction=0).item() == pytest.approx(1, abs=1e-9)


def test_combinations_by_hand():
    reward_NH = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    assert combine(reward_NH, "mean", 1.0).tolist() == [2.0, 2.0]
    assert combine(reward_NH, "worst", 1.0).tolist() == [1.0, 2.0]
    assert combine(reward_NH, "mean_minus_variance", 0.5).tolist() == [1.5, 2.0]


def test_scales_by_hand():
    # Head 0 has mean 2 and deviation 1 on the samples, head 1 mean 0 and deviation 2.
    logit_NH = torch.tensor([[1.0, -2.0], [3.0, 2.0]]).double()
    reading = Reading(None, 8, "refuse")
    format = fitted_format(logit_NH, reading, 1, "mean", 1.0, [Scale(3.0, 9.0), Scale(3.0, 9.0)])
    assert format.scales == (Scale(1.0, -2.0), Scale(0.5, 0.0))
    assert rewards_of(logit_NH, format).tolist() == [-1.0, 1.0]
    # Both heads agree, so the mean has deviation 1 already; under the loss's scales it is 3 * mean(1, 2).
    assert format.combined["mean"] == Scale(1.0, 0.0)
    assert format.log_odds == pytest.approx(4.5)
    assert fitted_format(torch.ones(3, 1).double(), reading, 1, "mean", 1.0) is None
    assert from_dict(json.loads(json.dumps(format.to_dict()))) == format


@pytest.mark.parametrize(("how", "expected"), [("mean", 2.5), ("worst", 3.0), ("mean_minus_variance", 3.5)])
def test_log_odds_are_those_of_the_combination_that_scores(how, expected):
    # Under the loss's scales the heads give 3 and 8 to one text, 9 and 12 to the other. Means 5.5 and 10.5;
    # worst 3 and 9; variances 6.25 and 2.25, half of which leaves 2.375 and 9.375. The deviation of two
    # numbers is half their difference.
    logit_NH = torch.tensor([[1.0, -2.0], [3.0, 2.0]]).double()
    found = fitted_format(
        logit_NH, Reading(None, 8, "refuse"), 1, how, 0.5, [Scale(3.0, 0.0), Scale(1.0, 10.0)]
    )
    assert found is not None and found.log_odds == pytest.approx(expected)


@pytest.mark.parametrize(("members", "heads"), [(3, 1), (1, 3)], ids=["own bodies", "one body"])
def test_an_ensemble_is_saved_whole_and_combined_as_asked(body, tmp_path, members, heads):
    model = trained(body, member_count=members, heads=heads, how="worst")
    expected = {
        how: score_texts(model, PROMPTS, COMPLETIONS, how)[0]
        for how in ("mean", "worst", "mean_minus_variance")
    }
    folder = saved(tmp_path / "reward", model)
    assert score_texts(load_reward_model(folder, CPU), PROMPTS, COMPLETIONS)[0] == expected["worst"]
    assert len({str(values) for values in expected.values()}) == 3
    for how, values in expected.items():
        assert (
            rewards.load(f"reward_model(path={str(folder)!r}, combine={how!r})")(PROMPTS, COMPLETIONS)
            == values
        )
    assert rewards.load(str(folder))(PROMPTS, COMPLETIONS) == expected["worst"]
    ids, _ = token_ids(model.tokenizer, model.format.reading, PROMPTS, COMPLETIONS)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder).pad({"input_ids": ids}, return_tensors="pt")
    with torch.no_grad():
        found = theirs(**batch).logits[:, 0].double()
    torch.testing.assert_close(found, all_logits(model.members, ids)[:, 0], rtol=1e-4, atol=1e-5)
    missing = folder / ("member-2/model.safetensors" if members == 3 else "reward_heads.safetensors")
    missing.unlink()
    with pytest.raises(RunError, match=f"{missing.name} is missing"):
        rewards.load(str(folder))
    (folder / checkpoint.MANIFEST).unlink()
    with pytest.raises(RewardError, match="no reward head|no reward_heads.safetensors"):
        rewards.load(str(folder))
