"""The options of the compare stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from talltree.config import option
from talltree.errors import ConfigError


@dataclass(frozen=True)
class Config:
    """Compare the first model with each other one on the same prompts and seeds, with intervals and tests."""

    models: list[str] = option(
        [],
        "what to compare: models (`seedling`, a folder, a hub name), run folders (their final/; an rl or sft "
        "run alone: before against after), evaluate folders, or .jsonl files with prompt and completion; "
        "NAME=MODEL gives it a name, NAME=MODEL,MODEL,MODEL is one setting trained with several seeds",
    )
    prompts: str | None = option(
        None, "JSONL file with a `prompt` column, or .txt; null: those that the runs held out, else `prompt`"
    )
    prompt: str | None = option(
        None, "the one prompt to use; null: that of the runs, else 'Once upon a time'"
    )
    rewards: str = option(
        "", "rewards to compare, separated by commas: names, FILE.py:FUNCTION, weighted sums, reward models"
    )
    reference: str | None = option(
        None, "model that KL is measured from; null: the start model of a run compared alone, else no KL"
    )
    judge: str | None = option(
        None, "model whose nats a token on the completions are compared, as a measure of fluency; null: none"
    )
    results: str = option(
        "", "evaluate folders to compare as well, separated by commas, in the order of the models"
    )
    people: str | None = option(
        None, "a study folder, or an exported .jsonl of judgements: win rates and ratings of its sources"
    )
    people_samples: str | None = option(
        None, "JSONL with prompt, completion, source, to tell an export's sources; null: its own column"
    )
    seeds: list[int] = option([0, 1, 2, 3, 4], "sampling seeds; every model draws with each of them", low=0)
    num_generations: int | None = option(
        None,
        "completions of each prompt and seed; null: enough for 64 a seed, at least 1",
        unit="completions",
        low=1,
    )
    max_completion_length: int | None = option(
        None, "longest completion; null: that of the runs, else 96", unit="tokens", low=1
    )
    temperature: float | None = option(
        None, "logits are divided by this; null: that of the runs, else 1", above=0
    )
    truncate_token: str | None = option(
        None, "text of a token that ends a completion, as in rl; '': none does; null: as the runs do"
    )
    truncate_after: int | None = option(
        None,
        "position, from 0, at which truncate_token begins to count; null: as the runs do, else 16",
        unit="tokens",
        low=0,
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute; auto: cuda where there is one")
    output_dir: str = option("runs/compare", "folder to write; must not exist yet")
    resume: str | None = option(
        None,
        "folder to continue with its config; rewards, judge, results and people may be others, for the same "
        "draws",
    )

    def check(self) -> None:
        """Raises ConfigError for an empty comparison and for seeds that are none or double."""
        if self.resume is not None:
            return
        if self.prompts is not None and self.prompt is not None:
            raise ConfigError("prompts and prompt are both given; give one")
        if not self.models and not self.results and self.people is None:
            raise ConfigError(
                "nothing to compare: name two models, one run folder, or a study of people's judgements"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds {self.seeds} are not one or more different whole numbers")
        if self.people_samples is not None and self.people is None:
            raise ConfigError("people_samples tells the sources of judgements; give people as well")
