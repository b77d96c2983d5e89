"""A small causal language model from scratch. `loop.train` reads top to bottom."""

from talltree.stages.pretrain.config import Config

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Trains or resumes one model; see `talltree.stages.pretrain.loop`."""
    from talltree.stages.pretrain import loop  # torch, which --help need not pay

    loop.run(config)
