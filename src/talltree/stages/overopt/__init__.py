"""How far a proxy reward can be trusted: gold reward over KL for checkpoints and for best-of-n."""

from talltree.stages.overopt.config import Config

__all__ = ["POSITIONAL", "Config", "run"]

POSITIONAL = "runs"


def run(config: Config) -> None:
    """Samples checkpoints, fits the curves and says where to stop; see `talltree.stages.overopt.loop`."""
    named = config.resume or ", ".join(config.runs) or config.model_name_or_path
    print(f"loading {named}", flush=True)
    from talltree.stages.overopt import loop  # torch, which --help need not pay

    loop.run(config)
