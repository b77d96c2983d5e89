"""`talltree demo`: the story model in the package learns to alliterate, and a page shows what happened."""

from __future__ import annotations

from dataclasses import dataclass

from talltree.config import option


@dataclass(frozen=True)
class Config:
    """A small model learns to alliterate, in minutes, from nothing but this package."""

    output_dir: str = option("runs/demo", "run folder; must not exist yet")
    seed: int = option(0, "seed of the run", low=0)


def run(config: Config) -> None:
    """RLOO on `seedling` with the alliteration study's reward, then the report."""
    from talltree import report
    from talltree.stages import rl

    rl.run(
        rl.Config(
            model_name_or_path="seedling",
            reward="alliteration",
            algorithm="rloo",
            steps=60,
            output_dir=config.output_dir,
            seed=config.seed,
        )
    )
    report.run(report.Config(run=config.output_dir))
