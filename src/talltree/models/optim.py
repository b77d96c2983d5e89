"""Optimisers and learning-rate schedules: groups by parameter, the rate as a pure function of the update."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn


def build_optimizer(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD without momentum, or AdamW; weight decay falls on matrices alone, not on norms and biases."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), eps=1e-8)


def schedule(kind: str, update: int, updates: int, warmup: int) -> float:
    """Factor on the learning rate of update number `update` (from 0) of `updates`.

    Rises linearly over `warmup` updates, then "constant", "linear" to 0 or "cosine" to 0 at the end.
    """
    if update < warmup:
        return (update + 1) / warmup
    progress = (update - warmup) / max(updates - warmup, 1)
    match kind:
        case "constant":
            return 1.0
        case "linear":
            return max(1.0 - progress, 0.0)
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
        case _:
            raise ValueError(f"schedule {kind!r} is unknown; use constant, linear or cosine")


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """The same rate in every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
