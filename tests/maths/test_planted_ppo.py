"""Defects of other PPO implementations, each planted here: the named proof must fail with it."""

import pytest
import torch

from talltree.maths import advantages, losses
from talltree.maths.advantages import Targets, gae, whiten

from . import test_losses, test_ppo
from .planted import kl_pays_for_divergence, score_on_padding
from .test_planted import Planted


def targets_with(
    *, mean_added_back=False, reward_mean_shifted=False, tokens_for_states=False, unwhitened_returns=False
):
    """critic_targets with one of its choices turned."""

    def critic_targets(
        reward_NU, value_NU, value_mask_NU, policy_mask_NT, *, gamma, lam, whiten_rewards=True,
        whiten_advantages=True,
    ):  # fmt: skip
        states_NU = torch.nn.functional.pad(policy_mask_NT, (0, 1)) if tokens_for_states else value_mask_NU
        scale = torch.ones((), dtype=reward_NU.dtype)
        given_NU = reward_NU
        if whiten_rewards:
            scale = advantages.whitening_factor(reward_NU, states_NU)
            reward_NU = whiten(reward_NU, states_NU, shift_mean=reward_mean_shifted)
        advantage_NU, return_NU = gae(reward_NU, value_NU, states_NU, gamma, lam)
        if unwhitened_returns:
            _, return_NU = gae(given_NU, value_NU, states_NU, gamma, lam)
        raw_NT = torch.where(policy_mask_NT, advantage_NU[:, :-1], 0.0)
        advantage_NT = whiten(raw_NT, policy_mask_NT, shift_mean=not mean_added_back)
        return Targets(advantage_NT if whiten_advantages else raw_NT, return_NU, raw_NT, scale)

    return critic_targets


def state_mask_of_the_tokens(mask_NT):
    return torch.nn.functional.pad(mask_NT, (0, 1))


def state_mask_of_everything(mask_NT):
    return torch.ones(mask_NT.shape[0], mask_NT.shape[1] + 1, dtype=torch.bool)


def ratio_inverted(logp, old_logp, advantage):
    return losses.clipped()(old_logp, logp, advantage)


def value_clip_takes_the_smaller(value, old_value, target, clip=0.2):
    unclipped = (value - target).square()
    if clip is None:
        return 0.5 * unclipped
    held = old_value + (value - old_value).clamp(-clip, clip)
    return 0.5 * torch.minimum(unclipped, (held - target).square())


def value_clip_around_the_return(value, old_value, target, clip=0.2):
    return losses.clipped_value(value, target, target, clip)


def value_loss_not_halved(value, old_value, target, clip=0.2):
    return 2 * losses.clipped_value(value, old_value, target, clip)


def value_share_of_every_outlier(value, old_value, target, mask, clip=0.2):
    if clip is None:
        return torch.zeros(())
    return ((value - old_value).abs() > clip)[mask].float().mean() if mask.any() else torch.zeros(())


HONEST_COPY = targets_with()
GRADIENT = test_ppo.test_the_first_gradient_is_the_true_one_whatever_the_values

PLANTED = {
    "whitening adds the mean of the advantages back": Planted(
        test_ppo.test_targets_by_hand, "critic_targets", targets_with(mean_added_back=True)
    ),
    "whitening shifts the mean of the rewards": Planted(
        test_ppo.test_rewards_are_whitened_over_the_states_and_keep_their_mean,
        "critic_targets",
        targets_with(reward_mean_shifted=True),
    ),
    "returns of rewards that are not whitened": Planted(
        test_ppo.test_rewards_are_whitened_over_the_states_and_keep_their_mean,
        "critic_targets",
        targets_with(unwhitened_returns=True),
    ),
    "value mask is the policy mask": Planted(
        test_ppo.test_targets_by_hand, "critic_targets", targets_with(tokens_for_states=True)
    ),
    "states are the tokens": Planted(test_ppo.test_states_by_hand, "state_mask", state_mask_of_the_tokens),
    "states reach into the padding": Planted(
        test_ppo.test_states_by_hand, "state_mask", state_mask_of_everything
    ),
    "score placed on PAD": Planted(GRADIENT, "token_rewards", score_on_padding),
    "KL pays for divergence": Planted(GRADIENT, "token_rewards", kl_pays_for_divergence),
    "ratio inverted": Planted(
        test_ppo.test_with_values_of_0_it_is_the_gradient_of_reinforce, "surrogate", ratio_inverted
    ),
    "value clip takes min for max": Planted(
        test_losses.test_clipped_value_by_hand, "clipped_value", value_clip_takes_the_smaller
    ),
    "value clip takes min for max, gradient": Planted(
        test_losses.test_a_value_beyond_the_clip_has_no_gradient_towards_its_return,
        "clipped_value",
        value_clip_takes_the_smaller,
    ),
    "value clipped around the return": Planted(
        test_losses.test_clipped_value_by_hand, "clipped_value", value_clip_around_the_return
    ),
    "value loss not halved": Planted(
        test_losses.test_clipped_value_by_hand, "clipped_value", value_loss_not_halved
    ),
    "value clip share counts every outlier": Planted(
        test_losses.test_value_clip_share_by_hand, "value_clip_share", value_share_of_every_outlier
    ),
}


@pytest.mark.parametrize("defect", PLANTED)
def test_planted_defect_fails_its_proof(defect):
    proof, argument, wrong = PLANTED[defect]
    # The gradient with a price on KL: without one, a KL of the wrong sign would not show.
    fixed = {"coef": 0.3} if proof is GRADIENT else {}
    with pytest.raises(AssertionError):
        proof(**fixed, **{argument: wrong})


def test_the_copy_that_defects_are_planted_in_is_right_without_them():
    test_ppo.test_targets_by_hand(critic_targets=HONEST_COPY)
    test_ppo.test_rewards_are_whitened_over_the_states_and_keep_their_mean(critic_targets=HONEST_COPY)
