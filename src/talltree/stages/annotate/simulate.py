"""Action `simulate`: annotators with a stated hidden utility answer every task of a study that is left."""

from __future__ import annotations

import math
from pathlib import Path

from talltree.annotation.scores import Item
from talltree.annotation.simulated import Habits, answer_tasks, items_of_study
from talltree.annotation.store import Store
from talltree.errors import ConfigError, RewardError
from talltree.stages.annotate.config import Config
from talltree.stages.annotate.options import Simulation


def run(config: Config) -> None:
    """Says what the hidden utility is, and lets the annotators answer; run again, it goes on."""
    options = config.simulate
    if bool(options.reward) == bool(options.model_name_or_path):
        both = "both are given" if options.reward else "neither is given"
        raise ConfigError(
            f"simulate needs a hidden utility, simulate.reward or simulate.model_name_or_path; {both}"
        )
    with Store.open(Path(config.folder).expanduser()) as store:
        items = items_of_study(store.study)
        scored = dict(zip(items, _utilities(options, items), strict=True))
        print(_described(options, list(scored.values())))
        names = [f"{options.name}-{number}" for number in range(1, options.annotators + 1)]
        habits = Habits(options.noise, options.position_bias, options.lapses, options.seed)
        given = answer_tasks(store, names, scored, habits)
        for name, count in given.items():
            print(f"  {name}: {count:,} answers")
        short = sum(count < store.study.overlap for count in store.coverage().values())
        if short:
            print(
                f"{short:,} of {len(store.study.tuples):,} tuples have fewer judgements than the overlap of "
                f"{store.study.overlap}; add annotators with --simulate.annotators"
            )
    print(f"next: talltree annotate stats {config.folder}")


def _utilities(options: Simulation, items: list[Item]) -> list[float]:
    prompts, texts = [item.prompt for item in items], [item.text for item in items]
    if options.model_name_or_path:
        from talltree.annotation.likelihood import mean_logp
        from talltree.models.load import compute_device, load_model, load_tokenizer

        name = options.model_name_or_path
        model = load_model(name)
        model.to(compute_device("auto"))  # type: ignore[arg-type]
        return mean_logp(model, load_tokenizer(name), prompts, texts)
    from talltree import rewards

    totals, _ = rewards.score(rewards.load(options.reward), prompts, texts, {})
    found = [value for value in totals if value is not None]
    if len(found) < len(totals):
        item = texts[totals.index(None)]
        raise RewardError(
            f"reward {options.reward} does not score {item[:60]!r} (None); a hidden utility needs a number"
        )
    return found


def _described(options: Simulation, utilities: list[float]) -> str:
    mean = math.fsum(utilities) / len(utilities)
    deviation = math.sqrt(math.fsum((each - mean) ** 2 for each in utilities) / len(utilities))
    what = options.reward or f"mean log-likelihood per token under {options.model_name_or_path}, nats"
    return (
        f"hidden utility: {what}; mean {mean:.4g}, deviation {deviation:.4g} over {len(utilities):,} items\n"
        f"noise {options.noise:g} x Gumbel, {options.position_bias:+g} for the first place on the screen, "
        f"{options.lapses:.1%} lapses, seed {options.seed}; no seconds are recorded"
    )
