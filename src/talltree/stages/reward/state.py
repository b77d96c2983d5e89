"""Checkpoints of the reward stage: what is saved, and the way back, bit for bit.

The number of updates is the whole data position: batches and learning rate follow from it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from talltree import checkpoint
from talltree.models.policy import trainable
from talltree.models.reward_format import Format, from_dict
from talltree.models.reward_model import RewardModel, load_reward_model, save_reward_model
from talltree.run import Run
from talltree.stages.resuming import require_same_data, require_same_start
from talltree.stages.reward.config import Config
from talltree.stages.reward.parts import Parts


def save(config: Config, parts: Parts, start: Format, step: int, folder: Run) -> None:
    """Saves checkpoints/step-N and deletes surplus ones. start: the format before training."""

    def write(target: Path) -> None:
        learner = parts.learner
        if config.lora_r is None:
            save_reward_model(target, RewardModel(learner.members, parts.tokenizer, start))
        tree: dict[str, Any] = {
            "step": step,
            "base_sha256": parts.base_sha256,
            "start": start.to_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in learner.optimizers],
            "adapters": [trainable(m.model) for m in learner.members] if config.lora_r is not None else [],
        }
        checkpoint.save_state(target, tree)

    folder.save_checkpoint(step, write, config.keep_checkpoints)


def save_if_new(config: Config, parts: Parts, start: Format, step: int, folder: Run) -> None:
    """`save`, unless this step has its checkpoint already."""
    if not (folder.checkpoints / f"step-{step}").exists():
        save(config, parts, start, step, folder)


def restore(
    config: Config, parts: Parts, folder: Run, say: Callable[[str], None]
) -> tuple[int, Parts, Format]:
    """Brings parts and folder back to the newest good checkpoint; its step, the parts, the format before.

    Raises RunError without one, and where the base model or the data are not those of the run's start.
    """
    require_same_data(folder, parts.data_sha256)
    step, path = folder.latest_checkpoint(say)
    tree = checkpoint.load_state(path)
    require_same_start(folder, config.model_name_or_path, tree["base_sha256"], parts.base_sha256)
    start = from_dict(tree["start"])
    learner = parts.learner._replace(scales=start.scales)
    if config.lora_r is None:
        stored = load_reward_model(path, torch.device("cpu"))
        for member, old in zip(learner.members, stored.members, strict=True):
            member.model.load_state_dict(old.model.state_dict())
    else:
        with torch.no_grad():
            for member, adapters in zip(learner.members, tree["adapters"], strict=True):
                for name, parameter in trainable(member.model).items():
                    parameter.copy_(adapters[name])
    for optimizer, state in zip(learner.optimizers, tree["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    folder.rewind(step)
    say(f"resuming {folder.folder} after step {step} of {parts.steps}")
    return step, parts._replace(learner=learner), start
