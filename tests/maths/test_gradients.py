"""E[gradient] of every row, over all batches of a tiny world, against autograd of the exact objective.

A test takes the row, mask or function under test as an argument, so that a planted defect can take its place.
"""

import pytest
import torch

from talltree.algorithms import algorithm
from talltree.maths import advantages, logprobs, losses, weights
from talltree.maths.advantages import MovingBaseline

from .enumeration import assert_equal, expected_gradient, sequence_logp, space, token_logps, true_gradient

WORLD = space(vocabulary=3, length=2, seed=2)  # 7 sequences: [0], [1|2, 0|1|2]
DEEP = space(vocabulary=3, length=3, seed=3)  # 15 sequences
COEF = 0.3

REINFORCE = algorithm("reinforce")
MOVING = algorithm("reinforce", baseline="moving")
BATCH = algorithm("reinforce", baseline="batch")
RLOO = algorithm("rloo")
GRPO = algorithm("grpo")
DR_GRPO = algorithm("grpo", standardise=False, constant_length=2)


def test_the_space_is_whole():
    for world, sequences in ((WORLD, 7), (DEEP, 15)):
        assert len(world.tokens_NT) == sequences
        assert_equal(sequence_logp(world, world.theta).exp().sum(), 1.0)
        by_token_N = token_logps(world, world.theta).sum(1)
        assert_equal(by_token_N, sequence_logp(world, world.theta))
    assert true_gradient(WORLD).abs().max() > 0.1
    assert (true_gradient(WORLD, COEF) - true_gradient(WORLD)).abs().max() > 0.01


@pytest.mark.parametrize("coef", [0.0, COEF])
def test_reinforce_is_unbiased_for_one_rollout(coef):
    assert_equal(expected_gradient(DEEP, REINFORCE, batch=1, coef=coef), true_gradient(DEEP, coef))


def test_reinforce_is_unbiased(row=REINFORCE, mask_NT=WORLD.mask_NT):
    gradient = expected_gradient(WORLD, row, batch=2, coef=COEF, mask_NT=mask_NT)
    assert_equal(gradient, true_gradient(WORLD, COEF))


def test_kl_in_the_reward_gives_the_gradient_of_the_objective(token_rewards=advantages.token_rewards):
    gradient = expected_gradient(WORLD, REINFORCE, batch=1, coef=COEF, token_rewards=token_rewards)
    assert_equal(gradient, true_gradient(WORLD, COEF))


def test_moving_baseline_is_unbiased(row=MOVING):
    for baseline in (MovingBaseline(), MovingBaseline(1.7, 0.9, 3)):
        gradient = expected_gradient(WORLD, row, batch=2, coef=COEF, baseline=baseline)
        assert_equal(gradient, true_gradient(WORLD, COEF))


@pytest.mark.parametrize("size", [2, 3])
def test_batch_baseline_shortens_the_gradient(size):
    shortened = true_gradient(WORLD, COEF) * (size - 1) / size
    assert_equal(expected_gradient(WORLD, BATCH, batch=size, coef=COEF), shortened)


def test_rloo_is_unbiased(row=RLOO):
    for size in (2, 3):
        assert_equal(expected_gradient(WORLD, row, batch=size, coef=COEF), true_gradient(WORLD, COEF))
    assert_equal(expected_gradient(DEEP, row, batch=2, coef=COEF), true_gradient(DEEP, COEF))


def test_rloo_with_one_not_scored_is_unbiased_over_the_others():
    # Two of three rollouts are left, and the mean still counts three.
    gradient = expected_gradient(WORLD, RLOO, batch=3, coef=COEF, scored=(True, False, True))
    assert_equal(gradient, true_gradient(WORLD, COEF) * 2 / 3)


def test_dr_grpo_is_the_shortened_gradient(row=DR_GRPO):
    # Centred scales by (G - 1) / G, the constant length of 2 by 1 / 2; clipping changes nothing at ratio 1.
    for size in (2, 3):
        expected = true_gradient(WORLD) * (size - 1) / size / 2
        assert_equal(expected_gradient(WORLD, row, batch=size), expected)


def test_grpo_weights_and_deviation_are_biased():
    # The two choices that Dr. GRPO takes back, each alone: the direction is no longer the true one.
    true = true_gradient(WORLD).flatten()
    by_length = DR_GRPO._replace(weights=weights.per_sequence)
    by_deviation = GRPO._replace(weights=weights.per_rollout)
    for row in (by_length, by_deviation, GRPO):
        gradient = expected_gradient(WORLD, row, batch=3).flatten()
        cosine = torch.cosine_similarity(gradient, true, dim=0)
        assert 0.5 < cosine < 0.9999


def test_clipping_is_the_plain_gradient_at_the_first_update(clipped=losses.clipped):
    plain = GRPO._replace(surrogate=losses.policy_gradient)
    for bounds in ((0.2, 0.2), (0.1, 0.28)):
        row = GRPO._replace(surrogate=clipped(*bounds))
        assert_equal(expected_gradient(WORLD, row, batch=3), expected_gradient(WORLD, plain, batch=3))


def test_temperature_is_part_of_the_policy(token_logprobs=logprobs.token_logprobs):
    # Sampled at temperature 1/2, the policy is softmax(2 theta): the objective and its gradient follow.
    logp_NT = token_logprobs(WORLD.theta[WORLD.state_NT], WORLD.tokens_NT, 0.5)
    logp_N = torch.where(WORLD.mask_NT, logp_NT, 0.0).sum(1)
    cold_N = sequence_logp(WORLD, 2 * WORLD.theta)
    loss = -(cold_N.exp().detach() * WORLD.reward_N * logp_N).sum()
    objective = -(cold_N.exp() * WORLD.reward_N).sum()
    gradient, true = (torch.autograd.grad(value, WORLD.theta)[0] for value in (loss, objective))
    assert_equal(gradient, true)
