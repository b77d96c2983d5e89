"""The chunked vocabulary head against log-softmax of the whole logits and its automatic gradient."""

import pytest
import torch

from talltree.maths import head
from talltree.maths.head import head_logprobs
from talltree.maths.logprobs import entropy, token_logprobs

M, H, V = 70, 5, 11


@pytest.fixture(params=[1, 16 * V, 33 * V, 4_000_000], ids=["16", "16_exactly", "33", "all"])
def chunk(request, monkeypatch):
    """Rows held at a time: 16 at least, and 70 is no multiple of 16 or 33."""
    monkeypatch.setattr(head, "CHUNK_NUMBERS", request.param)


def inputs(dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()

    tokens_M = torch.randint(V, (M,), generator=generator)
    return normal(M, H), normal(V, H), normal(V) if bias else None, tokens_M


def whole(hidden_MH, weight_VH, bias_V, tokens_M, temperature):
    logits_MV = torch.nn.functional.linear(hidden_MH, weight_VH, bias_V)
    return token_logprobs(logits_MV, tokens_M, temperature), entropy(logits_MV, temperature)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_equal_the_whole_softmax(chunk, bias, temperature):
    hidden_MH, weight_VH, bias_V, tokens_M = inputs(bias=bias)
    leaves = [leaf for leaf in (hidden_MH, weight_VH, bias_V) if leaf is not None]
    scale_M = torch.randn(M, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, found_entropy = head_logprobs(hidden_MH, weight_VH, bias_V, tokens_M, temperature)
    expected, expected_entropy = whole(hidden_MH, weight_VH, bias_V, tokens_M, temperature)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(found_entropy, expected_entropy, atol=1e-12, rtol=0)
    assert not found_entropy.requires_grad
    gradients = [torch.autograd.grad((scale_M * logp).sum(), leaves) for logp in (found, expected)]
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, atol=1e-12, rtol=0)
    with torch.no_grad():
        assert torch.equal(head_logprobs(hidden_MH, weight_VH, bias_V, tokens_M, temperature)[0], found)


def test_a_frozen_head_passes_the_gradient_on(chunk):
    hidden_MH, weight_VH, _, tokens_M = inputs(bias=False)
    weight_VH = weight_VH.detach()
    logp_M, _ = head_logprobs(hidden_MH, weight_VH, None, tokens_M, 1.0)
    expected_M, _ = whole(hidden_MH, weight_VH, None, tokens_M, 1.0)
    found, expected = (torch.autograd.grad(logp.sum(), hidden_MH)[0] for logp in (logp_M, expected_M))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_token_that_cannot_come_adds_nothing(chunk):
    hidden_MH, weight_VH, bias_V, _ = inputs()
    with torch.no_grad():
        bias_V[3] = -torch.inf
    tokens_M = torch.full((M,), 2)
    logp_M, entropy_M = head_logprobs(hidden_MH, weight_VH, bias_V, tokens_M, 1.0)
    expected_M, expected_entropy_M = whole(hidden_MH, weight_VH, bias_V, tokens_M, 1.0)
    torch.testing.assert_close(logp_M, expected_M, atol=1e-12, rtol=0)
    torch.testing.assert_close(entropy_M, expected_entropy_M, atol=1e-12, rtol=0)
    (gradient_VH,) = torch.autograd.grad(logp_M.sum(), weight_VH)
    assert gradient_VH.isfinite().all()
    assert (gradient_VH[3] == 0).all()


def test_half_precision_is_widened_before_the_softmax(chunk):
    hidden_MH, weight_VH, bias_V, tokens_M = inputs(torch.bfloat16)
    logp_M, entropy_M = head_logprobs(hidden_MH, weight_VH, bias_V, tokens_M, 0.7)
    expected_M, expected_entropy_M = whole(hidden_MH, weight_VH, bias_V, tokens_M, 0.7)
    assert logp_M.dtype == entropy_M.dtype == torch.float32
    torch.testing.assert_close(logp_M, expected_M, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy_M, expected_entropy_M, atol=1e-5, rtol=0)


def test_autocast_leaves_the_sums_over_the_vocabulary_wide(chunk):
    hidden_MH, weight_VH, bias_V, tokens_M = inputs(torch.bfloat16)
    expected = head_logprobs(hidden_MH, weight_VH, bias_V, tokens_M, 0.7)
    with torch.autocast("cpu", torch.bfloat16):
        found = head_logprobs(hidden_MH, weight_VH, bias_V, tokens_M, 0.7)
    for left, right in zip(found, expected, strict=True):
        assert left.dtype == torch.float32
        assert torch.equal(left, right)


def test_the_gradient_of_a_bfloat16_head_is_summed_over_chunks_in_float32(monkeypatch):
    hidden_MH, weight_VH, _, tokens_M = inputs(torch.bfloat16, bias=False)
    # 70 equal rows: each chunk adds the same matrix, which bfloat16 would round after every addition.
    hidden_MH, tokens_M = hidden_MH.detach()[:1].expand(M, H), tokens_M[:1].expand(M)
    gradients = []
    for numbers in (1, 4_000_000):
        monkeypatch.setattr(head, "CHUNK_NUMBERS", numbers)
        logp_M, _ = head_logprobs(hidden_MH, weight_VH, None, tokens_M, 1.0)
        gradients.append(torch.autograd.grad(logp_M.sum(), weight_VH)[0].float())
    assert gradients[0].abs().max() > 1
    torch.testing.assert_close(*gradients, rtol=2**-7, atol=1e-4)
