"""PPO's mathematics: states, targets by hand, and its first gradient against the enumerated true one."""

import itertools
import math

import pytest
import torch

from talltree.algorithms import GAE, algorithm
from talltree.maths import advantages, losses

from .enumeration import (
    assert_equal,
    sequence_logp,
    space,
    token_logps,
    true_gradient,
)

WORLD = space()
PLAIN = algorithm("ppo", lam=1.0, whiten_rewards=False, whiten_advantages=False)
MASK_NT = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
STATES_NU = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_states_by_hand(state_mask=advantages.state_mask):
    """Before each token and, one position past the last, the finished text."""
    assert torch.equal(state_mask(MASK_NT), STATES_NU)


REWARD_NU = numbers([1.0, 0, 0, 4], [0, 6, 50, 50], [50, 50, 50, 50])
VALUE_NU = numbers([2.0, 4, 8, 16], [3, 5, 70, math.nan], [70, 70, 70, math.nan])
# gamma 1/2, lam 1/2. Row 1: deltas 1 + 2 - 2, 0 + 4 - 4, 0 + 8 - 8, 4 - 16 = 1, 0, 0, -12; each advantage
# adds a quarter of the next: 1 - 12 / 64, -12 / 16, -12 / 4, -12. Row 2: deltas 0 + 2.5 - 3, 6 - 5.
RAW_NT = numbers([0.8125, -0.75, -3], [-0.25, 0, 0], [0, 0, 0])
RETURN_NU = numbers([2.8125, 3.25, 5, 4], [2.75, 6, 0, 0], [0, 0, 0, 0])


def test_targets_by_hand(critic_targets=advantages.critic_targets):
    options = {"gamma": 0.5, "lam": 0.5, "whiten_rewards": False}
    targets = critic_targets(REWARD_NU, VALUE_NU, STATES_NU, MASK_NT, **options, whiten_advantages=False)
    assert_equal(targets.advantage_NT, RAW_NT)
    assert_equal(targets.return_NU, RETURN_NU)
    assert_equal(targets.reward_scale, 1.0)
    # Over the four tokens: mean -0.796875; the variance is the mean square less the squared mean.
    variance = (0.8125**2 + 0.75**2 + 9 + 0.0625) / 4 - 0.796875**2
    whitened = critic_targets(REWARD_NU, VALUE_NU, STATES_NU, MASK_NT, **options)
    expected = torch.where(MASK_NT, (RAW_NT + 0.796875) / variance**0.5, 0.0)
    assert_equal(whitened.advantage_NT, expected, 1e-7)
    assert_equal(whitened.raw_advantage_NT, RAW_NT)
    assert_equal(whitened.return_NU, RETURN_NU)


def test_rewards_are_whitened_over_the_states_and_keep_their_mean(critic_targets=advantages.critic_targets):
    # Six rewards, 1, 0, 0, 4, 0, 6: mean 11/6, mean square 53/6.
    deviation = (53 / 6 - (11 / 6) ** 2) ** 0.5
    reward_NU = torch.where(STATES_NU, 11 / 6 + (REWARD_NU - 11 / 6) / deviation, 0.0)
    options = {"gamma": 1.0, "lam": 1.0, "whiten_advantages": False}
    targets = critic_targets(REWARD_NU, VALUE_NU, STATES_NU, MASK_NT, **options)
    to_come_NU = reward_NU.flip(1).cumsum(1).flip(1)
    assert_equal(targets.return_NU, torch.where(STATES_NU, to_come_NU, 0.0), 1e-7)
    assert_equal(
        targets.advantage_NT, torch.where(MASK_NT, (to_come_NU - VALUE_NU)[:, :3].nan_to_num(), 0.0), 1e-7
    )
    assert_equal(targets.reward_scale, 1 / deviation, 1e-7)


def test_a_policy_mask_in_place_of_the_states_is_refused():
    policy_mask_NU = torch.nn.functional.pad(MASK_NT, (0, 1))
    with pytest.raises(
        ValueError, match="the states before each token of policy_mask_NT and on the one after"
    ):
        advantages.critic_targets(REWARD_NU, VALUE_NU, policy_mask_NU, MASK_NT)


def test_explained_variance_by_hand():
    target = numbers([1.0, 3.0, 99.0], [5.0, 7.0, 99.0])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    # Variances of 1, 3, 5, 7: 5; of the errors 1, -1, 1, -1: 1.
    assert_equal(advantages.explained_variance(target - numbers([1.0, -1, 9], [1, -1, 9]), target, mask), 0.8)
    assert_equal(advantages.explained_variance(torch.full_like(target, 4.0), target, mask), 0.0)
    assert_equal(advantages.explained_variance(target, target, mask), 1.0)
    assert_equal(advantages.explained_variance(target, torch.ones_like(target), mask), 0.0)


# The expected gradient of the first update


def values_of_prefixes(world):
    """A value of its own for each prefix: 0 where `known` is False, else anything."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(len(world.theta) + 1, generator=generator, dtype=torch.float64)


def expected_gradient(
    world,
    row,
    coef,
    value_of,
    *,
    token_rewards=advantages.token_rewards,
    state_mask=advantages.state_mask,
    state_rewards=None,
    token_logprobs=token_logps,
    normalise=lambda mask_NT: mask_NT.double() / len(mask_NT),
):
    """E[gradient of the row's policy loss] over single sequences, with values by prefix.

    The weights are mask / N: with per-token weights the length in the denominator is drawn as well.
    """
    logp_NT, ref_NT = (token_logprobs(world, theta) for theta in (world.theta, world.ref_theta))
    mask_NT = world.mask_NT
    states_NU = state_mask(mask_NT)
    k1_NU = torch.nn.functional.pad(logp_NT - ref_NT, (0, 1)).detach()
    reward_NU = token_rewards(world.reward_N, states_NU, k1_NU, coef)
    if state_rewards is not None:
        reward_NU = state_rewards(reward_NU)
    # The finished text has a value too: the last one, whatever the text.
    state_NU = torch.nn.functional.pad(world.state_NT, (0, 1), value=len(world.theta))
    length_N1 = mask_NT.sum(1, keepdim=True)
    state_NU = torch.where(torch.arange(state_NU.shape[1]) == length_N1, len(world.theta), state_NU)
    value_NU = value_of[state_NU]
    probability = sequence_logp(world, world.theta).exp().detach()
    expected = torch.zeros((), dtype=torch.float64)
    for n, p in enumerate(probability.tolist()):
        one = slice(n, n + 1)
        targets = row.advantage(reward_NU[one], value_NU[one], states_NU[one], mask_NT[one])
        loss = row.surrogate(logp_NT[one], logp_NT[one].detach(), targets.advantage_NT)
        expected = expected + p * (normalise(mask_NT[one]) * loss).sum()
    return torch.autograd.grad(expected, world.theta)[0]


@pytest.mark.parametrize("coef", [0.0, 0.3])
def test_the_first_gradient_is_the_true_one_whatever_the_values(coef, **planted):
    """GAE(1, 1): a value is a baseline of its state, and a baseline has no expected gradient."""
    found = expected_gradient(WORLD, PLAIN, coef, values_of_prefixes(WORLD), **planted)
    assert_equal(found, true_gradient(WORLD, coef), 1e-12)


def test_with_values_of_0_it_is_the_gradient_of_reinforce(surrogate=PLAIN.surrogate):
    """Sequence by sequence, not only on average: score * gradient of the log-prob."""
    logp_NT = token_logps(WORLD, WORLD.theta)
    states_NU = advantages.state_mask(WORLD.mask_NT)
    reward_NU = advantages.token_rewards(WORLD.reward_N, states_NU, torch.zeros(len(states_NU), 3), 0.0)
    targets = PLAIN.advantage(reward_NU, torch.zeros(len(states_NU), 3).double(), states_NU, WORLD.mask_NT)
    ppo = surrogate(logp_NT, logp_NT.detach(), targets.advantage_NT)
    reinforce = losses.policy_gradient(logp_NT, logp_NT.detach(), WORLD.reward_N.unsqueeze(1) * WORLD.mask_NT)
    for n, length in enumerate(WORLD.mask_NT.sum(1).tolist()):
        gradients = [
            torch.autograd.grad(loss[n, :length].sum(), WORLD.theta, retain_graph=True)[0]
            for loss in (ppo, reinforce)
        ]
        assert_equal(gradients[0], gradients[1], 1e-12)
        assert gradients[0].abs().max() > 0.01


def test_true_values_leave_no_bias_at_any_lambda():
    """With the true value of every state, TD errors have no expected part: any lambda is unbiased."""
    theta = WORLD.theta.detach()
    probability = sequence_logp(WORLD, theta).exp()
    true = torch.zeros(len(theta) + 1, dtype=torch.float64)
    for state in range(len(theta)):
        through = ((WORLD.state_NT == state) & WORLD.mask_NT).any(1)
        true[state] = (probability * WORLD.reward_N)[through].sum() / probability[through].sum()
    # The finished texts differ, so each needs its own value: lambda enters before them.
    for lam, gamma in itertools.product((0.0, 0.5, 1.0), (1.0,)):
        row = PLAIN._replace(advantage=GAE(gamma, lam, False, False))
        found = expected_by_text(row, true)
        assert_equal(found, true_gradient(WORLD), 1e-12)


def expected_by_text(row, true):
    """As expected_gradient without KL, the finished text valued by its own score."""
    logp_NT = token_logps(WORLD, WORLD.theta)
    states_NU = advantages.state_mask(WORLD.mask_NT)
    reward_NU = advantages.token_rewards(WORLD.reward_N, states_NU, torch.zeros(len(states_NU), 3), 0.0)
    value_NU = torch.zeros_like(reward_NU)
    for n, length in enumerate(WORLD.mask_NT.sum(1).tolist()):
        value_NU[n, :length] = true[WORLD.state_NT[n, :length]]
        value_NU[n, length] = WORLD.reward_N[n]
    targets = row.advantage(reward_NU, value_NU, states_NU, WORLD.mask_NT)
    loss_N = (WORLD.mask_NT * row.surrogate(logp_NT, logp_NT.detach(), targets.advantage_NT)).sum(1)
    probability = sequence_logp(WORLD, WORLD.theta).exp().detach()
    return torch.autograd.grad((probability * loss_N).sum(), WORLD.theta)[0]
