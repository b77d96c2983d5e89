"""The loop of learning from people: samples are judged, a reward model is fitted, the policy follows it."""

from talltree.stages.rlhf.config import Config

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Runs the loop, or goes on with it; see `talltree.stages.rlhf.loop`."""
    from talltree.stages.rlhf import loop  # torch, which --help need not pay

    loop.run(config)
