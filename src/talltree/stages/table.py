"""The stages by name, for the command line and for what drives several of them.

This is no import of one stage by another. A driver (a study, a pipeline) knows a stage by its name alone: it
takes the stage's Config from here to check a mapping before anything starts, then runs the stage as a process
of its own (`talltree.stages.process`) and reads what it left in its run folder. Nothing of a stage but the
names and ranges of its options reaches its driver, and a stage still imports no other stage.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from talltree.errors import ConfigError

STAGES: dict[str, tuple[str, str]] = {
    "tokenizer": ("talltree.stages.tokenizer", "train a byte-level BPE tokenizer on a corpus"),
    "pretrain": ("talltree.stages.pretrain", "train a small causal language model from scratch"),
    "sft": ("talltree.stages.sft", "fine-tune a model on prompts and completions"),
    "sample": ("talltree.stages.sample", "write texts with a model"),
    "annotate": ("talltree.stages.annotate", "collect people's judgements of samples on a local page"),
    "reward": ("talltree.stages.reward", "train a reward model on judgements"),
    "rl": ("talltree.stages.rl", "reinforcement learning of a model on a reward"),
    "rlhf": ("talltree.stages.rlhf", "the loop: sample, judge, reward model, reinforcement learning"),
    "evaluate": ("talltree.stages.evaluate", "BLiMP, GLUE, MSGS, held-out loss and story measures of models"),
    "compare": ("talltree.stages.compare", "models side by side on the same prompts, with intervals"),
    "overopt": ("talltree.stages.overopt", "proxy against gold reward over KL: where to stop"),
    "push": ("talltree.stages.push", "upload a model and its card to a hub"),
    "sweep": ("talltree.stages.sweep", "a study: a grid, a list or a search over stages, times seeds"),
    "report": ("talltree.report", "write the page of a run or of a study"),
    "demo": ("talltree.demo", "a small model learns to alliterate, in minutes"),
}
"""Stage -> (module with `Config` and `run(config)`, imported only when it is asked for; what it does)."""


def stage_module(name: str) -> ModuleType:
    """The module of a stage, imported now. Raises ConfigError, with the nearest, for what is no stage."""
    if name not in STAGES:
        nearest = difflib.get_close_matches(name, STAGES, 1, 0.0)[0]
        raise ConfigError(f"no stage {name!r}; nearest: {nearest}; stages: {', '.join(STAGES)}")
    return importlib.import_module(STAGES[name][0])


def config_of(stage: str, mapping: Mapping[str, Any], where: str) -> Any:
    """The stage's Config of a nested or dotted mapping, checked like a config file.

    `where` stands before the message of whatever is refused. Raises ConfigError, one line.
    """
    from talltree.config import from_dict  # its YAML library, which --help need not pay

    try:
        return from_dict(stage_module(stage).Config, mapping)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
