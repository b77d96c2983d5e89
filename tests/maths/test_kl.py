"""KL: signs and values by hand, expectations and gradients by enumeration."""

import math

import pytest
import torch

from talltree.algorithms import algorithm
from talltree.maths import kl

from .enumeration import (
    assert_equal,
    expected_gradient,
    sequence_logp,
    space,
    token_logps,
    true_kl,
)

LOG = math.log
WORLD = space(vocabulary=3, length=3, seed=1)
SMALL = space(vocabulary=3, length=2, seed=1)
REINFORCE = algorithm("reinforce")


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_k1_by_hand(k1=kl.k1):
    # The policy gives 1/2 where the reference gives 1/8, then the other way round.
    assert_equal(
        k1(numbers(LOG(1 / 2), LOG(1 / 8)), numbers(LOG(1 / 8), LOG(1 / 2))), numbers(LOG(4), -LOG(4))
    )


def test_k2_by_hand(k2=kl.k2):
    assert_equal(
        k2(numbers(LOG(1 / 2), LOG(1 / 8)), numbers(LOG(1 / 8), LOG(1 / 2))), numbers(1, 1) * LOG(4) ** 2 / 2
    )


def test_k3_by_hand(k3=kl.k3):
    # exp(d) - d - 1 with d = -log 4, then log 4.
    expected = numbers(1 / 4 + LOG(4) - 1, 4 - LOG(4) - 1)
    assert_equal(k3(numbers(LOG(1 / 2), LOG(1 / 8)), numbers(LOG(1 / 8), LOG(1 / 2))), expected)


def test_k3_is_positive_and_zero_without_drift(k3=kl.k3):
    ratio = torch.linspace(-5, 5, 101, dtype=torch.float64)
    value = k3(ratio, torch.zeros_like(ratio))
    assert (value[ratio != 0] > 0).all()
    assert_equal(k3(ratio, ratio), torch.zeros_like(ratio))
    tiny = torch.tensor(
        [1e-4], dtype=torch.float32
    )  # exp(d) - d - 1 loses all digits here, expm1(d) - d does not
    assert_equal(k3(-tiny, torch.zeros(1)), torch.tensor([5e-9]), 1e-9)


def test_exact_kl_by_hand(exact_kl=kl.exact_kl):
    # KL((1/4, 3/4) || (1/2, 1/2)); at temperature 1/2 the odds are squared: KL((1/10, 9/10) || (1/2, 1/2)).
    logits, ref_logits = numbers(0, LOG(3)), numbers(7, 7)
    assert_equal(exact_kl(logits, ref_logits), numbers(0.25 * LOG(0.5) + 0.75 * LOG(1.5)).squeeze())
    assert_equal(exact_kl(logits, ref_logits, 0.5), numbers(0.1 * LOG(0.2) + 0.9 * LOG(1.8)).squeeze())


def test_exact_kl_with_filtered_tokens():
    policy, reference = numbers(0, 0, -torch.inf), numbers(0, 0, 0)
    assert_equal(kl.exact_kl(policy, reference), numbers(LOG(1.5)).squeeze())
    assert kl.exact_kl(reference, policy) == torch.inf
    assert_equal(kl.exact_kl(policy, policy), numbers(0).squeeze())


def test_k1_expects_the_exact_kl(k1=kl.k1):
    check_expectation(k1)


def test_k3_expects_the_exact_kl(k3=kl.k3):
    check_expectation(k3)


def check_expectation(estimator):
    """E[sum over the sequence] = KL of the sequences = exact KL of the visited states."""
    logp_NT, ref_logp_NT = token_logps(WORLD, WORLD.theta), token_logps(WORLD, WORLD.ref_theta)
    probability_N = sequence_logp(WORLD, WORLD.theta).exp()
    expected = true_kl(WORLD, WORLD.theta, WORLD.ref_theta)
    assert expected > 0.1
    sampled_N = kl.sequence_kl(estimator(logp_NT, ref_logp_NT), WORLD.mask_NT)
    assert_equal((probability_N * sampled_N).sum(), expected)
    exact_NT = kl.exact_kl(WORLD.theta[WORLD.state_NT], WORLD.ref_theta[WORLD.state_NT])
    assert_equal((probability_N * kl.sequence_kl(exact_NT, WORLD.mask_NT)).sum(), expected)


K_NT = torch.tensor([[1.0, 2.0, 4.0], [8.0, 1.0, math.nan], [9.0, 9.0, 9.0]], dtype=torch.float64)
MASK_NT = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


def test_sequence_kl_by_hand(sequence_kl=kl.sequence_kl):
    assert_equal(sequence_kl(K_NT, MASK_NT), numbers(7, 8, 0))


def test_token_kl_by_hand(token_kl=kl.token_kl):
    assert_equal(token_kl(K_NT, MASK_NT), numbers(15 / 4).squeeze())
    assert_equal(token_kl(K_NT, torch.zeros_like(MASK_NT)), numbers(0).squeeze())


def test_k1_in_the_reward_has_the_gradient_of_kl(k1=kl.k1):
    world = SMALL._replace(reward_N=torch.zeros_like(SMALL.reward_N))
    gradient = expected_gradient(world, REINFORCE, batch=1, coef=1.0, k1=k1)
    assert_equal(gradient, gradient_of(true_kl(world, world.theta, world.ref_theta)))


def test_k2_as_loss_has_the_gradient_of_kl(k2=kl.k2):
    # On whole sequences, the gradient of the sequences' KL.
    logp_N, ref_logp_N = sequence_logp(WORLD, WORLD.theta), sequence_logp(WORLD, WORLD.ref_theta)
    loss = (logp_N.exp().detach() * k2(logp_N, ref_logp_N)).sum()
    assert_equal(gradient_of(loss), gradient_of(true_kl(WORLD, WORLD.theta, WORLD.ref_theta)))
    # On tokens, that of each state's KL, with the visits to the state held fixed.
    exact_NT = kl.exact_kl(WORLD.theta[WORLD.state_NT], WORLD.ref_theta[WORLD.state_NT])
    assert_equal(token_gradient(k2), gradient_of(visited(exact_NT)))


def test_k3_as_loss_has_the_gradient_of_the_reverse_kl(k3=kl.k3):
    reverse_NT = kl.exact_kl(WORLD.ref_theta[WORLD.state_NT], WORLD.theta[WORLD.state_NT])
    assert_equal(token_gradient(k3), gradient_of(visited(reverse_NT)))


def test_k1_as_loss_has_no_gradient():
    assert_equal(token_gradient(kl.k1), torch.zeros_like(WORLD.theta))


def token_gradient(estimator):
    logp_NT, ref_logp_NT = token_logps(WORLD, WORLD.theta), token_logps(WORLD, WORLD.ref_theta)
    return gradient_of(visited(estimator(logp_NT, ref_logp_NT)))


def visited(value_NT):
    """Expected sum over a sequence's tokens, where the sampling itself carries no gradient."""
    probability_N = sequence_logp(WORLD, WORLD.theta).exp().detach()
    return (probability_N * torch.where(WORLD.mask_NT, value_NT, 0.0).sum(1)).sum()


def gradient_of(value):
    for world in (WORLD, SMALL):
        (gradient,) = torch.autograd.grad(value, world.theta, allow_unused=True, retain_graph=True)
        if gradient is not None:
            return gradient
    raise AssertionError("no gradient reaches a policy")


def test_kl_loss_refuses_k1(kl_loss=kl.kl_loss):
    assert kl_loss("k2") is kl.k2
    assert kl_loss("k3") is kl.k3
    try:
        kl_loss("k1")
    except ValueError as refusal:
        assert "zero expected gradient" in str(refusal) and "'k3'" in str(refusal)
    else:
        raise AssertionError("k1 was accepted as a loss")
    with pytest.raises(ValueError, match="'k4' is unknown; use one of k2, k3"):
        kl_loss("k4")


def test_blog_units(coef_from_blog_beta=kl.coef_from_blog_beta):
    assert [round(coef_from_blog_beta(beta), 2) for beta in (0, 10, 40, 100)] == [0.0, 0.10, 0.40, 1.01]
    assert coef_from_blog_beta(99) == 1.0
    assert kl.blog_beta_from_coef(1.0) == 99.0
    assert kl.blog_beta_from_coef(coef_from_blog_beta(40, 15), 15) == pytest.approx(40, abs=1e-12)
    for refused in (-1.0, math.nan):
        with pytest.raises(ValueError, match=f"beta {refused}"):
            coef_from_blog_beta(refused)
        with pytest.raises(ValueError, match=f"coef {refused}"):
            kl.blog_beta_from_coef(refused)
    with pytest.raises(ValueError, match="positions 0"):
        coef_from_blog_beta(1.0, 0)
