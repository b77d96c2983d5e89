"""Advantages, whitening and GAE with every number worked by hand."""

import math

import pytest
import torch

from talltree.maths import advantages
from talltree.maths.advantages import MovingBaseline

from .enumeration import assert_equal

REWARDS_N = torch.tensor([1, 3, 8, 5, 5, 5], dtype=torch.float64)  # two groups of three
NAN = math.nan
SCORED_N = torch.tensor([True, False, True, False, True, False])
PARTIAL_N = torch.tensor([1, NAN, 8, NAN, 5, NAN], dtype=torch.float64)
GROUP_FUNCTIONS = (advantages.leave_one_out, advantages.group_centred, advantages.group_standardised)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_no_baseline_by_hand(no_baseline=advantages.no_baseline):
    assert_equal(no_baseline(REWARDS_N, 3), REWARDS_N)
    assert_equal(no_baseline(PARTIAL_N, 3, SCORED_N), numbers(1, 0, 8, 0, 5, 0))


def test_batch_baseline_by_hand(batch_baseline=advantages.batch_baseline):
    # Mean 27 / 6 = 4.5; of the scored three, 14 / 3.
    assert_equal(batch_baseline(REWARDS_N, 3), numbers(-3.5, -1.5, 3.5, 0.5, 0.5, 0.5))
    assert_equal(batch_baseline(PARTIAL_N, 3, SCORED_N), numbers(-11, 0, 10, 0, 1, 0) / 3)
    assert_equal(batch_baseline(numbers(4), 1), numbers(0))


def test_leave_one_out_by_hand(leave_one_out=advantages.leave_one_out):
    # The others' means are 5.5, 4.5 and 2.
    assert_equal(leave_one_out(REWARDS_N, 3), numbers(-4.5, -1.5, 6, 0, 0, 0))


def test_not_scored_enters_no_group_baseline(leave_one_out=advantages.leave_one_out):
    # Of the first group 1 and 8 are left; of the second a single one, which has nothing to compare with.
    assert_equal(leave_one_out(PARTIAL_N, 3, SCORED_N), numbers(-7, 0, 7, 0, 0, 0))
    assert_equal(advantages.group_centred(PARTIAL_N, 3, SCORED_N), numbers(-3.5, 0, 3.5, 0, 0, 0))
    # Centred -3.5 and 3.5 over a deviation of sqrt(2 * 3.5^2 / 1).
    root = 0.5**0.5
    standardised_N = advantages.group_standardised(PARTIAL_N, 3, SCORED_N, eps=0.1)
    shrunk = 3.5 / (3.5 / root + 0.1)
    assert_equal(standardised_N, numbers(-shrunk, 0, shrunk, 0, 0, 0))


def test_group_centred_by_hand(group_centred=advantages.group_centred):
    assert_equal(group_centred(REWARDS_N, 3), numbers(-3, -1, 4, 0, 0, 0))


def test_group_standardised_by_hand(group_standardised=advantages.group_standardised):
    # Squares 9 + 1 + 16 = 26 over two degrees of freedom: deviation sqrt(13).
    expected = numbers(-3, -1, 4, 0, 0, 0) / (13**0.5 + 0.5)
    assert_equal(group_standardised(REWARDS_N, 3, eps=0.5), expected)


@pytest.mark.parametrize("estimate", GROUP_FUNCTIONS)
def test_equal_rewards_give_exactly_nothing(estimate):
    # 0.1 * 3 / 3 is not 0.1 in floating point; divided by a tiny deviation that would be an advantage.
    rewards_N = torch.tensor([0.1, 0.1, 0.1, 1e6 + 0.1, 1e6 + 0.1, 1e6 + 0.1])
    assert torch.equal(estimate(rewards_N, 3), torch.zeros(6))


@pytest.mark.parametrize("estimate", GROUP_FUNCTIONS)
def test_an_unscored_group_gives_nothing(estimate):
    scored_N = torch.tensor([False, False, True, True])
    assert torch.equal(estimate(torch.tensor([NAN, NAN, 2.0, 2.0]), 2, scored_N), torch.zeros(4))


def test_a_group_of_one_is_refused(leave_one_out=advantages.leave_one_out):
    try:
        leave_one_out(REWARDS_N, 1)
    except ValueError as refusal:
        assert "group_size 1" in str(refusal) and "num_generations of 2 or more" in str(refusal)
    else:
        raise AssertionError("a group of one was accepted")


@pytest.mark.parametrize("estimate", GROUP_FUNCTIONS)
def test_group_sizes_are_refused(estimate):
    with pytest.raises(ValueError, match="group_size 1 leaves nothing to compare with"):
        estimate(REWARDS_N, 1)
    with pytest.raises(ValueError, match="6 rollouts are not divisible by group_size 4; try 4 or 8"):
        estimate(REWARDS_N, 4)
    with pytest.raises(ValueError, match="6 rollouts are not divisible by group_size 7; try 7"):
        estimate(REWARDS_N, 7)


def test_moving_average_by_hand(moving_average=advantages.moving_average):
    # First batch: the others' mean. Then decay 1/2 weighs the means 2, 5, 11 as 1/7, 2/7, 4/7.
    state = MovingBaseline(decay=0.5)
    advantage_N, state = moving_average(numbers(1, 3), state)
    assert_equal(advantage_N, numbers(-2, 2))
    assert state == (2.0, 0.5, 1)
    advantage_N, state = moving_average(numbers(4, 6), state)
    assert_equal(advantage_N, numbers(2, 4))
    assert state == (pytest.approx(4.0, abs=1e-12), 0.5, 2)
    advantage_N, state = moving_average(numbers(NAN, 11), state, torch.tensor([False, True]))
    assert_equal(advantage_N, numbers(0, 7))
    assert state == (pytest.approx((2 + 10 + 44) / 7, abs=1e-12), 0.5, 3)


def test_moving_average_degenerate_batches():
    unscored = torch.tensor([False, False])
    start = MovingBaseline(4.0, 0.9, 3)
    advantage_N, state = advantages.moving_average(numbers(NAN, NAN), start, unscored)
    assert_equal(advantage_N, numbers(0, 0))
    assert state == start
    advantage_N, state = advantages.moving_average(numbers(7), MovingBaseline())
    assert_equal(advantage_N, numbers(0))
    assert state == (pytest.approx(7.0), 0.9, 1)
    for refused in (1.0, -0.1, NAN):
        with pytest.raises(ValueError, match=f"baseline decay {refused}"):
            advantages.moving_average(numbers(7), MovingBaseline(decay=refused))


MASK_NT = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


def test_token_rewards_by_hand(token_rewards=advantages.token_rewards):
    # The score stands on the last real token; each real token pays a quarter of its KL.
    kl_NT = torch.tensor([[4.0, 8, -4], [8, NAN, 4], [4, 4, 4]], dtype=torch.float64)
    expected = torch.tensor([[-1.0, -2, 11], [18, 0, 0], [0, 0, 0]], dtype=torch.float64)
    reward_NT = token_rewards(numbers(10, 20, 30), MASK_NT, kl_NT, 0.25)
    assert_equal(reward_NT, expected)
    assert_equal(advantages.returns(reward_NT, MASK_NT), numbers(8, 18, 0))


def test_kl_in_the_reward_carries_no_gradient(token_rewards=advantages.token_rewards):
    kl_NT = torch.ones(3, 3, dtype=torch.float64, requires_grad=True)
    assert not token_rewards(numbers(1, 2, 3), MASK_NT, kl_NT, 0.25).requires_grad


# Of 2, 4, 6, 8: mean 5, population variance 5.
WHITEN = torch.tensor([[2.0, 4, 100], [6, 8, NAN]], dtype=torch.float64)
WHITEN_MASK = torch.tensor([[True, True, False], [True, True, False]])


def test_whiten_by_hand(whiten=advantages.whiten):
    root = 5**0.5
    expected = torch.tensor([[-3, -1, 0], [1, 3, 0]], dtype=torch.float64) / root
    assert_equal(whiten(WHITEN, WHITEN_MASK), expected, 1e-8)


def test_whiten_may_keep_the_mean(whiten=advantages.whiten):
    root = 5**0.5
    expected = torch.tensor([[5 - 3 / root, 5 - 1 / root, 0], [5 + 1 / root, 5 + 3 / root, 0]])
    assert_equal(whiten(WHITEN, WHITEN_MASK, shift_mean=False), expected, 1e-6)
    single = torch.tensor([True, False, False])
    assert_equal(whiten(numbers(7, 1, 2), single, shift_mean=False), numbers(7, 0, 0))
    assert_equal(whiten(numbers(7, 1, 2), single), numbers(0, 0, 0))


def test_gae_by_hand(gae=advantages.gae):
    # gamma 1/2, lam 1/2. Row 1: deltas 1 + 4/2 - 2 = 1, 0 + 8/2 - 4 = 0, 2 - 8 = -6;
    # advantages -6, 0 - 6/4 = -1.5, 1 - 1.5/4 = 0.625. Row 2 has one token: 3 - 1. Padding holds rubbish.
    reward_NT = torch.tensor([[1.0, 0, 2], [3, 50, NAN]], dtype=torch.float64)
    value_NT = torch.tensor([[2.0, 4, 8], [1, 70, NAN]], dtype=torch.float64)
    advantage_NT, return_NT = gae(reward_NT, value_NT, MASK_NT[:2], 0.5, 0.5)
    assert_equal(advantage_NT, torch.tensor([[0.625, -1.5, -6], [2, 0, 0]]).double())
    assert_equal(return_NT, torch.tensor([[2.625, 2.5, 2], [3, 0, 0]]).double())


def test_gae_without_discount_is_return_minus_value(gae=advantages.gae):
    generator = torch.Generator().manual_seed(0)
    length_N = torch.tensor([5, 1, 3, 0])
    mask_NT = torch.arange(5) < length_N.unsqueeze(1)
    reward_NT = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    value_NT = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    advantage_NT, return_NT = gae(reward_NT, value_NT, mask_NT, 1.0, 1.0)
    for n, length in enumerate(length_N.tolist()):
        for t in range(5):
            to_come = sum(reward_NT[n, t:length].tolist()) if t < length else 0.0
            assert return_NT[n, t].item() == pytest.approx(to_come, abs=1e-12)
            value = value_NT[n, t].item() if t < length else 0.0
            assert advantage_NT[n, t].item() == pytest.approx(to_come - value, abs=1e-12)


def test_gae_with_lam_zero_is_the_one_step_error():
    reward_NT, value_NT = numbers(1, 2).unsqueeze(0), numbers(3, 5).unsqueeze(0)
    advantage_NT, _ = advantages.gae(reward_NT, value_NT, MASK_NT[:1, :2], 0.5, 0.0)
    assert_equal(advantage_NT, numbers(1 + 2.5 - 3, 2 - 5).unsqueeze(0))


@pytest.mark.parametrize(("gamma", "lam"), [(1.1, 0.95), (-0.1, 0.95), (1.0, 2.0), (NAN, 1.0)])
def test_gae_refuses(gamma, lam):
    with pytest.raises(ValueError, match=f"gamma {gamma} and lam {lam}"):
        advantages.gae(numbers(1).unsqueeze(0), numbers(1).unsqueeze(0), MASK_NT[:1, :1], gamma, lam)
