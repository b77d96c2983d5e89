"""Defects found in other implementations, each planted here: the named proof must fail with it.

The proofs take the function under test as an argument; each case names the proof and hands it a wrong
variant. That the same proof passes with the right function is the proof itself.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from talltree.algorithms import algorithm, stateless
from talltree.maths import advantages, controllers, kl, logprobs, losses, weights
from talltree.maths.controllers import KLController

from . import (
    test_advantages,
    test_controllers,
    test_gradients,
    test_kl,
    test_logprobs,
    test_losses,
    test_optimum,
    test_weights,
)

WORLD = test_gradients.WORLD


def k1_inverted(logp, ref_logp):
    return ref_logp - logp


def k3_inverted(logp, ref_logp):
    log_ratio = logp - ref_logp
    return log_ratio.exp() - log_ratio - 1


def k3_sign_lost(logp, ref_logp):
    return (ref_logp - logp).exp() + (ref_logp - logp) - 1


def k2_not_halved(logp, ref_logp):
    return (logp - ref_logp).square()


def exact_kl_reversed(logits, ref_logits, temperature=1.0):
    return kl.exact_kl(ref_logits, logits, temperature)


def exact_kl_without_temperature(logits, ref_logits, temperature=1.0):
    return kl.exact_kl(logits, ref_logits)


def sequence_kl_with_padding(k_NT, mask_NT):
    return k_NT.sum(-1)


def token_kl_over_padding(k_NT, mask_NT):
    return torch.where(mask_NT, k_NT, 0.0).mean()


def token_kl_of_sequence_means(k_NT, mask_NT):
    return (torch.where(mask_NT, k_NT, 0.0).sum(1) / mask_NT.sum(1).clamp(min=1)).mean()


def kl_loss_accepts_k1(kind):
    return {"k1": kl.k1, **kl.KL_LOSSES}[kind]


def blog_beta_taken_as_coef(beta, positions=99):
    return beta


def token_logprobs_without_temperature(logits, tokens, temperature=1.0):
    return logprobs.token_logprobs(logits, tokens)


def token_logprobs_multiplied(logits, tokens, temperature=1.0):
    return logprobs.token_logprobs(logits * temperature, tokens)


def entropy_without_temperature(logits, temperature=1.0):
    return logprobs.entropy(logits)


def entropy_of_nan(logits, temperature=1.0):
    logp = logprobs.logprobs(logits, temperature)
    return -(logp.exp() * logp).sum(-1)


def masked_mean_by_product(values_NT, mask_NT):
    return (values_NT * mask_NT).sum() / mask_NT.sum().clamp(min=1)


def masked_mean_with_sentinel(values_NT, mask_NT):
    return values_NT.mean()


def adaptive_without_clip(controller, kl, n):
    if controller.target is None:
        return controller
    factor = 1 + (kl / controller.target - 1) * n / controller.horizon
    return KLController(controller.coef * factor, controller.target, controller.horizon)


def adaptive_inverted(controller, kl, n):
    right = controllers.updated(controller, kl, n).coef
    return controller._replace(coef=controller.coef**2 / right)


def adaptive_forgets_its_state(controller, kl, n):
    return controllers.updated(controller._replace(coef=1.0), kl, n)


def leave_one_out_with_itself(rewards_N, group_size, scored_N=None):
    return advantages.group_centred(rewards_N, group_size, scored_N)


def leave_one_out_of_the_batch(rewards_N, group_size, scored_N=None):
    return advantages.leave_one_out(rewards_N, rewards_N.shape[0], scored_N)


def group_of_one_keeps_its_reward(rewards_N, group_size, scored_N=None):
    if group_size == 1:
        return rewards_N
    return advantages.leave_one_out(rewards_N, group_size, scored_N)


def single_scored_keeps_its_reward(rewards_N, group_size, scored_N=None):
    advantage_N = advantages.leave_one_out(rewards_N, group_size, scored_N)
    if scored_N is None:
        return advantage_N
    alone = scored_N & (scored_N.view(-1, group_size).sum(1).repeat_interleave(group_size) == 1)
    return torch.where(alone, rewards_N, advantage_N)


def not_scored_counts_as_zero(rewards_N, group_size, scored_N=None):
    return advantages.leave_one_out(rewards_N.nan_to_num(), group_size)


def standardised_by_population(rewards_N, group_size, scored_N=None, eps=1e-6):
    groups = rewards_N.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True, correction=0) + eps)).flatten()


def moving_average_of_this_batch(rewards_N, baseline, scored_N=None):
    _, after = advantages.moving_average(rewards_N, baseline, scored_N)
    return advantages.no_baseline(rewards_N - after.mean, 1, scored_N), after


def moving_average_pulled_to_zero(rewards_N, baseline, scored_N=None):
    advantage_N, after = advantages.moving_average(rewards_N, baseline, scored_N)
    share = 1 - baseline.decay
    return advantage_N, after._replace(mean=baseline.mean + share * (rewards_N.mean().item() - baseline.mean))


def score_on_padding(reward_N, mask_NT, kl_NT, coef):
    reward_NT = advantages.token_rewards(torch.zeros_like(reward_N), mask_NT, kl_NT, coef)
    reward_NT[:, -1] += reward_N
    return reward_NT


def kl_pays_for_divergence(reward_N, mask_NT, kl_NT, coef):
    return advantages.token_rewards(reward_N, mask_NT, kl_NT, -coef)


def kl_with_gradient(reward_N, mask_NT, kl_NT, coef):
    return advantages.token_rewards(reward_N, mask_NT, kl_NT, 0.0) - coef * torch.where(mask_NT, kl_NT, 0.0)


def whiten_adds_the_mean_back(values, mask, shift_mean=True):
    return advantages.whiten(values, mask, shift_mean=False)


def whiten_drops_the_mean(values, mask, shift_mean=True):
    return advantages.whiten(values, mask)


def whiten_over_padding(values, mask, shift_mean=True):
    values = values.nan_to_num()
    mean = values.mean()
    whitened = (values - mean) * torch.rsqrt(values.var(correction=0) + 1e-8)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0.0)


def gae_reads_the_padding(token_rewards_NT, values_NT, mask_NT, gamma, lam):
    everything = torch.ones_like(mask_NT)
    advantage_NT, return_NT = advantages.gae(
        token_rewards_NT.nan_to_num(), values_NT.nan_to_num(), everything, gamma, lam
    )
    return torch.where(mask_NT, advantage_NT, 0.0), torch.where(mask_NT, return_NT, 0.0)


def gae_without_gamma_in_the_trace(token_rewards_NT, values_NT, mask_NT, gamma, lam):
    scaled = lam / gamma
    _, right = advantages.gae(token_rewards_NT, values_NT, mask_NT, gamma, min(scaled, 1.0))
    return right - torch.where(mask_NT, values_NT, 0.0), right


def gae_returns_the_advantage(token_rewards_NT, values_NT, mask_NT, gamma, lam):
    advantage_NT, _ = advantages.gae(token_rewards_NT, values_NT, mask_NT, gamma, lam)
    return advantage_NT, advantage_NT


def policy_gradient_ascending(logp, old_logp, advantage):
    return logp * advantage


def clipped_takes_max(low=0.2, high=0.2):
    def surrogate(logp, old_logp, advantage):
        ratio = (logp - old_logp).exp()
        return -torch.maximum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)

    return surrogate


def clipped_ratio_inverted(low=0.2, high=0.2):
    right = losses.clipped(low, high)
    return lambda logp, old_logp, advantage: right(old_logp, logp, advantage)


def clipped_without_min(low=0.2, high=0.2):
    return lambda logp, old_logp, advantage: -(logp - old_logp).exp().clamp(1 - low, 1 + high) * advantage


def clipped_with_one_bound(low=0.2, high=0.2):
    return losses.clipped(low, low)


def clip_share_of_every_outlier(logp_NT, old_logp_NT, advantage_NT, mask_NT, low=0.2, high=0.2):
    ratio = (logp_NT - old_logp_NT).exp()
    return weights.masked_mean(((ratio > 1 + high) | (ratio < 1 - low)).float(), mask_NT)


def normalised_per_micro_batch(mask_NT, sizes):
    return [weights.per_token(chunk, dtype=torch.float64) / len(sizes) for chunk in mask_NT.split(sizes)]


def per_sequence_by_padded_width(mask_NT, dtype=torch.float32):
    return mask_NT.to(dtype) / mask_NT.numel()


def per_sequence_nan_for_empty(mask_NT, dtype=torch.float32):
    mask = mask_NT.to(dtype)
    return mask / mask.sum(1, keepdim=True) / mask_NT.shape[0]


def per_rollout_over_the_nonempty(mask_NT, dtype=torch.float32):
    return mask_NT.to(dtype) / mask_NT.any(1).sum()


def per_token_by_rollouts(mask_NT, dtype=torch.float32):
    return weights.per_sequence(mask_NT, dtype=dtype)


def constant_length_forgets_n(mask_NT, length, dtype=torch.float32):
    return mask_NT.to(dtype) / length


STOP_TOKEN_MASKED = WORLD.mask_NT & (WORLD.tokens_NT != 0)
RLOO_WITH_ITSELF = algorithm("rloo")._replace(advantage=stateless(leave_one_out_with_itself))
RLOO_STANDARDISED = algorithm("rloo")._replace(advantage=stateless(advantages.group_standardised))
REINFORCE_PER_SEQUENCE = algorithm("reinforce")._replace(weights=weights.per_sequence)
DR_GRPO_STANDARDISED = algorithm("grpo", constant_length=2)
DR_GRPO_PER_SEQUENCE = algorithm("grpo", standardise=False)
BATCH_AS_MOVING = algorithm("reinforce", baseline="batch")
one_bandit = functools.partial(
    test_optimum.test_sampled_updates_reach_the_optimum_on_eight_bandits, seeds=range(1)
)


class Planted(NamedTuple):
    """The proof that must fail when the argument of that name is this wrong variant."""

    proof: Callable[..., None]
    argument: str
    wrong: object


PLANTED = {
    "k1 sign flipped": Planted(test_kl.test_k1_by_hand, "k1", k1_inverted),
    "k1 sign flipped, expectation": Planted(test_kl.test_k1_expects_the_exact_kl, "k1", k1_inverted),
    "k1 sign flipped, in the reward": Planted(
        test_kl.test_k1_in_the_reward_has_the_gradient_of_kl, "k1", k1_inverted
    ),
    "k1 sign flipped, optimum": Planted(one_bandit, "k1", k1_inverted),
    "k2 not halved": Planted(test_kl.test_k2_by_hand, "k2", k2_not_halved),
    "k2 not halved, gradient": Planted(test_kl.test_k2_as_loss_has_the_gradient_of_kl, "k2", k2_not_halved),
    "k3 ratio inverted": Planted(test_kl.test_k3_by_hand, "k3", k3_inverted),
    "k3 ratio inverted, expectation": Planted(test_kl.test_k3_expects_the_exact_kl, "k3", k3_inverted),
    "k3 ratio inverted, gradient": Planted(
        test_kl.test_k3_as_loss_has_the_gradient_of_the_reverse_kl, "k3", k3_inverted
    ),
    "k3 sign lost": Planted(test_kl.test_k3_is_positive_and_zero_without_drift, "k3", k3_sign_lost),
    "k1 accepted as a loss": Planted(test_kl.test_kl_loss_refuses_k1, "kl_loss", kl_loss_accepts_k1),
    "exact KL reversed": Planted(test_kl.test_exact_kl_by_hand, "exact_kl", exact_kl_reversed),
    "exact KL without temperature": Planted(
        test_kl.test_exact_kl_by_hand, "exact_kl", exact_kl_without_temperature
    ),
    "sequence KL with padding": Planted(
        test_kl.test_sequence_kl_by_hand, "sequence_kl", sequence_kl_with_padding
    ),
    "token KL over padding": Planted(test_kl.test_token_kl_by_hand, "token_kl", token_kl_over_padding),
    "token KL as mean of means": Planted(
        test_kl.test_token_kl_by_hand, "token_kl", token_kl_of_sequence_means
    ),
    "blog beta taken as coefficient": Planted(
        test_kl.test_blog_units, "coef_from_blog_beta", blog_beta_taken_as_coef
    ),
    "temperature missing": Planted(
        test_logprobs.test_temperature_divides_the_logits,
        "token_logprobs",
        token_logprobs_without_temperature,
    ),
    "temperature missing in the trainer": Planted(
        test_gradients.test_temperature_is_part_of_the_policy,
        "token_logprobs",
        token_logprobs_without_temperature,
    ),
    "temperature multiplied": Planted(
        test_logprobs.test_temperature_divides_the_logits, "token_logprobs", token_logprobs_multiplied
    ),
    "entropy without temperature": Planted(
        test_logprobs.test_entropy_by_hand, "entropy", entropy_without_temperature
    ),
    "entropy NaN with a filtered token": Planted(
        test_logprobs.test_entropy_by_hand, "entropy", entropy_of_nan
    ),
    "sentinel log-prob shifts the mean": Planted(
        test_weights.test_masked_mean_ignores_the_padding, "masked_mean", masked_mean_with_sentinel
    ),
    "NaN in the padding leaks": Planted(
        test_weights.test_masked_mean_ignores_the_padding, "masked_mean", masked_mean_by_product
    ),
    "adaptive KL clip missing": Planted(
        test_controllers.test_adaptive_error_is_clipped, "updated", adaptive_without_clip
    ),
    "adaptive KL inverted": Planted(test_controllers.test_adaptive_by_hand, "updated", adaptive_inverted),
    "adaptive KL forgets its state": Planted(
        test_controllers.test_adaptive_steps_compound, "updated", adaptive_forgets_its_state
    ),
    "fixed KL moves": Planted(
        test_controllers.test_fixed_never_moves,
        "updated",
        lambda controller, kl, n: controllers.updated(controller._replace(target=6.0), kl, n),
    ),
    "mean with itself called leave-one-out": Planted(
        test_advantages.test_leave_one_out_by_hand, "leave_one_out", leave_one_out_with_itself
    ),
    "mean with itself called leave-one-out, gradient": Planted(
        test_gradients.test_rloo_is_unbiased, "row", RLOO_WITH_ITSELF
    ),
    "leave-one-out divided by the deviation": Planted(
        test_gradients.test_rloo_is_unbiased, "row", RLOO_STANDARDISED
    ),
    "leave-one-out across prompts": Planted(
        test_advantages.test_leave_one_out_by_hand, "leave_one_out", leave_one_out_of_the_batch
    ),
    "group of one keeps its reward": Planted(
        test_advantages.test_a_group_of_one_is_refused, "leave_one_out", group_of_one_keeps_its_reward
    ),
    "single scored rollout keeps its reward": Planted(
        test_advantages.test_not_scored_enters_no_group_baseline,
        "leave_one_out",
        single_scored_keeps_its_reward,
    ),
    "not scored counts as 0": Planted(
        test_advantages.test_not_scored_enters_no_group_baseline, "leave_one_out", not_scored_counts_as_zero
    ),
    "population deviation": Planted(
        test_advantages.test_group_standardised_by_hand, "group_standardised", standardised_by_population
    ),
    "baseline includes its own batch": Planted(
        test_advantages.test_moving_average_by_hand, "moving_average", moving_average_of_this_batch
    ),
    "baseline includes its own batch, gradient": Planted(
        test_gradients.test_moving_baseline_is_unbiased, "row", BATCH_AS_MOVING
    ),
    "moving average pulled to its start": Planted(
        test_advantages.test_moving_average_by_hand, "moving_average", moving_average_pulled_to_zero
    ),
    "score placed on padding": Planted(
        test_advantages.test_token_rewards_by_hand, "token_rewards", score_on_padding
    ),
    "score placed on padding, gradient": Planted(
        test_gradients.test_kl_in_the_reward_gives_the_gradient_of_the_objective,
        "token_rewards",
        score_on_padding,
    ),
    "KL pays for divergence": Planted(
        test_gradients.test_kl_in_the_reward_gives_the_gradient_of_the_objective,
        "token_rewards",
        kl_pays_for_divergence,
    ),
    "KL in the reward has a gradient": Planted(
        test_advantages.test_kl_in_the_reward_carries_no_gradient, "token_rewards", kl_with_gradient
    ),
    "whitening adds the mean back": Planted(
        test_advantages.test_whiten_by_hand, "whiten", whiten_adds_the_mean_back
    ),
    "whitening drops the mean to keep": Planted(
        test_advantages.test_whiten_may_keep_the_mean, "whiten", whiten_drops_the_mean
    ),
    "whitening over padding": Planted(test_advantages.test_whiten_by_hand, "whiten", whiten_over_padding),
    "GAE reads the padding": Planted(test_advantages.test_gae_by_hand, "gae", gae_reads_the_padding),
    "GAE reads the padding, return": Planted(
        test_advantages.test_gae_without_discount_is_return_minus_value, "gae", gae_reads_the_padding
    ),
    "GAE trace without gamma": Planted(
        test_advantages.test_gae_by_hand, "gae", gae_without_gamma_in_the_trace
    ),
    "GAE returns the advantage": Planted(test_advantages.test_gae_by_hand, "gae", gae_returns_the_advantage),
    "policy gradient ascends the loss": Planted(
        test_losses.test_policy_gradient_by_hand, "policy_gradient", policy_gradient_ascending
    ),
    "clip takes max for min": Planted(test_losses.test_clipped_by_hand, "clipped", clipped_takes_max),
    "clip without min": Planted(test_losses.test_clipped_by_hand, "clipped", clipped_without_min),
    "importance ratio inverted": Planted(test_losses.test_clipped_by_hand, "clipped", clipped_ratio_inverted),
    "importance ratio inverted, gradient": Planted(
        test_gradients.test_clipping_is_the_plain_gradient_at_the_first_update,
        "clipped",
        clipped_ratio_inverted,
    ),
    "one clip bound for both": Planted(
        test_losses.test_clip_bounds_are_separate, "clipped", clipped_with_one_bound
    ),
    "clip share ignores the sign": Planted(
        test_losses.test_clip_share_by_hand, "clip_share", clip_share_of_every_outlier
    ),
    "normalisation per micro-batch": Planted(
        test_weights.test_loss_ignores_the_micro_batch_split, "split_weights", normalised_per_micro_batch
    ),
    "length of the padded row": Planted(
        test_weights.test_per_sequence_by_hand, "per_sequence", per_sequence_by_padded_width
    ),
    "empty rollout gives NaN": Planted(
        test_weights.test_per_sequence_by_hand, "per_sequence", per_sequence_nan_for_empty
    ),
    "empty rollout raises the others": Planted(
        test_weights.test_per_rollout_by_hand, "per_rollout", per_rollout_over_the_nonempty
    ),
    "token weights per rollout": Planted(
        test_weights.test_per_token_by_hand, "per_token", per_token_by_rollouts
    ),
    "constant length forgets N": Planted(
        test_weights.test_constant_length_by_hand, "constant_length", constant_length_forgets_n
    ),
    "length normalisation in REINFORCE": Planted(
        test_gradients.test_reinforce_is_unbiased, "row", REINFORCE_PER_SEQUENCE
    ),
    "mask drops the stop token": Planted(
        test_gradients.test_reinforce_is_unbiased, "mask_NT", STOP_TOKEN_MASKED
    ),
    "Dr. GRPO keeps the deviation": Planted(
        test_gradients.test_dr_grpo_is_the_shortened_gradient, "row", DR_GRPO_STANDARDISED
    ),
    "Dr. GRPO keeps the length": Planted(
        test_gradients.test_dr_grpo_is_the_shortened_gradient, "row", DR_GRPO_PER_SEQUENCE
    ),
}


@pytest.mark.parametrize("defect", PLANTED)
def test_planted_defect_fails_its_proof(defect):
    proof, argument, wrong = PLANTED[defect]
    with pytest.raises(AssertionError):
        proof(**{argument: wrong})
