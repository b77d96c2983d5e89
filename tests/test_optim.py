"""Optimisers step by hand, groups by dimension, and the schedule as a function of the update."""

import math

import pytest
import torch
from torch import nn

from talltree.models.optim import build_optimizer, clipped_norm, schedule, set_learning_rate

from .tiny import gpt2, llama


def parameters():
    return [nn.Parameter(torch.tensor([[1.0, -2.0]])), nn.Parameter(torch.tensor([3.0]))]


def with_gradients(made, scale=1.0):
    made[0].grad = scale * torch.tensor([[0.5, -1.0]])
    made[1].grad = scale * torch.tensor([2.0])
    return made


def test_the_norm_is_of_all_gradients_and_clips_them_together():
    made = [*parameters(), nn.Parameter(torch.tensor([7.0]))]  # the last one has no gradient
    optimizer = build_optimizer("sgd", made, learning_rate=0.1, weight_decay=0.0)
    for limit, expected in ((None, ([3.0, 0.0], 4.0)), (10.0, ([3.0, 0.0], 4.0)), (2.5, ([1.5, 0.0], 2.0))):
        made[0].grad, made[1].grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
        assert clipped_norm(optimizer, limit) == 5.0
        assert made[0].grad.tolist() == [pytest.approx(expected[0], abs=1e-5)]
        assert made[1].grad.item() == pytest.approx(expected[1], abs=1e-5)
    made[0].grad = torch.tensor([[math.inf, 1.0]])
    assert clipped_norm(optimizer, 1.0) == math.inf
    assert made[0].grad.tolist() == [[math.inf, 1.0]] and made[2].grad is None


def test_sgd_by_hand_and_without_momentum():
    made = parameters()
    optimizer = build_optimizer("sgd", made, learning_rate=0.1, weight_decay=0.0)
    for _ in range(2):
        with_gradients(made)
        optimizer.step()
    # Two equal gradients move twice the same way: w - 2 * 0.1 * g.
    torch.testing.assert_close(made[0].data, torch.tensor([[0.9, -1.8]]))
    torch.testing.assert_close(made[1].data, torch.tensor([2.6]))
    assert optimizer.state_dict()["state"] == {} or all(
        state.get("momentum_buffer") is None for state in optimizer.state.values()
    )


def test_adamw_by_hand():
    made = parameters()
    optimizer = build_optimizer("adamw", made, learning_rate=0.01, weight_decay=0.5)
    with_gradients(made)
    optimizer.step()
    # The first step is lr * sign(g); only the matrix decays: w * (1 - lr * 0.5) before it.
    expected = torch.tensor([[1.0 * 0.995 - 0.01, -2.0 * 0.995 + 0.01]])
    torch.testing.assert_close(made[0].data, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(made[1].data, torch.tensor([2.99]), atol=1e-6, rtol=0)
    with_gradients(made, scale=0.0)
    optimizer.step()
    # betas 0.9 and 0.95: m = 0.9 * 0.1 g / (1 - 0.81), v = 0.95 * 0.05 g^2 / (1 - 0.9025).
    move = 0.01 * (0.09 / 0.19) / math.sqrt(0.0475 / 0.0975)
    torch.testing.assert_close(made[1].data, torch.tensor([2.99 - move]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("model", [gpt2(), llama()], ids=["gpt2", "llama"])
def test_decay_falls_on_matrices_alone(name, model):
    """By dimension, not by name: a name such as LayerNorm would miss GPT-2's ln_1."""
    optimizer = build_optimizer(name, model.parameters(), 0.1, weight_decay=0.3)
    matrices, others = optimizer.param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert all(parameter.dim() >= 2 for parameter in matrices["params"])
    found = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert found == {id(parameter) for parameter in model.parameters()}
    norms = {id(parameter) for key, parameter in model.named_parameters() if "ln_" in key or "norm" in key}
    assert norms <= {id(parameter) for parameter in others["params"]}


def test_matrices_alone_make_one_group():
    optimizer = build_optimizer("adamw", parameters()[:1], 0.1, 0.0)
    assert len(optimizer.param_groups) == 1


def test_set_learning_rate():
    optimizer = build_optimizer("adamw", parameters(), 0.1, 0.0)
    set_learning_rate(optimizer, 0.02)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.02]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Two updates of warm-up, then four: progress 0, 1/4, 1/2, 3/4.
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
    ],
)
def test_schedules_by_hand(kind, expected):
    assert [schedule(kind, update, 6, 2) for update in range(6)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_the_ends_of_a_schedule(kind):
    assert schedule(kind, 0, 10, 0) == 1.0  # no warm-up: the peak at once, never 0
    end = 1.0 if kind == "constant" else 0.0
    assert schedule(kind, 10, 10, 0) == pytest.approx(end, abs=1e-12)
    assert schedule(kind, 15, 10, 0) == pytest.approx(end, abs=1e-12)  # past the end it stays there
    assert 0 < schedule(kind, 3, 4, 8) <= 0.5  # warm-up longer than the run
    assert schedule(kind, 0, 1, 1) == 1.0


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="'step' is unknown; use constant, linear, cosine, wsd"):
        schedule("step", 3, 10, 2)
