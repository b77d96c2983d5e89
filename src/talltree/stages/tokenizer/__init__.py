"""A byte-level BPE tokenizer from a corpus; see `train`."""

from talltree.stages.tokenizer.config import Config

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Trains one tokenizer; see `talltree.stages.tokenizer.train`."""
    from talltree.stages.tokenizer import train  # transformers, which --help need not pay

    train.run(config)
