"""One optimiser update: optimisers, learning rate, gradient, clipping."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from talltree.errors import ConfigError, ContractError
from talltree.models.optim import Muon, decay_groups, schedule
from talltree.models.score import tokens_at_a_time
from talltree.models.shape import dimensions
from talltree.stages.pretrain.config import Config
from talltree.stages.pretrain.objective import Objective
from talltree.stages.pretrain.team import Team


def learning_rate_factor(config: Config, step: int) -> float:
    """Factor on the learning rate of update `step`, counted from 1; see `models.optim.schedule`."""
    plan = config.schedule
    return schedule(
        plan.name, step - 1, config.steps, plan.warmup_steps,
        decay_share=plan.decay_share, final_factor=plan.final_factor,
    )  # fmt: skip


def make_optimizers(model: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW over all parameters, or Muon for the matrices of the blocks and AdamW for the rest.

    Weight decay falls on parameters with two or more dimensions, not on norms and biases; under muon not on
    the embedding either. GPT-2 keeps its matrices transposed, which neither optimiser notices.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    embeddings |= {id(model.get_output_embeddings().weight)}  # type: ignore[operator]
    matrices = [p for p in model.parameters() if p.dim() >= 2 and id(p) not in embeddings]
    tables = [p for p in model.parameters() if p.dim() >= 2 and id(p) in embeddings]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    with_muon = config.optimizer == "muon"
    rest = [{"params": tables + vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(
        rest if with_muon else decay_groups(matrices + tables + vectors, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        fused=True,
    )
    if not with_muon:
        return [adamw]
    return [Muon(matrices, config.muon_learning_rate, weight_decay=config.weight_decay), adamw]


def peak_rates(config: Config) -> list[float]:
    """Peak learning rate of each optimiser that `make_optimizers` gives."""
    if config.optimizer == "muon":
        return [config.muon_learning_rate, config.learning_rate]
    return [config.learning_rate]


def rows_at_a_time(config: Config, team: Team) -> int:
    """Rows of one forward and backward pass of one process."""
    mine = config.batch_size // team.size
    if config.micro_batch_size is not None:
        return min(config.micro_batch_size, mine)
    return min(mine, max(1, tokens_at_a_time(team.device) // dimensions(config.model).context))


def update(
    objective: nn.Module,
    optimizers: Sequence[Any],
    batch: Tensor,
    micro_rows: int,
    max_grad_norm: float,
    team: Team,
) -> tuple[float, float]:
    """One optimiser update on this process's rows of context + 1 tokens -> (mean loss in nats/token, norm).

    The loss is divided by the token count of the whole batch of all processes, so neither micro-batches nor
    the number of processes change it. Raises ContractError, with the weights untouched, when loss or gradient
    is not finite.
    """
    total = 0.0
    targets = batch[:, 1:].numel() * team.size
    parts = batch.split(micro_rows)
    for number, rows in enumerate(parts):
        is_last = number == len(parts) - 1
        with nullcontext() if is_last or team.size == 1 else team.accelerator.no_sync(objective):
            # Several processes average their gradients, and ours are shares of one sum.
            loss = objective(rows[:, :-1], rows[:, 1:], team.size / targets)
            loss.backward()
        total += loss.item() / team.size
    (total,) = team.sums([total])
    norm = _whole(nn.utils.clip_grad_norm_(objective.parameters(), max_grad_norm)).item()
    if not (math.isfinite(total) and math.isfinite(norm)):
        raise ContractError(
            f"loss {total} with gradient norm {norm} is not finite; the weights were left as they were: "
            "set a lower learning_rate in config.yaml and continue from the last checkpoint"
        )
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total, norm


def _whole(norm: Tensor) -> Tensor:
    """A norm as a plain tensor: that of sharded gradients is spread over the processes."""
    full_tensor = getattr(norm, "full_tensor", None)
    return norm if full_tensor is None else full_tensor()


def compile_blocks(objective: Objective, device: torch.device) -> None:
    """Compiles the model's body in place, under its own names. Raises ConfigError without a C++ compiler."""
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise ConfigError("compile: torch.compile needs g++ or clang++ on a CPU, and none is in the PATH")
    objective.model.base_model.compile()
