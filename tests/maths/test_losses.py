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


# Values 1, 2, 4, -2, 0.6 from old values of 1, returns of 3, 1, 2, 1, 0: held within 1 of the old value they
# are 1, 2, 2, 0, 0.6.
VALUE = torch.tensor([1.0, 2.0, 4.0, -2.0, 0.6], dtype=torch.float64)
OLD_VALUE = torch.ones(5, dtype=torch.float64)
RETURN = torch.tensor([3.0, 1.0, 2.0, 1.0, 0.0], dtype=torch.float64)


def test_clipped_value_by_hand(clipped_value=losses.clipped_value):
    # The larger of (V - R)^2 and (V' - R)^2: 4 and 4, 1 and 1, 4 and 0, 9 and 1, 0.36 and 0.36; halved.
    expected = torch.tensor([2.0, 0.5, 2.0, 4.5, 0.18], dtype=torch.float64)
    assert_equal(clipped_value(VALUE, OLD_VALUE, RETURN, 1.0), expected)
    # A value beyond the clip on the way to its return: (3 - 4)^2 = 1 against (2 - 4)^2 = 4.
    assert_equal(clipped_value(VALUE[2:3] - 1, OLD_VALUE[:1], RETURN[:1] + 1, 1.0), torch.tensor([2.0]))
    assert_equal(clipped_value(VALUE, OLD_VALUE, RETURN, None), 0.5 * (VALUE - RETURN) ** 2)


def test_a_value_beyond_the_clip_has_no_gradient_towards_its_return(clipped_value=losses.clipped_value):
    """On its way beyond the clip it stops; away from its return it is always called back."""
    value = torch.tensor([3.0, 3.0, 1.5, -3.0], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([4.0, 0.0, 4.0, -4.0], dtype=torch.float64)
    clipped_value(value, torch.ones(4, dtype=torch.float64), target, 1.0).sum().backward()
    assert value.grad is not None
    assert_equal(value.grad, torch.tensor([0.0, 3.0, -2.5, 0.0]))


def test_value_clip_share_by_hand(value_clip_share=losses.value_clip_share):
    value = torch.tensor([[3.0, 3.0, 1.5], [-3.0, 9.0, 9.0]])
    target = torch.tensor([[4.0, 0.0, 4.0], [-4.0, 20.0, 20.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert_equal(value_clip_share(value, torch.ones(2, 3), target, mask, 1.0), 0.5)
    assert_equal(value_clip_share(value, torch.ones(2, 3), target, mask, None), 0.0)
    assert_equal(value_clip_share(value, torch.ones(2, 3), target, torch.zeros_like(mask), 1.0), 0.0)


def test_values_inside_the_clip_do_not_count_by_their_rounding():
    """The sum old + (V - old) is V but for its last bit, which must not make a loss the clipped one."""
    # Between -0.1 and 0.1, so that none moves by 0.2.
    old, value = 0.2 * torch.rand(2, 1000, generator=torch.Generator().manual_seed(0)) - 0.1
    target = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert (old + (value - old) != value).any()
    share = losses.value_clip_share(value, old, target, torch.ones(1000, dtype=torch.bool), 0.2)
    assert_equal(share, 0.0)
    assert torch.equal(losses.clipped_value(value, old, target, 0.2), 0.5 * (value - target).square())


def test_a_value_clip_of_nothing_is_refused():
    with pytest.raises(ValueError, match="value clip 0 must be above 0"):
        losses.clipped_value(VALUE, OLD_VALUE, RETURN, 0)
