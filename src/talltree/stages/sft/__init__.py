"""Supervised fine-tuning of a causal language model on examples; `loop` reads top to bottom."""

from talltree.stages.sft.config import Config

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Trains or resumes one model; see `talltree.stages.sft.loop`."""
    from talltree.stages.sft import loop  # torch, which --help need not pay

    loop.run(config)
