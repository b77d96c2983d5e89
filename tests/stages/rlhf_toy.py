"""A toy task for the rlhf loop: tiny models, and options small enough for tests."""

from __future__ import annotations

from pathlib import Path

from talltree.config import from_dict
from talltree.stages.rlhf.config import Config

from ..tiny import llama, save
from . import toy


def make(folder: Path) -> toy.Toy:
    """The toy task of the rl stage, and another model beside its model."""
    made = toy.make(folder)
    save(folder / "other", llama(seed=5))
    return made


def options(task: toy.Toy, name: str, **changed: object) -> Config:
    return from_dict(
        Config,
        {
            "model_name_or_path": str(task.model),
            "rounds": 2,
            "comparisons": 24,
            "validation_tuples": 4,
            "judges": {"kind": "bws", "k": 4},
            "simulate": {"reward": f"{task.reward}:count", "lapses": 0.05},
            "reward": {"batch_size": 6, "learning_rate": 1e-3, "probes": 0, "checkpoint_every": 1},
            "rl": {
                "prompts": str(task.prompts),
                "held_out": 0.4,
                "algorithm": "rloo",
                "num_generations": 2,
                "batch_size": 6,
                "steps": 5,
                "max_completion_length": 6,
                "eval_samples": 4,
                "checkpoint_every": 1,
                "kl": {"target": 3.0, "horizon": 100},
            },
            "output_dir": str(task.folder / name),
            **changed,
        },
    )
