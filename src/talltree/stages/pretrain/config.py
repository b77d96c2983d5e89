"""The options of the pretrain stage."""

from __future__ import annotations

import math
from dataclasses import dataclass

from talltree.config import option
from talltree.data.corpus_options import CorpusOptions, sources_of
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

    dataset_name: str = option("", "corpus: a .txt or .jsonl file, a folder of them, or a hub dataset")
    corpus: CorpusOptions = option(CorpusOptions(), "how the corpus is read, split, mixed and cut down")
    tokenizer_name_or_path: str = option("", "folder or hub name of the tokenizer")
    output_dir: str = option("runs/pretrain", "run folder")
    resume: str | None = option(
        None, "run folder to continue; its own config holds, except max_minutes and micro_batch_size"
    )
    model: Shape = option(Shape(), "the model: a known name, or dimensions")
    documents: str = option(
        "packed",
        "packed: attention runs across documents of a row; separated: it stays inside a document, and "
        "position ids restart at each",
        choices=("packed", "separated"),
    )
    seed: int = option(0, "seed of the weights, the order of the data and the samples", low=0)
    steps: int = option(1000, "optimiser updates", unit="steps", low=1)
    batch_size: int = option(16, "rows of `model.context` tokens in an update", unit="rows", low=1)
    micro_batch_size: int | None = option(
        None, "rows at a time (null: about 1,536 tokens on a CPU, 65,536 on a GPU)", unit="rows", low=1
    )
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
    dtype: str = option(
        "float32", "of the forward pass; bfloat16 is for GPUs", choices=("float32", "bfloat16")
    )
    compile: bool = option(False, "compile the blocks with torch.compile; on a CPU it needs a C++ compiler")
    head: str = option(
        "chunked",
        "cross-entropy over the vocabulary: a chunk of logits at a time, or the whole of them by autograd",
        choices=("chunked", "whole"),
    )
    max_minutes: float | None = option(None, "save and stop after this wall time", unit="minutes", above=0)
    log_every: int = option(10, "updates between progress lines", unit="steps", low=1)
    validation_every: int = option(250, "updates between held-out losses", unit="steps", low=1)
    sample_every: int = option(500, "updates between samples", unit="steps", low=1)
    sample_prompts: list[str] = option(["", "Once upon a time"], "what the samples continue")
    checkpoint_every: int = option(500, "updates between checkpoints", unit="steps", low=1)
    keep_checkpoints: int = option(2, "newest checkpoints that are kept", low=1)
    milestones: list[int] = option([], "further checkpoints, which are always kept", unit="steps", low=1)
    final_dtype: str = option("float32", "of the weights in final/", choices=("float32", "bfloat16"))
    licence: str = option("other", "licence that the model card states (a hub identifier)")
    data_note: str = option("", "what the corpus is and where it is from, for the model card")

    def check(self) -> None:
        """Raises ConfigError for numbers that do not go together."""
        if self.resume is None:
            sources_of(self.dataset_name, self.corpus)
            if not self.tokenizer_name_or_path:
                raise ConfigError(
                    "--tokenizer_name_or_path is required, unless --resume names a run folder to continue"
                )
        micro = self.micro_batch_size or self.batch_size
        if self.resume is None and self.batch_size % micro:
            raise ConfigError(
                f"batch_size {self.batch_size} is not divisible by micro_batch_size {micro}; "
                f"try micro_batch_size {math.gcd(self.batch_size, micro)}"
            )
        late = [step for step in self.milestones if step > self.steps]
        if late:
            raise ConfigError(
                f"milestones: step {late[0]} is after the last of steps {self.steps}; leave it out"
            )
        if self.schedule.warmup_steps >= self.steps:
            raise ConfigError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} is not below steps {self.steps}; "
                f"try {self.steps // 10}"
            )
