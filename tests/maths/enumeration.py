"""A tabular policy over every sequence of a tiny vocabulary, so that expectations are sums and not samples.

Token 0 ends a sequence; a sequence also ends at the length limit. theta has one row of logits per prefix.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from talltree.algorithms import Algorithm
from talltree.maths import advantages, kl, logprobs
from talltree.maths.advantages import MovingBaseline

STOP = 0
EXACT = 1e-12
START = MovingBaseline()


class Space(NamedTuple):
    """All N sequences: tokens, mask (stop token included), the row of theta behind each position, rewards."""

    tokens_NT: Tensor
    mask_NT: Tensor
    state_NT: Tensor
    reward_N: Tensor
    theta: Tensor
    ref_theta: Tensor


def all_sequences(vocabulary: int, length: int) -> list[tuple[int, ...]]:
    """[0], [1, 0], [1, 1], ... : each sequence ends with its first 0 or at the length limit."""
    ended = [
        (*prefix, STOP)
        for size in range(length)
        for prefix in itertools.product(range(1, vocabulary), repeat=size)
    ]
    cut = [
        (*prefix, last)
        for prefix in itertools.product(range(1, vocabulary), repeat=length - 1)
        for last in range(1, vocabulary)
    ]
    return ended + cut


def space(vocabulary: int = 3, length: int = 2, seed: int = 0) -> Space:
    """The whole space with random policy, reference and rewards, in float64."""
    generator = torch.Generator().manual_seed(seed)
    sequences = all_sequences(vocabulary, length)
    prefixes = sorted({sequence[:t] for sequence in sequences for t in range(len(sequence))})
    tokens = torch.zeros(len(sequences), length, dtype=torch.long)
    mask = torch.zeros(len(sequences), length, dtype=torch.bool)
    state = torch.zeros(len(sequences), length, dtype=torch.long)
    for n, sequence in enumerate(sequences):
        for t, token in enumerate(sequence):
            tokens[n, t], mask[n, t], state[n, t] = token, True, prefixes.index(sequence[:t])

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = len(prefixes)
    theta = normal(rows, vocabulary).requires_grad_()
    return Space(tokens, mask, state, 2 * normal(len(sequences)), theta, normal(rows, vocabulary))


def sequence_logp(world: Space, theta: Tensor) -> Tensor:
    """Log-prob of every sequence, written out token by token without the functions under test."""
    totals = []
    for tokens, mask, state in zip(world.tokens_NT, world.mask_NT, world.state_NT, strict=True):
        terms = [
            theta[s, v] - theta[s].exp().sum().log() for v, m, s in zip(tokens, mask, state, strict=True) if m
        ]
        totals.append(torch.stack(terms).sum())
    return torch.stack(totals)


def true_kl(world: Space, theta: Tensor, ref_theta: Tensor) -> Tensor:
    """KL(theta || ref_theta) over whole sequences, in nats."""
    logp, ref_logp = sequence_logp(world, theta), sequence_logp(world, ref_theta)
    return (logp.exp() * (logp - ref_logp)).sum()


def true_gradient(world: Space, coef: float = 0.0) -> Tensor:
    """Gradient of -(E[reward] - coef * KL(policy || reference)) by autograd of the exact sum."""
    objective = (sequence_logp(world, world.theta).exp() * world.reward_N).sum()
    objective = objective - coef * true_kl(world, world.theta, world.ref_theta)
    return torch.autograd.grad(-objective, world.theta)[0]


def token_logps(world: Space, theta: Tensor) -> Tensor:
    """Log-prob of every token by the library's own function, 0 in the padding."""
    logp_NT = logprobs.token_logprobs(theta[world.state_NT], world.tokens_NT)
    return torch.where(world.mask_NT, logp_NT, 0.0)


def expected_gradient(
    world: Space,
    row: Algorithm,
    batch: int,
    coef: float = 0.0,
    baseline: MovingBaseline = START,
    scored: Sequence[bool] | None = None,
    mask_NT: Tensor | None = None,
    token_rewards=advantages.token_rewards,
    k1=kl.k1,
) -> Tensor:
    """E[gradient of the row's loss] over every batch of that many sequences drawn from the policy."""
    mask_NT = world.mask_NT if mask_NT is None else mask_NT
    scored_N = torch.ones(batch, dtype=torch.bool) if scored is None else torch.tensor(scored)
    logp_NT = token_logps(world, world.theta)
    k1_NT = k1(logp_NT, token_logps(world, world.ref_theta))
    probability = sequence_logp(world, world.theta).exp().tolist()
    expected = torch.zeros((), dtype=torch.float64)
    for drawn in itertools.product(range(len(probability)), repeat=batch):
        index = torch.tensor(drawn)
        reward_NT = token_rewards(world.reward_N[index], mask_NT[index], k1_NT[index], coef)
        advantage_NT, _ = row.advantage(reward_NT, mask_NT[index], scored_N, batch, baseline)
        weights_NT = row.weights(mask_NT[index], dtype=torch.float64)
        loss = (weights_NT * row.surrogate(logp_NT[index], logp_NT[index].detach(), advantage_NT)).sum()
        expected = expected + math.prod(probability[i] for i in drawn) * loss
    return torch.autograd.grad(expected, world.theta)[0]


def assert_equal(actual: Tensor, expected: Tensor | float, tolerance: float = EXACT) -> None:
    """Equal shape and, element by element, equal within the tolerance; NaN never equals."""
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    error = (actual - expected).abs().max().item() if actual.numel() else 0.0
    assert error <= tolerance, f"off by {error}: {actual} is not {expected}"
