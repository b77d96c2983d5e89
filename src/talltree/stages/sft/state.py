"""Checkpoints of the sft stage: what is saved, and the way back, bit for bit.

The number of updates is the whole data position: batches and learning rate follow from it. Which checkpoint
is best follows from metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from talltree import checkpoint
from talltree.models.load import load_model
from talltree.models.policy import trainable
from talltree.run import Run
from talltree.stages.resuming import require_same_data, require_same_start
from talltree.stages.sft.config import Config
from talltree.stages.sft.parts import Parts

VALIDATION = "loss/validation"


def best_step(rows: Sequence[Mapping[str, Any]]) -> int:
    """The step of the lowest held-out loss, the earliest of equal ones. At least one row has a loss."""
    return min((row[VALIDATION], row["step"]) for row in rows if row.get(VALIDATION) is not None)[1]


def without_best(rows: Sequence[Mapping[str, Any]]) -> int:
    """Held-out losses since the best one."""
    best = best_step(rows)
    return sum(row["step"] > best for row in rows if row.get(VALIDATION) is not None)


def save(config: Config, parts: Parts, step: int, folder: Run, rows: Sequence[Mapping[str, Any]]) -> None:
    """Saves checkpoints/step-N and deletes surplus ones, never the best."""

    def write(target: Path) -> None:
        parts.model.save_pretrained(target, safe_serialization=True)
        parts.tokenizer.save_pretrained(target)
        tree = {
            "step": step,
            "base_sha256": parts.base_sha256,
            "optimizer": parts.optimizer.state_dict(),
            "adapters": trainable(parts.model) if config.lora_r is not None else {},
        }
        checkpoint.save_state(target, tree)

    protect = (best_step(rows),) if rows else ()
    folder.save_checkpoint(step, write, config.keep_checkpoints, protect)


def save_if_new(
    config: Config, parts: Parts, step: int, folder: Run, rows: Sequence[Mapping[str, Any]]
) -> None:
    """`save`, unless this step has its checkpoint already."""
    if not (folder.checkpoints / f"step-{step}").exists():
        save(config, parts, step, folder, rows)


def restore(config: Config, parts: Parts, folder: Run, say: Callable[[str], None]) -> int:
    """Brings parts and folder back to the newest good checkpoint and gives its step.

    Raises RunError without one, and where the base model or the data are not those of the run's start.
    """
    require_same_data(folder, parts.corpus.sha256)
    step, path = folder.latest_checkpoint(say)
    tree = checkpoint.load_state(path)
    require_same_start(folder, config.model_name_or_path, tree["base_sha256"], parts.base_sha256)
    load_weights(config, parts, path)
    parts.optimizer.load_state_dict(tree["optimizer"])
    folder.rewind(step)
    say(f"resuming {folder.folder} after step {step} of {parts.steps}")
    return step


def load_weights(config: Config, parts: Parts, path: Path) -> None:
    """Puts a checkpoint's weights into the model."""
    if config.lora_r is None:
        parts.model.load_state_dict(load_model(str(path)).state_dict())
        return
    adapters = checkpoint.load_state(path)["adapters"]
    with torch.no_grad():
        for name, parameter in trainable(parts.model).items():
            parameter.copy_(adapters[name])
