"""The policy and its frozen reference: full weights or LoRA adapters, and which parameters train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch import nn

from talltree.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_lora(
    model: PreTrainedModel, r: int, alpha: float, seed: int, task_type: str | None = "CAUSAL_LM"
) -> PreTrainedModel:
    """LoRA adapters on every linear layer but the vocabulary head; at the start they change nothing (B = 0).

    The adapter's dropout is 0: the policy that samples is the one that is scored. task_type None is for a
    body without a head. Hu et al. 2021, arXiv:2106.09685.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(
            model,
            LoraConfig(
                r=r,
                lora_alpha=alpha,  # type: ignore[arg-type]
                lora_dropout=0.0,
                target_modules="all-linear",
                fan_in_fan_out=type(model).__name__ in ("GPT2LMHeadModel", "GPT2Model"),
                task_type=task_type,
            ),
        )
    return adapted.eval()


class Reference:
    """The policy as it was when this was made: a true copy, or the base with adapters off under LoRA.

    Loading it again by name would miss whatever has been done to the policy since it was loaded. `other` is
    another model to take instead: KL then stands against that one.
    """

    def __init__(self, policy: PreTrainedModel, other: PreTrainedModel | None = None) -> None:
        self._policy: Any = policy
        if other is None and not hasattr(policy, "disable_adapter"):
            other = deepcopy(policy)
        self._copy = None if other is None else other.requires_grad_(False).eval()

    @contextmanager
    def model(self) -> Iterator[PreTrainedModel]:
        """The reference for the length of a with block."""
        if self._copy is not None:
            yield self._copy
        else:
            with self._policy.disable_adapter():
                yield self._policy


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that an update changes, by name; tied ones once. Raises ConfigError if there is none."""
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise ConfigError("the model has no trainable parameter")
    return found
