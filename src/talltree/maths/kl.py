"""KL divergence from the reference: sampled estimators, the exact sum over the vocabulary, and units.

Every value is in nats and positive where the policy has moved away from the reference. Estimators are for
tokens sampled from the policy itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from talltree.maths.logprobs import logprobs
from talltree.maths.weights import masked_mean

BLOG_POSITIONS = 99
"""Predicted positions in the alliteration study: 100 tokens, prompt included."""


def k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Log-ratio estimator: k1 = logp - ref_logp; E[k1] = KL(policy || reference).

    Any one shape -> the same. Single values may be negative. For rewards and reports; its gradient as a loss
    is zero in expectation. Schulman 2020, "Approximating KL divergence".
    """
    return logp - ref_logp


def k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Half the squared log-ratio: k2 = (logp - ref_logp)^2 / 2, biased as a value.

    Any one shape -> the same, never negative. As a loss it has the gradient of KL(policy || reference): of
    the whole sequence if given sequence sums, of each token with the text before it held fixed if given
    tokens.
    """
    return (logp - ref_logp).square() / 2


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Low-variance estimator: k3 = exp(d) - d - 1, d = ref_logp - logp; E[k3] = KL(policy || reference).

    Any one shape -> the same, never negative, 0 where the two agree. As a loss over tokens it has the
    gradient of KL(reference || policy). Schulman 2020; the KL term of GRPO, arXiv:2402.03300.
    """
    log_ratio = ref_logp - logp
    return torch.expm1(log_ratio) - log_ratio


def exact_kl(logits: Tensor, ref_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Exact KL over the vocabulary: sum_v p_v (log p_v - log ref_v), both at the sampling temperature.

    logits and ref_logits (..., V) -> (...), differentiable. Infinite where the policy gives weight to a token
    that the reference excludes; a token that the policy excludes contributes 0.
    """
    logp, ref_logp = logprobs(logits, temperature), logprobs(ref_logits, temperature)
    log_ratio = (logp - ref_logp).masked_fill(logp == -torch.inf, 0.0)
    return (logp.exp() * log_ratio).sum(-1)


def sequence_kl(k_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """KL of each sequence: the sum of its tokens' estimates, in nats per sequence.

    k_NT from k1 or k3 -> (N,). 0 for an empty row; what stands in the padding never enters.
    """
    return torch.where(mask_NT, k_NT, 0.0).sum(-1)


def token_kl(k_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """KL per token: the mean estimate over all completion tokens of the batch, in nats per token.

    k_NT from k1 or k3 -> scalar. Long sequences count more; 0 for a batch without a token.
    """
    return masked_mean(k_NT, mask_NT)


KL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k2": k2, "k3": k3}


def kl_loss(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The estimator to use as a loss: "k2" has the gradient of KL(policy || reference), "k3" of the reverse.

    Raises ValueError for "k1", whose expected gradient is zero, and for any other name.
    """
    if kind == "k1":
        raise ValueError(
            "KL loss 'k1' has zero expected gradient; use 'k3' or 'k2', or put the KL in the reward"
        )
    if kind not in KL_LOSSES:
        raise ValueError(f"KL loss {kind!r} is unknown; use one of {', '.join(KL_LOSSES)}")
    return KL_LOSSES[kind]


def coef_from_blog_beta(beta: float, positions: int = BLOG_POSITIONS) -> float:
    """KL coefficient per nat of sequence KL from the study's beta, which multiplies a mean over positions.

    coef = beta / positions: its 10, 40 and 100 are 0.10, 0.40 and 1.01. Raises ValueError if beta < 0 or
    positions < 1.
    """
    _check_unit(beta, "beta", positions)
    return beta / positions


def blog_beta_from_coef(coef: float, positions: int = BLOG_POSITIONS) -> float:
    """The study's beta from a coefficient per nat: positions * coef, refusing as its inverse."""
    _check_unit(coef, "coef", positions)
    return coef * positions


def _check_unit(value: float, name: str, positions: int) -> None:
    if not value >= 0:
        raise ValueError(
            f"{name} {value} must be 0 or more; a negative one pays for drifting from the reference"
        )
    if positions < 1:
        raise ValueError(f"positions {positions} must be 1 or more; the study's is {BLOG_POSITIONS}")
