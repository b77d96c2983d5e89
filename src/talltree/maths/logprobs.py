"""Log-probs and entropy of the distribution that was really sampled."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def logprobs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probs of the whole vocabulary: log softmax(logits / temperature), in nats.

    logits (..., V) -> (..., V), float32, or float64 where the logits are. Raises ValueError unless
    temperature is finite and positive. A logit of -inf (a token filtered out) stays -inf.

    By logsumexp, because torch's own log_softmax adds the vocabulary up one by one in float32 on a CPU: with
    50,000 tokens and one of them likely it is off by up to 1e-4 nats, this by 2e-6.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(
            f"temperature {temperature} must be finite and above 0; 1.0 samples the model itself"
        )
    wide = logits if logits.dtype == torch.float64 else logits.float()
    scaled = wide / temperature
    return scaled - torch.logsumexp(scaled, dim=-1, keepdim=True)


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-prob of each token: log softmax(logits / temperature)[token], in nats.

    logits (..., V), where the logits at a position predict the token at the same position; tokens (...) ->
    (...). Raises ValueError if the leading shapes differ, because gather would accept fewer tokens silently.
    """
    if tokens.shape != logits.shape[:-1]:
        raise ValueError(
            f"tokens {tuple(tokens.shape)} and logits {tuple(logits.shape)} differ in leading shape; "
            "pass the logits of exactly these tokens"
        )
    return logprobs(logits, temperature).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of softmax(logits / temperature): -sum p log p, in nats.

    logits (..., V) -> (...), between 0 and log V. A token of probability 0 contributes 0, in the value and in
    the gradient.
    """
    logp = logprobs(logits, temperature)
    return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)
