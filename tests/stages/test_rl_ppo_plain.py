"""PPO's updates against a plain implementation: text by text, in float64, every parameter compared."""

from typing import NamedTuple

import pytest
import torch

from talltree.algorithms import algorithm
from talltree.maths.advantages import state_mask
from talltree.models.critic import build_critic
from talltree.models.optim import build_optimizer
from talltree.models.policy import Reference
from talltree.models.score import likelihoods
from talltree.rollout import score, state_rewards
from talltree.stages.rl.update import Objective, Passes, update
from talltree.stages.rl.value import ValueObjective
from talltree.types import Prompt, Rollout

from ..tiny import gpt2, llama, tokenizer

PROMPTS = [[3, 7, 1, 9], [5], [11, 2], [6, 6, 6], [5], [4, 4]]
COMPLETIONS = [[8, 2, 7, 7, 0], [0], [9, 12, 3], [1, 2, 3, 4, 5, 6], [13, 14], [20, 7, 0]]
SCORES = [1.5, -2.0, 0.25, None, 3.0, 0.5]
TEMPERATURE, COEF, GAMMA, LAM, VF_COEF, VALUE_CLIP, CLIP = 0.7, 0.3, 0.98, 0.9, 0.1, 0.05, 0.1
RATE = 0.02


class Setting(NamedTuple):
    """A policy, its critic and what was sampled."""

    policy: torch.nn.Module
    critic: object
    rollout: Rollout
    reference: torch.nn.Module


def setting(body="separate", family=llama, order=range(6), junk=0):
    """The texts in some order, their padding holding `junk`."""
    policy, reference = family(seed=0).double(), family(seed=1).double()
    critic = build_critic(
        policy, tokenizer(), body=body, init_from=None, head="zero", lora=None, longest_text=12
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in critic.head.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
    prompts = [PROMPTS[i] for i in order]
    completions = [COMPLETIONS[i] for i in order]
    lengths = torch.tensor([len(tokens) for tokens in completions])
    mask_NT = torch.arange(6) < lengths.unsqueeze(1)
    ids_NT = torch.full((6, 6), junk)
    for row, tokens in enumerate(completions):
        ids_NT[row, : len(tokens)] = torch.tensor(tokens)
    rollout = Rollout(
        [Prompt(str(i)) for i in order], prompts, [""] * 6, ids_NT, mask_NT, torch.zeros(6, 6).double(),
        torch.ones(6, dtype=torch.bool),
    )  # fmt: skip
    rollout = Rollout(
        *(getattr(rollout, name) for name in ("prompts", "prompt_ids", "completions", "completion_ids_NT")),
        mask_NT,
        likelihoods(policy, rollout, TEMPERATURE),
        rollout.ended_N,
    )
    return Setting(policy, critic, rollout, reference)


def ours(made, *, iterations=2, mini_batches=1, parts=None, fast=True, temperature=TEMPERATURE, lam=LAM):
    """The library's updates; the loss figures, and every parameter afterwards."""
    policy, critic, rollout, reference = made
    scored = score(
        rollout,
        lambda prompts, completions, **_: [SCORES[int(prompt)] for prompt in prompts],
        Reference(policy, reference),
        temperature=temperature,
        coef=COEF,
        kl_in_reward=True,
        fast=fast,
    )
    row = algorithm("ppo", gamma=GAMMA, lam=lam, clip_low=CLIP, clip_high=CLIP)
    policy_mask_NT = rollout.completion_mask_NT & scored.scored_N.unsqueeze(1)
    states_NU = state_mask(policy_mask_NT)
    value_NU = critic.values(rollout)
    targets = row.advantage(state_rewards(scored, COEF), value_NU, states_NU, policy_mask_NT)
    objective = Objective(
        row, scored, targets.advantage_NT, temperature, COEF, None,
        ValueObjective(critic, value_NU, targets.return_NU, states_NU, VF_COEF, VALUE_CLIP),
    )  # fmt: skip
    optimizer = build_optimizer(
        "sgd", policy.parameters(), RATE, 0.0, others=critic.parameters().values(), others_rate=3.0
    )
    passes = Passes(iterations, mini_batches, parts, (CLIP, CLIP), None, False, fast, False)
    generator = torch.Generator().manual_seed(7)
    figures = update(policy, optimizer, objective, passes, lambda: RATE, generator)
    return figures, parameters(made)


def parameters(made):
    found = {name: each.detach().clone() for name, each in made.policy.named_parameters()}
    return found | {name: each.detach().clone() for name, each in made.critic.parameters().items()}


def plain(made, *, iterations=2, mini_batches=1):
    """The same by loops over texts and tokens, from the formulas alone; plain gradient descent."""
    policy, critic, rollout, reference = made
    body = policy.base_model if critic.is_shared else critic.body
    texts = [
        (prompt, [int(t) for t, m in zip(ids, mask, strict=True) if m])
        for prompt, ids, mask in zip(
            rollout.prompt_ids, rollout.completion_ids_NT, rollout.completion_mask_NT, strict=True
        )
    ]
    scores = [SCORES[int(prompt.text)] for prompt in rollout.prompts]
    rows = [n for n, given in enumerate(scores) if given is not None]

    def logp_of(model, n):
        prompt, tokens = texts[n]
        logits = model(torch.tensor([prompt + tokens])).logits[0]
        return [
            torch.log_softmax(logits[len(prompt) - 1 + t] / TEMPERATURE, -1)[token]
            for t, token in enumerate(tokens)
        ]

    def values_of(n):
        prompt, tokens = texts[n]
        hidden = body(torch.tensor([prompt + tokens])).last_hidden_state[0]
        return [
            (hidden[len(prompt) - 1 + s] * critic.head.weight[0]).sum() + critic.head.bias[0]
            for s in range(len(tokens) + 1)
        ]

    old_logp = {n: [float(x.detach()) for x in logp_of(policy, n)] for n in rows}
    ref_logp = {n: [float(x.detach()) for x in logp_of(reference, n)] for n in rows}
    old_value = {n: [float(x.detach()) for x in values_of(n)] for n in rows}
    reward = {
        n: [-COEF * (p - q) for p, q in zip(old_logp[n], ref_logp[n], strict=True)] + [scores[n]]
        for n in rows
    }
    pool = [r for n in rows for r in reward[n]]
    mean = sum(pool) / len(pool)
    deviation = (sum((r - mean) ** 2 for r in pool) / len(pool) + 1e-8) ** 0.5
    reward = {n: [(r - mean) / deviation + mean for r in reward[n]] for n in rows}
    advantage, target = {}, {}
    for n in rows:
        value, found, last = old_value[n], [], 0.0
        for s in reversed(range(len(value))):
            following = value[s + 1] if s + 1 < len(value) else 0.0
            last = reward[n][s] + GAMMA * following - value[s] + GAMMA * LAM * last
            found.insert(0, last)
        target[n] = [a + v for a, v in zip(found, value, strict=True)]
        advantage[n] = found[:-1]
    pool = [a for n in rows for a in advantage[n]]
    mean = sum(pool) / len(pool)
    deviation = (sum((a - mean) ** 2 for a in pool) / len(pool) + 1e-8) ** 0.5
    advantage = {n: [(a - mean) / deviation for a in advantage[n]] for n in rows}

    losses, value_losses = [], []
    generator = torch.Generator().manual_seed(7)
    for _ in range(iterations):
        order = torch.randperm(6, generator=generator) if mini_batches > 1 else torch.arange(6)
        for some in order.chunk(mini_batches):
            chosen = [n for n in some.tolist() if n in rows]
            policy_loss, value_loss = torch.zeros(()).double(), torch.zeros(()).double()
            for n in chosen:
                for logp, old, a in zip(logp_of(policy, n), old_logp[n], advantage[n], strict=True):
                    ratio = torch.exp(logp - old)
                    policy_loss = policy_loss + max(-a * ratio, -a * ratio.clamp(1 - CLIP, 1 + CLIP))
                for value, old, goal in zip(values_of(n), old_value[n], target[n], strict=True):
                    held = old + (value - old).clamp(-VALUE_CLIP, VALUE_CLIP)
                    value_loss = value_loss + max((value - goal) ** 2, (held - goal) ** 2) / 2
            policy_loss = policy_loss / sum(len(texts[n][1]) for n in chosen)
            value_loss = value_loss / sum(len(texts[n][1]) + 1 for n in chosen)
            own = list(critic.parameters().values())
            changing = [*policy.parameters(), *own]
            gradients = torch.autograd.grad(policy_loss + VF_COEF * value_loss, changing)
            with torch.no_grad():
                for place, (parameter, gradient) in enumerate(zip(changing, gradients, strict=True)):
                    rate = 3 * RATE if place >= len(changing) - len(own) else RATE
                    parameter -= rate * gradient
            losses.append(policy_loss.item())
            value_losses.append(value_loss.item())
    return sum(losses) / len(losses), sum(value_losses) / len(value_losses), parameters(made)


def assert_same_updates(made, other, options, planted=None):
    start = parameters(made)
    figures, found = ours(made, **options, **(planted or {}))
    kept = {name: options[name] for name in ("iterations", "mini_batches") if name in options}
    loss, value_loss, expected = plain(other, **kept)
    assert figures.loss == pytest.approx(loss, rel=1e-6, abs=1e-9)
    assert figures.value.loss == pytest.approx(value_loss, rel=1e-6, abs=1e-9)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # What changed is compared, rate times gradient: 1e-6 of its largest number.
        moved = tensor - start[name]
        error = (found[name] - tensor).abs().max()
        assert error <= 1e-6 * moved.abs().max() + 1e-12, name
    return {name: (tensor - start[name]).abs().max() for name, tensor in expected.items()}


@pytest.mark.parametrize("body", ["separate", "shared"])
@pytest.mark.parametrize("family", [llama, gpt2])
@pytest.mark.parametrize(
    "options",
    [
        {"iterations": 1},
        {"iterations": 3, "parts": 1},
        {"iterations": 3, "parts": 3},
        {"iterations": 2, "fast": False, "parts": 3},
        {"iterations": 2, "mini_batches": 2, "parts": 2},
    ],
    ids=str,
)
def test_loss_and_every_gradient_are_those_of_the_plain_loops(body, family, options):
    moved = assert_same_updates(setting(body, family), setting(body, family), options)
    assert all(distance > 1e-7 for distance in moved.values()), moved


@pytest.mark.parametrize(
    "planted",
    [{"temperature": 1.0}, {"lam": 1.0}, {"mini_batches": 2}],
    ids=["temperature", "lam", "batches"],
)
def test_a_planted_difference_is_found(planted):
    with pytest.raises(AssertionError):
        assert_same_updates(setting(), setting(), {"iterations": 2}, planted)


@pytest.mark.parametrize("body", ["separate", "shared"])
def test_neither_order_nor_padding_nor_parts_change_the_updates(body):
    """One part in the order given against three parts of another order, its padding full of tokens."""
    first, expected = ours(setting(body), parts=1)
    second, found = ours(setting(body, order=(5, 2, 0, 4, 1, 3), junk=17), parts=3)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-13, rtol=1e-9, msg=name)
    assert second.loss == pytest.approx(first.loss, rel=1e-9)
    assert second.value.loss == pytest.approx(first.value.loss, rel=1e-9)
    # Logged shares of a part are float32 quotients.
    assert second.approx_kl == pytest.approx(first.approx_kl, rel=1e-7)
    assert second.value.clip_share == pytest.approx(first.value.clip_share, rel=1e-7)
    assert 0 < second.value.clip_share < 1
    assert 0 < second.clip_share < 1
