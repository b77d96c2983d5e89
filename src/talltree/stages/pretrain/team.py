"""The processes of a run: one alone, or several that `accelerate launch` started.

Alone there is no wrapper and no collective. Several hold the same model (DDP) or a share of it each (FSDP
version 2), read different rows of the same batch, and only the main one writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from talltree.errors import ConfigError, TallTreeError
from talltree.stages.pretrain.config import Config
from talltree.stages.pretrain.objective import Objective

T = TypeVar("T")
USER_ERROR = 2


@dataclass(frozen=True)
class Team:
    """rank 0 is the main process; accelerator is None for a process alone."""

    accelerator: Any
    rank: int
    size: int
    device: torch.device
    is_sharded: bool

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def say(self, text: str) -> None:
        """Prints on the main process."""
        if self.is_main:
            print(text, flush=True)

    def leave(self) -> None:
        """Closes the connections; a process that ends with them open may abort."""
        if self.accelerator is not None:
            self.accelerator.end_training()

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes, in float64."""
        if self.size == 1:
            return list(values)
        # A GPU's collectives need a tensor on the GPU.
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def from_main(self, value: T) -> T:
        """The main process's value, on every process."""
        if self.size == 1:
            return value
        held = [value]
        torch.distributed.broadcast_object_list(held, src=0)
        return held[0]

    def on_main(self, work: Callable[[], T]) -> T | None:
        """What `work` gives on the main process, None elsewhere; all go on when it is done.

        A TallTreeError is raised on the main process, and the others end without a word of their own.
        """
        found, error = None, None
        if self.is_main:
            try:
                found = work()
            except TallTreeError as raised:
                error = raised
        has_failed = self.from_main(error is not None)
        if error is not None:
            raise error
        if has_failed:
            raise SystemExit(USER_ERROR)
        return found

    def wrap(
        self, objective: Objective, optimizers: list[torch.optim.Optimizer]
    ) -> tuple[nn.Module, list[Any]]:
        """Objective and optimisers as this team trains them."""
        if self.is_sharded:
            wrapped, *ready = self.accelerator.prepare(objective, *optimizers)
            return wrapped, ready
        if self.size == 1:
            return objective, list(optimizers)
        return self.accelerator.prepare(objective), list(optimizers)

    def whole_model(self, objective: nn.Module) -> PreTrainedModel | None:
        """The model with all its weights; where it is sharded, a copy on the main process's CPU alone."""
        if not self.is_sharded:
            return cast(Objective, getattr(objective, "module", objective)).model
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(objective, options=options)
        if not self.is_main:
            return None
        sharded = cast(Objective, objective).model
        with torch.device("meta"):
            model = type(sharded)(deepcopy(sharded.config))
        model.to_empty(device="cpu")
        found = {name.removeprefix("model."): value for name, value in weights.items()}
        # Buffers that are computed rather than stored (rotary frequencies) are not in the state.
        for name, buffer in sharded.named_buffers():
            model.get_buffer(name).copy_(buffer.to("cpu"))
        model.load_state_dict(found, strict=False)
        model.tie_weights()
        return model.eval()

    def optimizer_states(self, objective: nn.Module, optimizers: Sequence[Any]) -> list[dict[str, Any]]:
        """Each optimiser's whole state as torch's own state_dict has it, whatever the number of processes."""
        if not self.is_sharded:
            return [optimizer.state_dict() for optimizer in optimizers]
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        found = []
        for optimizer in optimizers:
            whole: Any = get_optimizer_state_dict(objective, optimizer.optimizer, options=options)
            number = {name: place for place, name in enumerate(_names(objective, optimizer))}
            found.append(
                {
                    "state": {number[name]: state for name, state in whole["state"].items()},
                    "param_groups": [
                        {**group, "params": [number[name] for name in group["params"]]}
                        for group in whole["param_groups"]
                    ],
                }
            )
        return found

    def load_optimizer_states(
        self, objective: nn.Module, optimizers: Sequence[Any], states: Sequence[dict[str, Any]]
    ) -> None:
        """Puts back what `optimizer_states` gave, in a team of any size."""
        for optimizer, state in zip(optimizers, states, strict=True):
            if not self.is_sharded:
                optimizer.load_state_dict(state)
                continue
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

            names = _names(objective, optimizer)
            named: Any = {
                "state": {names[number]: each for number, each in state["state"].items()},
                "param_groups": [
                    {**group, "params": [names[number] for number in group["params"]]}
                    for group in state["param_groups"]
                ],
            }
            options = StateDictOptions(full_state_dict=True)
            set_optimizer_state_dict(objective, optimizer.optimizer, optim_state_dict=named, options=options)


def _names(objective: nn.Module, optimizer: Any) -> list[str]:
    """Names of the parameters of an optimiser in the order of its groups."""
    name_of = {id(parameter): name for name, parameter in objective.named_parameters()}
    return [name_of[id(each)] for group in optimizer.param_groups for each in group["params"]]


def launched() -> tuple[int, int]:
    """Rank and number of the processes that a launcher started, from the environment that it sets."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def gather_team(config: Config) -> Team:
    """The team that this process belongs to, alone or launched.

    Raises ConfigError, on every process, for a batch that does not divide, bfloat16 on a CPU, and what FSDP
    cannot do.
    """
    _, size = launched()
    is_sharded = os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"
    has_gpu = torch.cuda.is_available()
    if config.batch_size % size:
        below = config.batch_size - config.batch_size % size
        raise ConfigError(
            f"batch_size {config.batch_size} is not divisible by the {size} processes of this launch; try "
            f"{' or '.join(str(each) for each in (below, below + size) if each)}"
        )
    if config.dtype == "bfloat16" and not has_gpu:
        raise ConfigError("dtype bfloat16 is for GPUs, and torch sees none here; use --dtype float32")
    if is_sharded and not has_gpu:
        raise ConfigError("FSDP is for GPUs, and torch sees none here; launch with --multi_gpu instead")
    if is_sharded and config.optimizer == "muon":
        raise ConfigError("optimizer muon needs whole matrices, which FSDP cuts up; use --optimizer adamw")
    if size == 1 and not is_sharded:
        return Team(None, 0, 1, torch.device("cuda" if has_gpu else "cpu"), False)
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not has_gpu, mixed_precision="no")
    if is_sharded and accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ConfigError("FSDP version 1 flattens the weights; launch with --fsdp_version 2")
    return Team(accelerator, accelerator.process_index, size, accelerator.device, is_sharded)
