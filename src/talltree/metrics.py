"""Every key that metrics.jsonl may hold: its unit, its formula and its TensorBoard tag.

Tags are the names that the TRL trainers log under where the quantity is the same one (its GRPO `kl` is k3
per token, its PPO `objective/kl` is k1 summed over the sequence). A tag of None is not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Metric(NamedTuple):
    """Unit, formula or meaning, and TensorBoard tag of one key."""

    unit: str
    formula: str
    tag: str | None


RL: Mapping[str, Metric] = {
    "step": Metric("count", "batches of rollouts so far, this one included; the x axis of every curve", None),
    "episodes": Metric("count", "completions sampled so far, this step's included", "train/episode"),
    "reward/mean": Metric(
        "reward", "mean of the total reward over scored completions, KL left out", "train/reward"
    ),
    "reward/std": Metric(
        "reward", "sqrt(sum((r - mean)^2) / (n - 1)) over the n scored completions", "train/reward_std"
    ),
    "reward/max": Metric("reward", "highest total reward of a completion in the step", "train/reward_max"),
    "kl/sequence": Metric(
        "nats",
        "mean over completions of sum_t (logp - ref_logp); positive away from the reference",
        "train/objective/kl",
    ),
    "kl/token": Metric(
        "nats/token",
        "sum of (logp - ref_logp) over all completion tokens / number of completion tokens",
        "train/kl_per_token",
    ),
    "kl/k3": Metric(
        "nats/token",
        "mean over completion tokens of exp(d) - d - 1 with d = ref_logp - logp; never negative",
        "train/kl",
    ),
    "kl/coef": Metric(
        "reward/nat",
        "price of one nat of sequence KL in this step, after the controller",
        "train/objective/kl_coef",
    ),
    "policy/entropy": Metric(
        "nats/token",
        "mean over completion tokens of the entropy of the distribution sampled from",
        "train/entropy",
    ),
    "policy/loss": Metric(
        "reward",
        "sum(weights * surrogate) plus the KL term where it stands in the loss, mean over the step's updates",
        "train/loss",
    ),
    "policy/grad_norm": Metric(
        "loss/parameter",
        "L2 norm of the gradient before clipping, a separate critic's left out, mean over the step's updates",
        "train/grad_norm",
    ),
    "policy/ratio_mean": Metric(
        "ratio",
        "mean over tokens of scored completions of"
        " exp(logp - old_logp), mean over the step's updates; 1 when on-policy",
        "train/val/ratio",
    ),
    "policy/clip_share": Metric(
        "share",
        "tokens of scored completions whose surrogate is clipped (no gradient) / such tokens, "
        "mean over the step's updates",
        "train/clip_ratio/region_mean",
    ),
    "policy/approx_kl": Metric(
        "nats/token",
        "mean over tokens of scored completions of (logp - old_logp)^2 / 2, "
        "mean over the step's updates; 0 when on-policy",
        "train/policy/approxkl_avg",
    ),
    "policy/learning_rate": Metric(
        "1/update", "learning rate of the step's last optimiser update", "train/learning_rate"
    ),
    "completion/length": Metric(
        "tokens", "mean completion length, stop token included", "train/completions/mean_length"
    ),
    "completion/ended": Metric(
        "share",
        "completions with their required end (a stop token, or the truncate token) / completions",
        "train/completions/ended_ratio",
    ),
    "diversity/distinct_1": Metric(
        "share",
        "different words / words, split on white space, all completions of the step pooled",
        "train/diversity/distinct_1",
    ),
    "diversity/distinct_2": Metric(
        "share",
        "different neighbouring word pairs / pairs, all completions of the step pooled",
        "train/diversity/distinct_2",
    ),
    "diversity/unique": Metric("share", "different completion texts / completions", "train/diversity/unique"),
    "diversity/near_duplicates": Metric(
        "share",
        "completions of which another of the step holds half or more of the different word trigrams "
        "/ completions",
        "train/diversity/near_duplicates",
    ),
    "groups/zero_variance": Metric(
        "share", "groups of one prompt whose rewards are all equal / groups", "train/frac_reward_zero_std"
    ),
    "advantage/std": Metric(
        "reward", "sqrt(sum((A - mean)^2) / (n - 1)) over the advantages of the step", "train/advantage_std"
    ),
    "advantage/raw_mean": Metric(
        "reward",
        "ppo: mean over tokens of scored completions of GAE's advantage before whitening",
        "train/advantage/raw_mean",
    ),
    "advantage/raw_std": Metric(
        "reward", "ppo: sqrt(mean((A - mean)^2)) over those advantages", "train/advantage/raw_std"
    ),
    "value/loss": Metric(
        "reward^2",
        "ppo: mean over states of scored completions of max((V - R)^2, (V' - R)^2) / 2, V' = V held within "
        "cliprange_value of its value before the step, R the return; mean over the updates, without vf_coef",
        "train/loss/value_avg",
    ),
    "value/clip_share": Metric(
        "share",
        "ppo: states whose V' is farther from R (no gradient) / states, mean over the step's updates",
        "train/val/clipfrac_avg",
    ),
    "value/explained_variance": Metric(
        "share",
        "ppo: 1 - variance(R - V) / variance(R) over states, V before the step's updates; 0 for a constant V",
        "train/value/explained_variance",
    ),
    "value/mean": Metric(
        "reward", "ppo: mean of V over states before the step's updates", "train/value/mean"
    ),
    "value/grad_norm": Metric(
        "loss/parameter",
        "ppo, separate body: L2 norm of the critic's gradient before clipping, mean over the step's updates",
        "train/value/grad_norm",
    ),
    "return/mean": Metric(
        "reward",
        "ppo: mean over states of R = A + V, of whitened rewards, before whitening A",
        "train/return/mean",
    ),
    "return/std": Metric("reward", "ppo: sqrt(mean((R - mean)^2)) over states", "train/return/std"),
    "return/scale": Metric(
        "1/reward",
        "ppo: what whitening multiplies the distance of a state's reward from their mean by; 1 without it",
        "train/return/scale",
    ),
    "time/sample": Metric("seconds", "wall time of generation", "train/time/sample"),
    "time/score": Metric("seconds", "wall time of rewards and reference log-probs", "train/time/score"),
    "time/train": Metric("seconds", "wall time of the optimiser updates", "train/time/train"),
    "time/step": Metric("seconds", "wall time of the whole step", "train/step_time"),
    "time/tokens_per_second": Metric(
        "tokens/second", "completion tokens of the step / time/step", "train/tokens_per_second"
    ),
}

PRETRAIN: Mapping[str, Metric] = {
    "step": Metric("count", "optimiser updates so far, this one included; the x axis of every curve", None),
    "tokens": Metric("tokens", "tokens trained on so far, repeats counted", "train/num_tokens"),
    "loss/train": Metric("nats/token", "mean of -log p(token) over the update's batch", "train/loss"),
    "loss/validation": Metric("nats/token", "mean of -log p(token) over the held-out text", "eval/loss"),
    "bits_per_byte": Metric(
        "bits/byte",
        "held-out nats / (ln 2 * UTF-8 bytes of the held-out text); comparable between tokenizers",
        "eval/bits_per_byte",
    ),
    "grad_norm": Metric("loss/parameter", "L2 norm of the whole gradient before clipping", "train/grad_norm"),
    "learning_rate": Metric("1/update", "learning rate of the update", "train/learning_rate"),
    "time/step": Metric("seconds", "wall time of the update", "train/step_time"),
    "time/validation": Metric("seconds", "wall time of the held-out loss", "train/time/validation"),
    "time/tokens_per_second": Metric(
        "tokens/second", "tokens of the update / time/step", "train/tokens_per_second"
    ),
}

SFT: Mapping[str, Metric] = {
    "step": Metric("count", "optimiser updates so far, this one included; 0 is the model as it came", None),
    "epoch": Metric(
        "epochs", "passes over the training examples so far, this update included", "train/epoch"
    ),
    "tokens": Metric(
        "tokens", "tokens learned from so far, repeats counted, prompts not", "train/num_tokens"
    ),
    "loss/train": Metric(
        "nats/token", "mean of -log p(token) over the update's learned tokens", "train/loss"
    ),
    "loss/validation": Metric(
        "nats/token", "mean of -log p(token) over the learned tokens of the held-out examples", "eval/loss"
    ),
    "grad_norm": Metric("loss/parameter", "L2 norm of the whole gradient before clipping", "train/grad_norm"),
    "learning_rate": Metric("1/update", "learning rate of the update", "train/learning_rate"),
    "time/step": Metric("seconds", "wall time of the update", "train/step_time"),
    "time/validation": Metric(
        "seconds", "wall time of the held-out loss and samples", "train/time/validation"
    ),
    "time/tokens_per_second": Metric(
        "tokens/second", "learned tokens of the update / time/step", "train/tokens_per_second"
    ),
}

REWARD: Mapping[str, Metric] = {
    "step": Metric("count", "optimiser updates so far, this one included; 0 is the untrained head", None),
    "epoch": Metric(
        "epochs", "passes over the training judgements so far, this update included", "train/epoch"
    ),
    "comparisons": Metric(
        "judgements", "judgements trained on so far, repeats counted", "train/num_comparisons"
    ),
    "tokens": Metric(
        "tokens", "tokens of their candidates, prompts included; every member's own", "train/num_tokens"
    ),
    "preference/loss": Metric(
        "nats/judgement",
        "mean over the update's judgements of -log likelihood (config `loss`) plus centring, mean over heads",
        "train/loss",
    ),
    "preference/accuracy": Metric(
        "share",
        "settled pairs of the update whose winner scores higher, before the update; equal scores count half",
        "train/accuracy",
    ),
    "preference/difference": Metric(
        "log-odds", "mean over those pairs of the winner's score minus the loser's", "train/margin"
    ),
    "preference/held_out_loss": Metric(
        "nats/judgement", "the same loss over the held-out judgements", "eval/loss"
    ),
    "preference/held_out_accuracy": Metric(
        "share", "settled pairs of the held-out judgements whose winner scores higher", "eval/accuracy"
    ),
    "grad_norm": Metric(
        "loss/parameter",
        "L2 norm of the whole gradient before clipping, mean over members",
        "train/grad_norm",
    ),
    "learning_rate": Metric("1/update", "learning rate of the update", "train/learning_rate"),
    "time/step": Metric("seconds", "wall time of the update", "train/step_time"),
    "time/validation": Metric(
        "seconds", "wall time of scoring the held-out judgements", "train/time/validation"
    ),
    "time/tokens_per_second": Metric(
        "tokens/second", "tokens of the update / time/step", "train/tokens_per_second"
    ),
}

RLHF: Mapping[str, Metric] = {
    "step": Metric("count", "rounds made so far, this one included", None),
    "rlhf/comparisons": Metric(
        "judgements",
        "judgements of all rounds so far that the reward model learned from",
        "train/num_comparisons",
    ),
    "rlhf/reward_accuracy": Metric(
        "share", "held-out pairs that the round's reward model orders as the judges did", "eval/accuracy"
    ),
    "rlhf/policy_preferred": Metric(
        "share",
        "of the settled pairs of policy and reference in the round's validation tuples, those that the "
        "policy of the round's start won; none in the first round, where it is the reference",
        "eval/policy_preferred",
    ),
    "rlhf/policy_pairs": Metric("pairs", "how many such pairs there were", "eval/policy_pairs"),
    "rlhf/reward_before": Metric(
        "reward",
        "mean reward of the reference's fresh samples by the round's reward model",
        "eval/reward_before",
    ),
    "rlhf/reward_after": Metric(
        "reward", "mean reward of the tuned policy's fresh samples by the same model", "eval/reward_after"
    ),
    "rlhf/kl": Metric("nats", "mean over those samples of sum_t (logp - ref_logp)", "eval/objective/kl"),
}

TABLES: Mapping[str, Mapping[str, Metric]] = {
    "rl": RL,
    "pretrain": PRETRAIN,
    "sft": SFT,
    "reward": REWARD,
    "rlhf": RLHF,
}
"""Stage -> its keys; a key that stands in several tables has one unit and one tag in all."""

COMPONENT_PREFIX = "reward/"


def component_key(name: str) -> str:
    """Key of one reward component: reward/NAME. Raises ValueError if that is one of the table's own keys."""
    key = COMPONENT_PREFIX + name
    if not name or key in RL:
        raise ValueError(f"a reward component cannot be called {name!r}: {key!r} is a metric of its own")
    return key


def describe(key: str) -> Metric:
    """The Metric of any documented key, reward components included. Raises KeyError for another key.

    A key that stands in several tables (step, time/...) has one unit and one tag in all.
    """
    for table in TABLES.values():
        if key in table:
            return table[key]
    if key.startswith(COMPONENT_PREFIX) and key != COMPONENT_PREFIX:
        return component(key.removeprefix(COMPONENT_PREFIX))
    raise KeyError(
        f"metric {key!r} is not in the tables of talltree.metrics; add it there and to docs/metrics.md"
    )


def component(name: str) -> Metric:
    """The Metric of the reward component `name`."""
    return Metric(
        "reward",
        "mean of that component over the completions it scored, when there are several",
        f"train/rewards/{name}/mean",
    )
