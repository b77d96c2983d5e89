"""The options of the overopt stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from talltree.config import option
from talltree.errors import ConfigError

PEOPLE = "people"


@dataclass(frozen=True)
class Config:
    """Overoptimisation: gold against proxy reward over sqrt(KL), for rl checkpoints and best-of-n."""

    runs: list[str] = option([], "rl run folders whose checkpoints are sampled; none: best-of-n alone")
    gold: str | None = option(
        None, "the reward that counts: a name, FILE.py:FUNCTION, a weighted sum, a reward model, or `people`"
    )
    proxy: str | None = option(None, "the reward that was optimised; null: that of the first run")
    judgements: str | None = option(
        None, "gold people: the study folder in which these samples were judged, or what it exported"
    )
    model_name_or_path: str | None = option(
        None, "the reference, which best-of-n samples from; null: the model that the runs started from"
    )
    prompts: str | None = option(
        None, "JSONL file with a `prompt` column, or .txt; null: the held-out ones of the first run"
    )
    prompt: str = option("Once upon a time", "the one prompt where there is neither `prompts` nor a run")
    num_generations: int | None = option(
        None,
        "completions of each prompt from each checkpoint; null: enough for 256 in all",
        unit="completions",
        low=1,
    )
    best_of_n: int = option(
        32, "largest n of best-of-n, from twice as many samples a prompt; 0: no best-of-n", low=0
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
        None, "position, from 0, at which truncate_token begins to count; null: as the runs do, else 16",
        unit="tokens", low=0,
    )  # fmt: skip
    missing_eos_penalty: float | None = option(
        None,
        "what proxy and gold are without the required end, as in rl; null: as in the runs, else -1 with "
        "truncate_token and otherwise none",
        unit="reward",
    )
    seed: int = option(0, "seed of the draws, the same for every checkpoint", low=0)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute; auto: cuda where there is one")
    output_dir: str = option("runs/overopt", "folder to write; must not exist yet")
    resume: str | None = option(
        None,
        "folder to continue with its config; gold, proxy and judgements may be others, for the same draws",
    )

    def check(self) -> None:
        """Raises ConfigError where there is nothing to measure, or nothing to measure it by."""
        if self.resume is not None:
            return
        if self.gold is None or not self.gold.strip():
            raise ConfigError(
                "gold is not given; name the reward that counts, such as 'alliteration - 5*repetition', "
                "a reward model's folder, or people"
            )
        if not self.runs and self.best_of_n < 2:
            raise ConfigError("nothing to measure: name rl run folders, or set best_of_n to 2 or more")
        if not self.runs and self.proxy is None:
            raise ConfigError("proxy is not given, and there is no run to take it from; name the reward")
        if len(set(self.runs)) < len(self.runs):
            raise ConfigError("a run folder is named twice in runs; give each once")
        if self.best_of_n == 1:
            raise ConfigError("best_of_n 1 chooses nothing; use 2 or more, or 0 for none")
        if self.judgements is not None and self.gold != PEOPLE:
            raise ConfigError(f"judgements are for gold people, not for gold {self.gold}")
