"""Log-probs and entropy against hand-worked distributions."""

import math

import pytest
import torch

from talltree.maths import logprobs

from .enumeration import assert_equal

LOG = math.log
HAND = torch.tensor([[0.0, LOG(3)], [LOG(4), 0.0]], dtype=torch.float64)  # 1/4, 3/4 and 4/5, 1/5


def test_token_logprobs_by_hand(token_logprobs=logprobs.token_logprobs):
    tokens = torch.tensor([1, 1])
    assert_equal(token_logprobs(HAND, tokens), torch.tensor([LOG(3 / 4), LOG(1 / 5)], dtype=torch.float64))


@pytest.mark.parametrize("peak", [0.0, 8.0, 14.0])
@pytest.mark.parametrize("vocabulary", [512, 32_000, 50_257])
def test_a_large_vocabulary_costs_no_precision(vocabulary, peak):
    """Worked in float64. torch's log_softmax is off by more than 3e-5 where one token is likely."""
    logits = torch.randn(16, vocabulary, generator=torch.Generator().manual_seed(0)) * 2
    logits[:, 7] += peak
    wide = logits.double()
    expected = wide[:, 7] - wide.exp().sum(-1).log()
    found = logprobs.token_logprobs(logits, torch.full((16,), 7))
    assert_equal(found.double(), expected, 3e-6)


def test_temperature_divides_the_logits(token_logprobs=logprobs.token_logprobs):
    # Temperature 1/2 squares the odds: 1:9 and 16:1; temperature 2 takes their root.
    tokens = torch.tensor([1, 1])
    cold = torch.tensor([LOG(9 / 10), LOG(1 / 17)], dtype=torch.float64)
    assert_equal(token_logprobs(HAND, tokens, 0.5), cold)
    root = 3**0.5
    warm = torch.tensor([LOG(root / (1 + root)), LOG(1 / 3)], dtype=torch.float64)
    assert_equal(token_logprobs(HAND, tokens, 2.0), warm)


def test_entropy_by_hand(entropy=logprobs.entropy):
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, LOG(3), -torch.inf, -torch.inf]], dtype=torch.float64)
    quarter = LOG(4) - 0.75 * LOG(3)
    assert_equal(entropy(logits), torch.tensor([LOG(4), quarter], dtype=torch.float64))
    cold = -(0.1 * LOG(0.1) + 0.9 * LOG(0.9))
    assert_equal(entropy(logits, 0.5), torch.tensor([LOG(4), cold], dtype=torch.float64))


def test_entropy_gradient_is_finite_with_a_filtered_token():
    # d entropy / d logit_i = -p_i (log p_i + entropy), and 0 for the filtered token.
    logits = torch.tensor([0.0, LOG(3), -torch.inf], dtype=torch.float64, requires_grad=True)
    value = logprobs.entropy(logits)
    (gradient,) = torch.autograd.grad(value, logits)
    level = LOG(4) - 0.75 * LOG(3)
    expected = torch.tensor([-0.25 * (LOG(0.25) + level), -0.75 * (LOG(0.75) + level), 0.0])
    assert_equal(gradient, expected.double(), 1e-7)


def test_half_precision_is_computed_in_float32_and_float64_stays():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    tokens = torch.tensor([2])
    exact = -LOG(1 + math.exp(-1) + math.exp(-2))
    for half in (torch.bfloat16, torch.float16):
        narrow = logprobs.token_logprobs(logits.to(half), tokens)
        assert narrow.dtype == torch.float32
        assert_equal(narrow, torch.tensor([exact]), 1e-6)
    assert logprobs.token_logprobs(logits.double(), tokens).dtype == torch.float64


def test_large_logits_keep_their_precision():
    shifted = HAND.float() + 1024.0
    assert_equal(logprobs.token_logprobs(shifted, torch.tensor([1, 0])), [LOG(3 / 4), LOG(4 / 5)], 1e-4)


def test_any_leading_shape():
    logits = torch.zeros(2, 3, 5, 7)
    assert_equal(
        logprobs.token_logprobs(logits, torch.zeros(2, 3, 5, dtype=torch.long)),
        -LOG(7) + torch.zeros(2, 3, 5),
        1e-6,
    )
    assert logprobs.entropy(logits).shape == (2, 3, 5)


def test_fewer_tokens_than_logits_are_refused():
    with pytest.raises(ValueError, match=r"tokens \(2, 3\) and logits \(2, 4, 5\)"):
        logprobs.token_logprobs(torch.zeros(2, 4, 5), torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature {temperature}"):
        logprobs.logprobs(HAND, temperature)
