"""The chunked vocabulary head against log-softmax of the whole logits and its automatic gradient."""

import pytest
import torch

from talltree.maths import head
from talltree.maths.head import head_logprobs, head_loss
from talltree.maths.logprobs import entropy, token_logprobs
from talltree.maths.losses import clipped

M, H, V = 70, 5, 11


@pytest.fixture(params=[1, 33, M, 512])
def chunk(request, monkeypatch):
    """Rows held at a time, 33 being no divisor of 70; passes go over three of them."""
    monkeypatch.setattr(head, "CHUNK_ROWS", request.param)
    monkeypatch.setattr(head, "CHUNK_NUMBERS", 1)
    monkeypatch.setattr(head, "BLOCK_NUMBERS", 3 * V)


def inputs(dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()

    tokens_M = torch.randint(V, (M,), generator=generator)
    return normal(M, H), normal(V, H), normal(V) if bias else None, tokens_M


def draws(seed, dtype=torch.float64):
    return torch.randn(M, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def summed(logp, part):
    return logp


def whole(hidden_MH, weight_VH, bias_V, tokens_M, temperature):
    logits_MV = torch.nn.functional.linear(hidden_MH, weight_VH, bias_V)
    return token_logprobs(logits_MV, tokens_M, temperature), entropy(logits_MV, temperature)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_loss_and_gradients_equal_plain_autograd(chunk, bias, temperature, dtype, close):
    hidden_MH, weight_VH, bias_V, tokens_M = inputs(dtype, bias)
    leaves = [leaf for leaf in (hidden_MH, weight_VH, bias_V) if leaf is not None]
    expected_logp_M, expected_entropy_M = whole(hidden_MH, weight_VH, bias_V, tokens_M, temperature)
    # A clipped surrogate off-policy: some tokens are silenced, the slope depends on the log-prob.
    advantage_M, weights_M = draws(1, dtype), draws(2, dtype).abs() / M
    old_M = expected_logp_M.detach() + 0.3 * draws(3, dtype)
    surrogate = clipped(0.2, 0.2)

    def token_loss(logp, part):
        return weights_M[part] * surrogate(logp, old_M[part], advantage_M[part])

    found = head_loss(hidden_MH, weight_VH, bias_V, tokens_M, temperature, token_loss)
    expected = (weights_M * surrogate(expected_logp_M, old_M, advantage_M)).sum()
    torch.testing.assert_close(found.loss, expected, atol=close, rtol=0)
    torch.testing.assert_close(found.logp_M, expected_logp_M, atol=close, rtol=0)
    torch.testing.assert_close(found.entropy_M, expected_entropy_M, atol=close, rtol=0)
    assert not found.logp_M.requires_grad and not found.entropy_M.requires_grad
    # The upstream factor is part of the gradient: 3 here.
    gradients = [torch.autograd.grad(3 * loss, leaves) for loss in (found.loss, expected)]
    for left, right in zip(*gradients, strict=True):
        assert right.abs().max() > 1e-3
        torch.testing.assert_close(left, right, atol=close, rtol=0)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_logprobs_without_gradient_equal_the_whole_softmax(chunk, bias, temperature):
    arguments = *inputs(bias=bias), temperature
    found_M = head_logprobs(*arguments)
    assert not found_M.requires_grad
    torch.testing.assert_close(found_M, whole(*arguments)[0].detach(), atol=1e-12, rtol=0)


def test_a_large_vocabulary_costs_no_precision():
    """One likely token among 50,257, worked in float64: neither log-probs nor entropy may drift."""
    hidden_MH = torch.eye(4) * 3
    weight_VH = torch.randn(50_257, 4, generator=torch.Generator().manual_seed(0))
    weight_VH[7] = 5.0  # a logit of 15
    tokens_M = torch.full((4,), 7)
    expected_M, expected_entropy_M = whole(hidden_MH.double(), weight_VH.double(), None, tokens_M, 1.0)
    _, logp_M, entropy_M = head_loss(hidden_MH, weight_VH, None, tokens_M, 1.0, summed)
    for found_M in (logp_M, head_logprobs(hidden_MH, weight_VH, None, tokens_M, 1.0)):
        torch.testing.assert_close(found_M.double(), expected_M, atol=3e-6, rtol=0)
    torch.testing.assert_close(entropy_M.double(), expected_entropy_M, atol=3e-5, rtol=0)


def test_a_frozen_head_passes_the_gradient_on(chunk):
    hidden_MH, weight_VH, _, tokens_M = inputs(bias=False)
    weight_VH = weight_VH.detach()
    expected_M, _ = whole(hidden_MH, weight_VH, None, tokens_M, 1.0)
    loss = head_loss(hidden_MH, weight_VH, None, tokens_M, 1.0, summed).loss
    found, expected = (torch.autograd.grad(each, hidden_MH)[0] for each in (loss, expected_M.sum()))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_frozen_hidden_states_leave_the_gradient_of_the_head(chunk):
    hidden_MH, weight_VH, bias_V, tokens_M = inputs()
    hidden_MH = hidden_MH.detach()
    expected_M, _ = whole(hidden_MH, weight_VH, bias_V, tokens_M, 1.0)
    loss = head_loss(hidden_MH, weight_VH, bias_V, tokens_M, 1.0, summed).loss
    gradients = [torch.autograd.grad(each, (weight_VH, bias_V)) for each in (loss, expected_M.sum())]
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, atol=1e-12, rtol=0)


def test_a_second_backward_is_refused():
    loss = head_loss(*inputs(), 1.0, summed).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_a_token_that_cannot_come_adds_nothing(chunk):
    hidden_MH, weight_VH, bias_V, _ = inputs()
    with torch.no_grad():
        bias_V[3] = -torch.inf
    tokens_M = torch.full((M,), 2)
    found = head_loss(hidden_MH, weight_VH, bias_V, tokens_M, 1.0, summed)
    expected_M, expected_entropy_M = whole(hidden_MH, weight_VH, bias_V, tokens_M, 1.0)
    torch.testing.assert_close(found.logp_M, expected_M, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.entropy_M, expected_entropy_M, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        head_logprobs(hidden_MH, weight_VH, bias_V, tokens_M, 1.0), expected_M, atol=1e-12, rtol=0
    )
    (gradient_VH,) = torch.autograd.grad(found.loss, weight_VH)
    assert gradient_VH.isfinite().all()
    assert (gradient_VH[3] == 0).all()


def test_half_precision_is_widened_before_the_softmax(chunk):
    arguments = *inputs(torch.bfloat16), 0.7
    _, logp_M, entropy_M = head_loss(*arguments, summed)
    expected_M, expected_entropy_M = whole(*arguments)
    for found_M in (logp_M, head_logprobs(*arguments)):
        assert found_M.dtype == torch.float32
        torch.testing.assert_close(found_M, expected_M, atol=1e-5, rtol=0)
    assert entropy_M.dtype == torch.float32
    torch.testing.assert_close(entropy_M, expected_entropy_M, atol=1e-5, rtol=0)


def test_gradients_in_half_precision_are_those_of_its_values(chunk):
    """Against autograd in float64 from the same rounded numbers, slopes of both signs among them."""
    leaves = inputs(torch.bfloat16)[:3]
    tokens_M, advantage_M = inputs()[3], draws(1)

    def token_loss(logp, part):
        return advantage_M[part].to(logp.dtype) * logp.exp()

    loss = head_loss(*leaves, tokens_M, 0.7, token_loss).loss
    found = torch.autograd.grad(loss, leaves)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    logp_M, _ = whole(*exact, tokens_M, 0.7)
    expected = torch.autograd.grad(token_loss(logp_M, slice(None)).sum(), exact)
    for left, right in zip(found, expected, strict=True):
        # bfloat16 keeps 8 bits: logits, softmax, scale and result are each rounded to 1 part in 256.
        assert (left.double() - right).norm() < 0.02 * right.norm()


def test_a_small_vocabulary_takes_more_tokens_at_a_time():
    assert head.chunk_rows(32_000) == 512
    assert head.chunk_rows(2_000) == 4_000


def test_autocast_leaves_the_sums_over_the_vocabulary_wide(chunk):
    arguments = *inputs(torch.bfloat16), 0.7
    expected = *head_loss(*arguments, summed), head_logprobs(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        found = *head_loss(*arguments, summed), head_logprobs(*arguments)
    for left, right in zip(found, expected, strict=True):
        assert left.dtype == torch.float32
        assert torch.equal(left, right)


def test_the_gradient_of_a_bfloat16_head_is_summed_over_chunks_in_float32(monkeypatch):
    hidden_MH, weight_VH, _, tokens_M = inputs(torch.bfloat16, bias=False)
    # 70 equal rows: each chunk adds the same matrix, which bfloat16 would round after every addition.
    hidden_MH, tokens_M = hidden_MH.detach()[:1].expand(M, H), tokens_M[:1].expand(M)
    gradients = []
    for rows in (1, M):
        monkeypatch.setattr(head, "CHUNK_ROWS", rows)
        monkeypatch.setattr(head, "CHUNK_NUMBERS", 1)
        loss = head_loss(hidden_MH, weight_VH, None, tokens_M, 1.0, summed).loss
        gradients.append(torch.autograd.grad(loss, weight_VH)[0].float())
    assert gradients[0].abs().max() > 1
    torch.testing.assert_close(*gradients, rtol=2**-7, atol=1e-4)
