"""Optimisers and learning-rate schedules: groups by parameter, the rate as a pure function of the update."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from talltree.maths.muon import orthogonalise

SCHEDULES = ("constant", "linear", "cosine", "wsd")
RATE = "rate"
"""Key of a parameter group that takes so many times the learning rate."""


def build_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    *,
    eps: float = 1e-8,
    others: Iterable[nn.Parameter] = (),
    others_rate: float = 1.0,
) -> torch.optim.Optimizer:
    """SGD without momentum ("sgd"), or AdamW ("adamw") with betas 0.9 and 0.95, over `decay_groups`.

    others: parameters that take others_rate times the learning rate, as a critic's may.
    """
    groups = decay_groups(parameters, weight_decay)
    groups += [
        group | {RATE: others_rate, "lr": learning_rate * others_rate}
        for group in decay_groups(others, weight_decay)
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate)
    # fused: one pass over weights, gradients and moments instead of a dozen.
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), eps=eps, fused=True)


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: those of two or more dimensions with weight decay, norms and biases without.

    By dimension, not by name: a name such as LayerNorm would miss GPT-2's ln_1. An empty group is left out.
    """
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def schedule(
    kind: str, update: int, updates: int, warmup: int, *, decay_share: float = 1.0, final_factor: float = 0.0
) -> float:
    """Factor on the learning rate of update number `update` (from 0) of `updates`.

    (update + 1) / warmup while it warms up. Then, with x from 0 to 1 over the updates left, 1 for "constant",
    else final_factor + (1 - final_factor) h with h = 1 - x for "linear", (1 + cos(pi x)) / 2 for "cosine",
    and for "wsd" 1 until the last decay_share of all updates, linear from there. Raises ValueError for
    another kind.
    """
    if kind not in SCHEDULES:
        raise ValueError(f"schedule {kind!r} is unknown; use {', '.join(SCHEDULES)}")
    if update < warmup:
        return (update + 1) / warmup
    if kind == "constant":
        return 1.0
    start = warmup
    if kind == "wsd":
        start = max(start, updates - math.ceil(decay_share * updates))
    x = min(max(update - start, 0) / max(updates - start, 1), 1.0)
    height = 0.5 * (1.0 + math.cos(math.pi * x)) if kind == "cosine" else 1.0 - x
    return final_factor + (1.0 - final_factor) * height


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """The same rate in every group, but for those that take a multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get(RATE, 1.0)


def clipped_norm(optimizer: torch.optim.Optimizer, max_norm: float | None) -> float:
    """The L2 norm of the whole gradient, which is then clipped to max_norm unless that is None.

    A norm that is not finite leaves the gradient as it is.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm is not None and math.isfinite(float(norm)):
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)


class Muon(torch.optim.Optimizer):
    """W <- (1 - lr * weight_decay) W - lr * 0.2 sqrt(max(rows, columns)) * orthogonalise(g + momentum * m).

    m <- momentum * m + g. An update's root mean square is then about 0.2, as AdamW's is. For the matrices
    between embedding and head only. Raises ValueError for a parameter that is not a matrix. The scale is of
    Liu et al. 2025, arXiv:2502.16982. torch.optim.Muon iterates in bfloat16, which a CPU without bfloat16
    units does 25 times slower than this float32.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() != 2:
                    raise ValueError(
                        f"Muon is for matrices; got a parameter of shape {tuple(parameter.shape)}"
                    )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
                update = orthogonalise(parameter.grad.add(momentum, alpha=group["momentum"]))
                scale = 0.2 * max(parameter.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)
