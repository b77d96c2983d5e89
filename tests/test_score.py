"""The trainer's log-probs: padding, gradients and temperature against single texts."""

import pytest
import torch

from talltree.models import score
from talltree.models.score import by_length, completion_loss, likelihood, likelihoods
from talltree.types import Prompt, Rollout

from .tiny import MODELS, STOP, gpt2, with_lora

PROMPTS = [[3, 7, 1, 9, 4, 2, 8], [5], [11, 2], [6, 6, 6]]
COMPLETIONS = [[4, 9, STOP], [12, 3, 3, 17, 22, 1, 2, 8, STOP], [STOP], [14, 15, 16, 17, 18]]
MASK_NT = torch.tensor([[t < len(ids) for t in range(9)] for ids in COMPLETIONS])
TOKENS_NT = torch.tensor([ids + [0] * (9 - len(ids)) for ids in COMPLETIONS])


def single(model, prompt, completion, temperature=1.0):
    """Log-softmax of one unpadded text, differentiable."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0] / temperature
    logp = logits.log_softmax(-1)
    return torch.stack([logp[len(prompt) - 1 + i, token] for i, token in enumerate(completion)])


def singles(model, temperature=1.0):
    rows = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        logp = single(model, prompt, completion, temperature)
        rows.append(torch.cat([logp, logp.new_zeros(9 - len(logp))]))
    return torch.stack(rows)


def batched(model, tokens_NT=TOKENS_NT, temperature=1.0):
    return likelihood(model, PROMPTS, tokens_NT, MASK_NT, temperature)


class Unknown(torch.nn.Module):
    """A model of a family without a known layout: only its forward pass can be used."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, input_ids, use_cache=False):
        return self.inner(input_ids=input_ids, use_cache=use_cache)


EVERY = MODELS | {"lora": lambda: with_lora(gpt2()), "unknown": lambda: Unknown(gpt2())}


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("name", EVERY)
def test_a_batch_equals_its_texts_one_by_one(name, temperature):
    model = EVERY[name]()
    found = batched(model, temperature=temperature)
    torch.testing.assert_close(found, singles(model, temperature), atol=1e-5, rtol=0)
    assert found.dtype == torch.float32
    assert (found[~MASK_NT] == 0).all()
    # The stop token has its log-prob, too.
    assert (found[MASK_NT] < 0).all()


def test_entropy_is_that_of_the_distribution_at_each_token():
    model = gpt2()
    with torch.no_grad():
        probabilities = (model(torch.tensor([PROMPTS[0] + COMPLETIONS[0]])).logits[0].double() / 0.7).softmax(
            -1
        )
        expected = torch.distributions.Categorical(probs=probabilities).entropy()[6:9]
    for fast in (True, False):
        entropy_NT = lossed(model, 0.7, fast=fast).entropy_NT
        torch.testing.assert_close(entropy_NT[0, :3].double(), expected, atol=1e-5, rtol=0)
        assert (entropy_NT[~MASK_NT] == 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_padding_and_neighbours_are_irrelevant(name):
    model = EVERY[name]()
    whole = batched(model)
    other = TOKENS_NT.masked_fill(~MASK_NT, 21)
    assert torch.equal(batched(model, other), whole)
    for row, ids in enumerate(COMPLETIONS):
        length = len(ids)
        some = (slice(row, row + 1), slice(length))
        alone = likelihood(model, [PROMPTS[row]], TOKENS_NT[some], MASK_NT[some], 1.0)
        torch.testing.assert_close(alone[0], whole[row, :length], atol=1e-5, rtol=0)


WEIGHTS_NT = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 20


def lossed(model, temperature, *, fast, dtype=torch.float32):
    """completion_loss with a weight of its own for every token."""
    weight_M = WEIGHTS_NT.to(dtype)[MASK_NT]
    return completion_loss(
        model, PROMPTS, TOKENS_NT, MASK_NT, temperature, lambda logp, part: weight_M[part] * logp, fast=fast
    )


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_losses_and_gradients_are_those_of_the_single_texts(name, dtype, tolerance, fast):
    model = EVERY[name]().to(dtype)
    if name == "gpt_neo":  # the library computes its attention in float32, whatever the weights are
        tolerance = 1e-5
    found, expected_NT = lossed(model, 0.8, fast=fast, dtype=dtype), singles(model, 0.8)
    assert found.logp_NT.dtype == dtype
    assert not found.logp_NT.requires_grad and not found.entropy_NT.requires_grad
    torch.testing.assert_close(found.logp_NT, expected_NT, atol=tolerance, rtol=0)
    torch.testing.assert_close(batched(model, temperature=0.8), expected_NT, atol=tolerance, rtol=0)
    expected_loss = (WEIGHTS_NT.to(dtype) * expected_NT).sum()
    torch.testing.assert_close(found.loss, expected_loss, atol=tolerance, rtol=0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(expected_loss, parameters)
    assert max(float(gradient.abs().max()) for gradient in expected) > 0.01
    for left, right in zip(torch.autograd.grad(found.loss, parameters), expected, strict=True):
        torch.testing.assert_close(left, right, atol=tolerance, rtol=0)


@pytest.mark.parametrize("fast", [True, False])
def test_many_rows_are_taken_some_at_a_time(fast):
    model = gpt2()
    rollout = Rollout(
        [Prompt("")] * 4,
        PROMPTS,
        [""] * 4,
        TOKENS_NT,
        MASK_NT,
        torch.zeros(4, 9),
        torch.ones(4, dtype=torch.bool),
    )
    whole = batched(model)
    for rows in (1, 3, 4, None):
        found = likelihoods(model, rollout, 1.0, rows=rows, fast=fast)
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)
        assert not found.requires_grad


def test_parts_hold_texts_of_similar_length(monkeypatch):
    # Prompt and completion together: 10, 10, 3 and 8 tokens.
    assert [part.tolist() for part in by_length(PROMPTS, MASK_NT, 3)] == [[2, 3, 0], [1]]
    for tokens, expected in (
        (1, [[2], [3], [0], [1]]),  # one text at least
        (16, [[2, 3], [0], [1]]),  # two texts of 8
        (23, [[2, 3], [0, 1]]),
        (40, [[2, 3, 0, 1]]),
    ):
        monkeypatch.setitem(score.TOKENS_AT_A_TIME, "cpu", tokens)
        assert [part.tolist() for part in by_length(PROMPTS, MASK_NT)] == expected


# Defects found elsewhere, planted: the comparison above must see each of them.


def left_padded(model):
    """Log-probs of prompts padded on the left with a mask, but with position ids from the first column."""
    longest = max(map(len, PROMPTS))
    rows = [
        [0] * (longest - len(prompt)) + prompt + ids
        for prompt, ids in zip(PROMPTS, TOKENS_NT.tolist(), strict=True)
    ]
    mask = [[0] * (longest - len(prompt)) + [1] * (len(prompt) + 9) for prompt in PROMPTS]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(rows), attention_mask=torch.tensor(mask)).logits
    logp = logits[:, longest - 1 : -1].log_softmax(-1).gather(-1, TOKENS_NT.unsqueeze(-1)).squeeze(-1)
    return logp * MASK_NT


def off_by(left_NT, right_NT):
    return float((left_NT - right_NT).detach().abs().max())


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo"])
def test_left_padding_without_position_ids_is_off(name):
    model = MODELS[name]()
    assert off_by(left_padded(model), singles(model)) > 0.01
    # The longest prompt has no padding: only the others are wrong.
    assert off_by(left_padded(model)[0], singles(model)[0]) < 1e-5


def test_rotary_positions_forgive_left_padding():
    model = MODELS["llama_tied"]()
    assert off_by(left_padded(model), singles(model)) < 1e-4


def test_a_mask_that_drops_the_stop_token_is_off():
    model = gpt2()
    without = likelihood(model, PROMPTS[:2], TOKENS_NT[:2], (MASK_NT & (TOKENS_NT != STOP))[:2], 1.0)
    assert off_by(without, singles(model)[:2]) > 0.01
    assert (without[0, 2], without[1, 8]) == (0, 0)


def test_a_missing_temperature_is_off():
    model = gpt2()
    assert off_by(batched(model, temperature=1.0), singles(model, 0.7)) > 0.01


def test_logits_shifted_by_one_are_off():
    """The logits at a position predict the next token, not the one that stands there."""
    model = gpt2()
    with torch.no_grad():
        logp = model(torch.tensor([PROMPTS[3] + COMPLETIONS[3]])).logits[0].log_softmax(-1)
    shifted = torch.stack([logp[3 + i, token] for i, token in enumerate(COMPLETIONS[3])])
    assert off_by(shifted, singles(model)[3, :5]) > 0.01


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", EVERY)
def test_bfloat16_passes_give_float32_near_those_of_float32_and_a_gradient(name, fast):
    model = EVERY[name]()
    expected = lossed(model, 1.0, fast=fast)
    with torch.autocast("cpu", torch.bfloat16):
        found = lossed(model, 1.0, fast=fast)
    for left, right in zip(found[:3], expected[:3], strict=True):
        assert left.dtype == torch.float32
        torch.testing.assert_close(left, right, atol=0.1, rtol=0)
    found.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
