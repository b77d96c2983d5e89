"""Defects of other implementations, one function each, for test_planted to put in the place of ours."""

import functools

import torch

from talltree.algorithms import algorithm, stateless
from talltree.maths import advantages, controllers, kl, logprobs, losses, weights

from . import (
    test_gradients,
    test_optimum,
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
    return controller._replace(coef=controller.coef * factor)


def adaptive_inverted(controller, kl, n):
    right = controllers.updated(controller, kl, n).coef
    return controller._replace(coef=controller.coef**2 / right)


def adaptive_forgets_its_state(controller, kl, n):
    return controllers.updated(controller._replace(coef=1.0), kl, n)


def gain_keeps_its_last_ratio(controller, kl, n):
    now = controllers.updated(controller, kl, n)
    return now._replace(coef=now.coef * controller.ratio**controller.gain)


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
