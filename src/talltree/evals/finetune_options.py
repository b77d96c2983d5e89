"""The options of the fine-tuning tasks; the defaults are those of the BabyLM challenge of 2023."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from talltree.config import option
from talltree.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """How a language model becomes a classifier of GLUE, SuperGLUE and MSGS; docs/finetuning-tasks.md."""

    learning_rate: float = option(
        5e-5, "peak rate of AdamW, falling linearly to 0", unit="per update", above=0
    )
    batch_size: int = option(64, "items in an update", unit="items", low=1)
    max_epochs: int = option(10, "most passes over the training rows", unit="epochs", low=1)
    patience: int = option(
        10, "end after so many measurements on the stopping rows in a row without a new best", low=1
    )
    eval_every: int | None = option(
        None,
        "updates between measurements on the stopping rows; null: an epoch's, but at most 200",
        unit="updates",
        low=1,
    )
    stop_share: float = option(
        0.1, "share of the training rows that is not trained on and says when to stop", above=0, high=0.5
    )
    seeds: list[int] = option([12], "a fine-tuning each: its head, its order and its stopping rows", low=0)
    max_length: int | None = option(
        None, "tokens of an input, longer ones are cut and counted; null: the model's context", low=8
    )
    max_train_rows: int | None = option(
        None, "most rows to take from the training file, drawn by seed; null: all", unit="rows", low=2
    )
    lora_r: int | None = option(None, "rank of LoRA adapters; null: train all weights", low=1)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute; auto: cuda where there is one")
    dtype: Literal["float32", "bfloat16"] = option("float32", "precision of forward and backward passes")

    def check(self) -> None:
        """Raises ConfigError for no seed, or for one given twice."""
        if not self.seeds:
            raise ConfigError("seeds is empty; give at least one, such as [12]")
        for seed in self.seeds:
            if self.seeds.count(seed) > 1:
                raise ConfigError(f"seeds names {seed} twice, which would count one run as two")
