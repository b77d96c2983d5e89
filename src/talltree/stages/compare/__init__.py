"""Models side by side on the same prompts: what differs, how surely, and what may be said of it."""

from talltree.stages.compare.config import Config

__all__ = ["POSITIONAL", "Config", "run"]

POSITIONAL = "models"


def run(config: Config) -> None:
    """Compares the first model with each other one; see `talltree.stages.compare.loop`."""
    named = config.resume or ", ".join(config.models) or config.results or config.people
    print(f"comparing {named}", flush=True)
    from talltree.stages.compare import loop  # torch, which --help need not pay

    loop.run(config)
