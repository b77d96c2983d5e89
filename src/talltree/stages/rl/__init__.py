"""Reinforcement learning of a causal language model on a reward. `loop.run` reads top to bottom."""

import os

from talltree.stages.rl.config import Config

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Runs or resumes one training run; see `talltree.stages.rl.loop`."""
    # Importing torch and transformers takes seconds; the command shows at once that it has begun.
    if os.environ.get("RANK", "0") == "0":  # of several processes the main one speaks
        print(f"loading {config.model_name_or_path if config.resume is None else config.resume}", flush=True)
    from talltree.stages.rl import loop  # torch, which --help need not pay

    loop.run(config)
