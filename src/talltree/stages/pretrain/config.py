"""The options of the pretrain stage."""

from __future__ import annotations

import math
from dataclasses import dataclass

from talltree.config import option
from talltree.errors import ConfigError
from talltree.models.shape import Shape


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate per optimiser update, as a factor on learning_rate."""

    name: str = option("cosine", "shape of the decay after warm-up", choices=("cosine", "linear", "wsd"))
    warmup_steps: int = option(100, "updates of linear warm-up", unit="steps", low=0)
    decay_share: float = option(0.3, "wsd: share of the steps in the final linear decay", above=0, high=1)
    final_factor: float = option(0.0, "factor that is reached after the last step", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of `talltree pretrain`."""

    dataset_name: str = option("", "corpus: a .jsonl (column `text`) or .txt file, or a folder of them")
    tokenizer_name_or_path: str = option("", "folder or hub name of the tokenizer")
    output_dir: str = option("runs/pretrain", "run folder")
    resume: str | None = option(None, "run folder to continue; its own config holds, except max_minutes")
    separator: str = option("<|endoftext|>", "what stands between the documents of a .txt file")
    validation_share: float = option(0.01, "share of the documents that is held out", above=0, high=0.5)
    model: Shape = option(Shape(), "dimensions of the model")
    seed: int = option(0, "seed of the weights, the order of the data and the samples", low=0)
    steps: int = option(1000, "optimiser updates", unit="steps", low=1)
    batch_size: int = option(16, "rows of `model.context` tokens in an update", unit="rows", low=1)
    micro_batch_size: int | None = option(None, "rows at a time (default: batch_size)", unit="rows", low=1)
    optimizer: str = option(
        "adamw",
        "adamw, or muon for the matrices of the blocks and adamw elsewhere",
        choices=("adamw", "muon"),
    )
    learning_rate: float = option(3e-3, "peak learning rate of AdamW", above=0)
    muon_learning_rate: float = option(1e-2, "peak learning rate of Muon (unit as AdamW's)", above=0)
    schedule: Schedule = option(Schedule(), "learning rate over the run")
    adam_beta1: float = option(0.9, "decay of AdamW's first moment", low=0, high=0.9999)
    adam_beta2: float = option(0.98, "decay of AdamW's second moment", low=0, high=0.9999)
    weight_decay: float = option(0.1, "decay of parameters with two or more dimensions", low=0)
    max_grad_norm: float = option(1.0, "the whole gradient is scaled down to this norm", above=0)
    compile: bool = option(False, "compile the training step with torch.compile")
    max_minutes: float | None = option(None, "save and stop after this wall time", unit="minutes", above=0)
    log_every: int = option(10, "updates between progress lines", unit="steps", low=1)
    validation_every: int = option(250, "updates between held-out losses", unit="steps", low=1)
    sample_every: int = option(500, "updates between samples", unit="steps", low=1)
    sample_prompts: list[str] = option(["", "Once upon a time"], "what the samples continue")
    checkpoint_every: int = option(500, "updates between checkpoints", unit="steps", low=1)
    keep_checkpoints: int = option(2, "newest checkpoints that are kept", low=1)
    final_dtype: str = option("float32", "of the weights in final/", choices=("float32", "bfloat16"))
    licence: str = option("other", "licence that the model card states (a hub identifier)")
    data_note: str = option("", "what the corpus is and where it is from, for the model card")

    def check(self) -> None:
        """Raises ConfigError for numbers that do not go together."""
        for key in ("dataset_name", "tokenizer_name_or_path"):
            if self.resume is None and not getattr(self, key):
                raise ConfigError(f"--{key} is required, unless --resume names a run folder to continue")
        micro = self.micro_batch_size or self.batch_size
        if self.batch_size % micro:
            raise ConfigError(
                f"batch_size {self.batch_size} is not divisible by micro_batch_size {micro}; "
                f"try micro_batch_size {math.gcd(self.batch_size, micro)}"
            )
        if self.schedule.warmup_steps >= self.steps:
            raise ConfigError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} is not below steps {self.steps}; "
                f"try {self.steps // 10}"
            )
