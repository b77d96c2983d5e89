"""The optimum of E[r] - beta * KL(pi || ref) is pi* ~ ref * exp(r / beta): sampled updates must reach it."""

import torch

from talltree.algorithms import algorithm
from talltree.maths import advantages, kl, logprobs
from talltree.maths.advantages import MovingBaseline

RLOO = algorithm("rloo")
ARMS, BATCH, STEPS = 5, 64, 250


def trained_distance(seed, row=RLOO, k1=kl.k1):
    """Total variation between the optimum of a random bandit and the policy that sampled updates end with."""
    generator = torch.Generator().manual_seed(seed)
    reward_V = torch.randn(ARMS, generator=generator, dtype=torch.float64)
    ref_logits_V = torch.randn(ARMS, generator=generator, dtype=torch.float64)
    beta = 0.5 + torch.rand((), generator=generator, dtype=torch.float64).item()
    optimum_V = torch.softmax(ref_logits_V + reward_V / beta, 0)

    logits_V = ref_logits_V.clone().requires_grad_()
    optimiser = torch.optim.SGD([logits_V], lr=2 / beta)
    mask_NT = torch.ones(BATCH, 1, dtype=torch.bool)
    scored_N = torch.ones(BATCH, dtype=torch.bool)
    for _ in range(STEPS):
        probability_V = torch.softmax(logits_V.detach(), 0)
        token_NT = torch.multinomial(probability_V, BATCH, replacement=True, generator=generator).view(-1, 1)
        logp_NT = logprobs.token_logprobs(logits_V.expand(BATCH, 1, ARMS), token_NT)
        ref_logp_NT = logprobs.token_logprobs(ref_logits_V.expand(BATCH, 1, ARMS), token_NT)
        kl_NT = k1(logp_NT, ref_logp_NT)
        reward_NT = advantages.token_rewards(reward_V[token_NT.squeeze(1)], mask_NT, kl_NT, beta)
        advantage_NT, _ = row.advantage(reward_NT, mask_NT, scored_N, BATCH, MovingBaseline())
        loss = (row.weights(mask_NT) * row.surrogate(logp_NT, logp_NT.detach(), advantage_NT)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return (torch.softmax(logits_V.detach(), 0) - optimum_V).abs().sum().item() / 2


def test_sampled_updates_reach_the_optimum_on_eight_bandits(k1=kl.k1, row=RLOO, seeds=range(8)):
    distances = [trained_distance(seed, row, k1) for seed in seeds]
    assert max(distances) < 0.005, distances
