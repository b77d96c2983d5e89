"""A study: trials of a stage or a chain of stages, over settings and seeds. Read `loop.run` from the top."""

from talltree.stages.sweep.config import Config

__all__ = ["POSITIONAL", "Config", "run"]

POSITIONAL = "study"


def run(config: Config) -> None:
    """Runs or continues one study; see `talltree.stages.sweep.loop`."""
    from talltree.stages.sweep import loop  # the stages' configs, which --help need not pay

    loop.run(config)
