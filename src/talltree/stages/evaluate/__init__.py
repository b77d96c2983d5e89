"""Evaluation of models: likelihoods, grammar, stories, fine-tuning tasks; `loop` reads top to bottom."""

from talltree.stages.evaluate.config import Config

__all__ = ["POSITIONAL", "Config", "run"]

POSITIONAL = ("models",)


def run(config: Config) -> None:
    """Evaluates every model on every task, or finishes an evaluation; see `talltree.stages.evaluate.loop`."""
    from talltree.stages.evaluate import loop  # torch, which --help need not pay

    loop.run(config)
