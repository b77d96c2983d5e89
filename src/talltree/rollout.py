"""Rollouts: sampling joined with rewards and KL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from talltree import rewards
from talltree.data.prompts import columns
from talltree.errors import ConfigError, DataError, ModelError, RewardError
from talltree.maths.advantages import state_mask, token_rewards
from talltree.maths.kl import k1
from talltree.models.load import context_length, encode
from talltree.models.policy import Reference
from talltree.models.score import likelihoods
from talltree.sampling.decode import sample
from talltree.types import Prompt, Reward, Rollout, Scored, Truncation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Given = tuple[list[float | None], dict[str, list[float | None]]]
"""What `rewards.score` gives: each completion's reward, and each component's."""


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    max_completion_length: int,
) -> dict[str, list[int]]:
    """Token ids of every prompt text, checked against model and context before anything is sampled.

    Raises DataError for a prompt without tokens or one that leaves no room for the completion, ModelError
    for a token that the model does not have.
    """
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    ids_of = dict(zip(texts, encode(tokenizer, texts), strict=True))
    room, vocabulary = context_length(model), model.config.vocab_size
    for text, ids in ids_of.items():
        if not ids:
            raise DataError(f"prompt {text!r} has no tokens; a prompt needs at least one")
        if max(ids) >= vocabulary:
            raise ModelError(
                f"the tokenizer gives token {max(ids)} for prompt {text[:40]!r}, but the model has "
                f"{vocabulary} tokens; use the tokenizer that the model was trained with"
            )
        if len(ids) + max_completion_length > room:
            left = room - len(ids)
            fix = f", or set max_completion_length to {left} or less" if left > 0 else ""
            raise DataError(
                f"prompt {text[:40]!r} has {len(ids)} tokens and max_completion_length is "
                f"{max_completion_length}, but the model's context is {room}; shorten the prompt{fix}"
            )
    return ids_of


def truncation_at(tokenizer: PreTrainedTokenizerBase, text: str, after: int, vocabulary: int) -> Truncation:
    """The truncation at every token whose text is exactly `text`, from position `after` on.

    Where no token is, those count whose text is a space and then `text`, as in vocabularies of whole words.
    Raises ConfigError where neither exists: a token such as '."' is not '.'.
    """
    # A token's text is what it adds behind another one: alone, some tokenizers lose its first space.
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:] or [0]
    pairs = [anchor + [token] for token in range(min(vocabulary, len(tokenizer)))]
    start, *whole = tokenizer.batch_decode(
        [anchor, *pairs], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    for wanted in (text, f" {text}"):
        found = tuple(token for token, pair in enumerate(whole) if pair == start + wanted)
        if found:
            return Truncation(found, after)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    raise ConfigError(
        f"truncate_token {text!r} is not the text of one token of this tokenizer, which reads it as {ids}; "
        "name a single token, such as '.' or a line break"
    )


def collect(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    ids_of: dict[str, list[int]],
    *,
    max_completion_length: int,
    stop_ids: tuple[int, ...],
    temperature: float,
    generator: torch.Generator,
    truncation: Truncation | None = None,
    fast: bool = True,
) -> Rollout:
    """One completion for each of the N prompts, equal prompts adjacent, from the policy as it stands.

    A completion's text is what it adds to its prompt's: decoding it alone would lose the first space in
    SentencePiece-type tokenizers.
    """
    prompt_ids = [ids_of[prompt.text] for prompt in prompts]
    sampled = sample(
        policy,
        prompt_ids,
        max_completion_length=max_completion_length,
        stop_ids=stop_ids,
        temperature=temperature,
        generator=generator,
        truncation=truncation,
        fast=fast,
    )
    completions = [
        _continuation(tokenizer, ids, tokens[mask].tolist())
        for ids, tokens, mask in zip(prompt_ids, sampled.tokens_NT, sampled.mask_NT, strict=True)
    ]
    return Rollout(
        list(prompts),
        prompt_ids,
        completions,
        sampled.tokens_NT,
        sampled.mask_NT,
        sampled.logp_NT,
        sampled.ended_N,
    )


def score(
    rollout: Rollout,
    reward: Reward,
    reference: Reference,
    *,
    temperature: float,
    coef: float,
    kl_in_reward: bool,
    missing_end: float | None = None,
    fast: bool = True,
) -> Scored:
    """`scored` of a rollout by its reward and its reference. Raises RewardError."""
    given = rewarded(rollout, reward)
    ref_logp_NT = reference_logp(rollout, reference, temperature, fast=fast)
    return scored(rollout, given, ref_logp_NT, coef=coef, kl_in_reward=kl_in_reward, missing_end=missing_end)


def rewarded(rollout: Rollout, reward: Reward) -> Given:
    """The rewards of a rollout as `rewards.score` gives them. Raises RewardError, also if none is scored."""
    totals, components = rewards.score(
        reward, [prompt.text for prompt in rollout.prompts], rollout.completions, columns(rollout.prompts)
    )
    if all(total is None for total in totals):
        raise RewardError(f"the reward scored none of {len(totals)} completions (None for each)")
    return totals, components


def reference_logp(
    rollout: Rollout, reference: Reference, temperature: float, *, fast: bool = True
) -> Tensor:
    """ref_logp_NT: the reference's log-probs of a rollout's tokens, in nats."""
    with reference.model() as model:
        return likelihoods(model, rollout, temperature, fast=fast)


def scored(
    rollout: Rollout,
    given: Given,
    ref_logp_NT: Tensor,
    *,
    coef: float,
    kl_in_reward: bool,
    missing_end: float | None = None,
) -> Scored:
    """Rewards and reference log-probs of a rollout, and the token rewards that advantages are made from.

    coef (reward per nat) prices k1 on every token where KL stands in the reward. missing_end: the score of
    every completion without its required end (ended_N), whatever the reward says of it; its components stay
    as they were given. A completion that the reward does not score has scored_N False and no reward.
    """
    totals, components = given
    device = rollout.logp_NT.device
    scored_N = torch.tensor([total is not None for total in totals], device=device)
    reward_N = torch.tensor([total or 0.0 for total in totals], dtype=torch.float64, device=device)
    if missing_end is not None:
        reward_N = torch.where(rollout.ended_N, reward_N, missing_end)
        scored_N = scored_N | ~rollout.ended_N
    mask_NT = rollout.completion_mask_NT
    kl_NT = k1(rollout.logp_NT, ref_logp_NT) if kl_in_reward else torch.zeros_like(ref_logp_NT)
    token_reward_NT = token_rewards(reward_N.to(kl_NT.dtype), mask_NT, kl_NT, coef)
    return Scored(rollout, reward_N, scored_N, components, ref_logp_NT, token_reward_NT)


def state_rewards(scored: Scored, coef: float) -> Tensor:
    """Rewards for a critic: -coef * k1 on leaving each state by a token, the score on the finished text.

    -> (N, U), 0 beyond; without gradient.
    """
    rollout = scored.rollout
    kl_NT = k1(rollout.logp_NT, scored.ref_logp_NT)
    states_NU = state_mask(rollout.completion_mask_NT)
    return token_rewards(
        scored.reward_N.to(kl_NT.dtype), states_NU, torch.nn.functional.pad(kl_NT, (0, 1)), coef
    )


def sample_columns(
    scored: Scored, advantage_NT: Tensor, spans: Callable[[str, str], list[tuple[int, int]]]
) -> dict[str, list[object]]:
    """A scored rollout as the columns of samples.parquet; sums over a sequence are in nats."""
    rollout = scored.rollout
    mask_NT = rollout.completion_mask_NT
    length_N = mask_NT.sum(1)
    logp_N, ref_logp_N = rollout.logp_NT.double().sum(1), scored.ref_logp_NT.double().sum(1)
    texts = [prompt.text for prompt in rollout.prompts]
    rows: dict[str, list[object]] = {
        "prompt": list(texts),
        "completion": list(rollout.completions),
        "prompt_ids": list(rollout.prompt_ids),
        "completion_ids": [
            ids[mask].tolist() for ids, mask in zip(rollout.completion_ids_NT, mask_NT, strict=True)
        ],
        "reward": [
            reward if is_scored else None
            for reward, is_scored in zip(scored.reward_N.tolist(), scored.scored_N.tolist(), strict=True)
        ],
        "kl": (logp_N - ref_logp_N).tolist(),
        "logp": logp_N.tolist(),
        "ref_logp": ref_logp_N.tolist(),
        # The mean over a completion's tokens: the advantage itself unless a critic makes it per token.
        "advantage": ((advantage_NT * mask_NT).sum(1) / length_N).tolist(),
        "ended": rollout.ended_N.tolist(),
        "spans": [
            [list(span) for span in spans(text, completion)]
            for text, completion in zip(texts, rollout.completions, strict=True)
        ],
    }
    if len(scored.components) > 1:
        rows |= {f"reward/{name}": list(values) for name, values in scored.components.items()}
    return rows


def _continuation(tokenizer: PreTrainedTokenizerBase, prompt: list[int], completion: list[int]) -> str:
    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    whole, start = text(prompt + completion), text(prompt)
    return whole.removeprefix(start) if whole.startswith(start) else text(completion)
