"""Defects found in other implementations, each planted here: the named proof must fail with it.

The proofs take the function under test as an argument; each case names the proof and hands it a wrong
variant. That the same proof passes with the right function is the proof itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from talltree.maths import controllers

from . import (
    test_advantages,
    test_controllers,
    test_gradients,
    test_kl,
    test_logprobs,
    test_losses,
    test_weights,
)
from .planted import (
    BATCH_AS_MOVING,
    DR_GRPO_PER_SEQUENCE,
    DR_GRPO_STANDARDISED,
    REINFORCE_PER_SEQUENCE,
    RLOO_STANDARDISED,
    RLOO_WITH_ITSELF,
    STOP_TOKEN_MASKED,
    adaptive_forgets_its_state,
    adaptive_inverted,
    adaptive_without_clip,
    blog_beta_taken_as_coef,
    clip_share_of_every_outlier,
    clipped_ratio_inverted,
    clipped_takes_max,
    clipped_with_one_bound,
    clipped_without_min,
    constant_length_forgets_n,
    entropy_of_nan,
    entropy_without_temperature,
    exact_kl_reversed,
    exact_kl_without_temperature,
    gae_reads_the_padding,
    gae_returns_the_advantage,
    gae_without_gamma_in_the_trace,
    gain_keeps_its_last_ratio,
    group_of_one_keeps_its_reward,
    k1_inverted,
    k2_not_halved,
    k3_inverted,
    k3_sign_lost,
    kl_loss_accepts_k1,
    kl_pays_for_divergence,
    kl_with_gradient,
    leave_one_out_of_the_batch,
    leave_one_out_with_itself,
    masked_mean_by_product,
    masked_mean_with_sentinel,
    moving_average_of_this_batch,
    moving_average_pulled_to_zero,
    normalised_per_micro_batch,
    not_scored_counts_as_zero,
    one_bandit,
    per_rollout_over_the_nonempty,
    per_sequence_by_padded_width,
    per_sequence_nan_for_empty,
    per_token_by_rollouts,
    policy_gradient_ascending,
    score_on_padding,
    sequence_kl_with_padding,
    single_scored_keeps_its_reward,
    standardised_by_population,
    token_kl_of_sequence_means,
    token_kl_over_padding,
    token_logprobs_multiplied,
    token_logprobs_without_temperature,
    whiten_adds_the_mean_back,
    whiten_drops_the_mean,
    whiten_over_padding,
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
    "adaptive KL gain winds up": Planted(
        test_controllers.test_gain_by_hand, "updated", gain_keeps_its_last_ratio
    ),
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
