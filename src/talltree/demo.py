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
    """RLOO on `seedling` with the alliteration study's reward, then the report.

    On this reward a nat of KL buys the more, the further the policy has gone, until it repeats two words for
    ever; so no coefficient holds it at a good place, and the best checkpoint within the bounds below is kept.
    """
    from talltree import report
    from talltree.stages import rl
    from talltree.stages.rl.config import KL, Best, Stop

    rl.run(
        rl.Config(
            model_name_or_path="seedling",
            prompt="Once upon a time",
            reward="alliteration",
            algorithm="rloo",
            kl=KL(coef=0.2),
            num_generations=32,
            batch_size=128,
            steps=30,
            learning_rate=4e-4,
            warmup_steps=4,
            checkpoint_every=1,
            best=Best(max_kl=20.0, min_distinct_2=0.87, min_unique=0.98, window=1),
            stop=Stop(kl_ceiling=25.0),
            output_dir=config.output_dir,
            seed=config.seed,
        )
    )
    report.run(report.Config(run=config.output_dir))
