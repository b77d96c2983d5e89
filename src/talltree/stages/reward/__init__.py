"""Reward models from preferences; `loop` reads top to bottom."""

from talltree.stages.reward.config import Config

__all__ = ["POSITIONAL", "Config", "run"]

POSITIONAL = ("dataset_name",)


def run(config: Config) -> None:
    """Trains or resumes one reward model; see `talltree.stages.reward.loop`."""
    from talltree.stages.reward import loop  # torch, which --help need not pay

    loop.run(config)
