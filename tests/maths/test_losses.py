"""Surrogates: values, gradients and bounds by hand."""

import math

import pytest
import torch

from talltree.maths import losses

from .enumeration import assert_equal

RATIOS = (0.5, 0.9, 1.0, 1.1, 1.5)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def value_and_gradient(surrogate, ratios, advantage):
    old_logp = torch.full((len(ratios),), math.log(0.3), dtype=torch.float64)
    logp = (old_logp + numbers(*ratios).log()).requires_grad_()
    loss = surrogate(logp, old_logp, torch.full_like(old_logp, advantage))
    return loss.detach(), torch.autograd.grad(loss.sum(), logp)[0]


def test_policy_gradient_by_hand(policy_gradient=losses.policy_gradient):
    logp = numbers(-1, -2).requires_grad_()
    loss = policy_gradient(logp, numbers(-9, -9), numbers(3, -5))
    assert_equal(loss.detach(), numbers(3, -10))
    assert_equal(torch.autograd.grad(loss.sum(), logp)[0], numbers(-3, 5))


def test_clipped_by_hand(clipped=losses.clipped):
    # For A = 2 the gain stops growing at ratio 1.2; for A = -2 it stops growing at ratio 0.8.
    value, gradient = value_and_gradient(clipped(0.2, 0.2), RATIOS, 2.0)
    assert_equal(value, -2 * numbers(0.5, 0.9, 1.0, 1.1, 1.2))
    assert_equal(gradient, -2 * numbers(0.5, 0.9, 1.0, 1.1, 0.0))
    value, gradient = value_and_gradient(clipped(0.2, 0.2), RATIOS, -2.0)
    assert_equal(value, 2 * numbers(0.8, 0.9, 1.0, 1.1, 1.5))
    assert_equal(gradient, 2 * numbers(0.0, 0.9, 1.0, 1.1, 1.5))


def test_clip_bounds_are_separate(clipped=losses.clipped):
    surrogate = clipped(low=0.4, high=0.05)
    assert_equal(value_and_gradient(surrogate, RATIOS, 1.0)[0], -numbers(0.5, 0.9, 1.0, 1.05, 1.05))
    assert_equal(value_and_gradient(surrogate, RATIOS, -1.0)[0], numbers(0.6, 0.9, 1.0, 1.1, 1.5))


def test_clip_share_by_hand(clip_share=losses.clip_share):
    # Ratios .5 and 1.5 under either sign; silenced are (1.5, +) and (.5, -); the last column is padding.
    logp = numbers([0.5, 1.5, 1.5], [0.5, 1.5, 0.5], [1.0, 1.1, 1.0]).log()
    advantage = numbers([1, 1, 1], [-1, -1, -1], [1, -1, 1])
    mask = torch.tensor([[True, True, False]] * 3)
    assert_equal(clip_share(logp, torch.zeros_like(logp), advantage, mask), 2 / 6, 1e-7)
    assert_equal(clip_share(logp, logp, advantage, mask), 0.0)
    # With high at .6, 1.5 is inside; with low at .6, .5 is.
    assert_equal(clip_share(logp, torch.zeros_like(logp), advantage, mask, high=0.6), 1 / 6, 1e-7)
    assert_equal(clip_share(logp, torch.zeros_like(logp), advantage, mask, low=0.6, high=0.6), 0.0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.2), (-0.2, 0.2), (1.1, 0.2), (0.2, 0.0), (math.nan, 0.2)])
def test_bounds_are_refused(low, high):
    with pytest.raises(ValueError, match=f"low {low}, high {high}"):
        losses.clipped(low, high)
    with pytest.raises(ValueError, match=f"low {low}, high {high}"):
        losses.clip_share(numbers(0), numbers(0), numbers(0), torch.tensor([True]), low, high)
