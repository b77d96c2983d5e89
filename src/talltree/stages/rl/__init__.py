"""Reinforcement learning of a causal language model on a reward. `loop.run` reads top to bottom."""

from talltree.stages.rl.config import Config

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Runs or resumes one training run; see `talltree.stages.rl.loop`."""
    from talltree.stages.rl import loop  # torch, which --help need not pay

    loop.run(config)
