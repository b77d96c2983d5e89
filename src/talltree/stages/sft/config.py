"""The options of the sft stage. Names are those of the ecosystem where it has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from talltree.config import option
from talltree.data.corpus_options import CorpusOptions, sources_of
from talltree.errors import ConfigError


@dataclass(frozen=True)
class Config:
    """Supervised fine-tuning of a causal language model on prompts and completions."""

    model_name_or_path: str = option("seedling", "`seedling`, a local folder or a hub name")
    dataset_name: str = option(
        "", "pairs or texts: a .jsonl or .txt file, a folder of them, or a hub dataset; or corpus.sources"
    )
    corpus: CorpusOptions = option(
        CorpusOptions(validation_share=0.05, overlaps="keep_held_out"),
        "how pairs and texts are read, split, mixed and cut down",
    )
    split: Literal["none", "sentence"] = option(
        "none", "sentence: divide each text into a prompt and its continuation after a sentence"
    )
    prompt_sentences: int | None = option(
        None, "sentences in a prompt (split sentence); null: 1", unit="sentences", low=1
    )
    prompt_tokens: int | None = option(
        None, "instead: as many sentences as this many tokens hold", unit="tokens", low=1
    )
    example_tokens: int | None = option(
        None,
        "divide longer texts at sentences into examples of at most this (split sentence); null: do not",
        unit="tokens",
        low=8,
    )
    loss_on: Literal["completion", "text"] = option(
        "completion", "which tokens are learned: the completion's, or the prompt's as well"
    )
    max_length: int | None = option(
        None, "longest example, end token included; null: the model's context", unit="tokens", low=2
    )
    too_long: Literal["refuse", "drop"] = option(
        "refuse", "what to do with longer examples: refuse to start, or leave them out and say how many"
    )
    epochs: float | None = option(
        None, "passes over the examples; null: 1, or what steps says", unit="epochs", above=0
    )
    steps: int | None = option(None, "optimiser updates, instead of epochs", unit="updates", low=1)
    batch_size: int = option(16, "most examples in an update", unit="examples", low=1)
    gradient_accumulation_steps: int | None = option(
        None,
        "parts that an update is computed in: less memory, the same loss; null: as the device likes",
        unit="parts",
        low=1,
    )
    learning_rate: float = option(5e-5, "peak learning rate of AdamW", unit="per update", above=0)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = option(
        "cosine", "schedule per optimiser update, after the warm-up"
    )
    warmup_steps: int = option(0, "updates over which the rate rises", unit="updates", low=0)
    weight_decay: float = option(0.0, "AdamW's decoupled decay of matrices", low=0)
    max_grad_norm: float | None = option(1.0, "clip the gradient's norm; null: no clipping", above=0)
    lora_r: int | None = option(None, "rank of LoRA adapters; null: train all weights", low=1)
    lora_alpha: float | None = option(None, "scale of the adapters; null: 2 * lora_r", above=0)
    dtype: Literal["float32", "bfloat16"] = option("float32", "precision of forward and backward passes")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute; auto: cuda where there is one")
    seed: int = option(0, "seed of the order, the adapters and the samples", low=0)
    validation_every: int = option(
        100, "updates between held-out losses, each with samples", unit="updates", low=1
    )
    patience: int | None = option(
        None, "end after so many held-out losses in a row without a new best; null: never", low=1
    )
    samples: int = option(
        8, "held-out prompts continued at each held-out loss, the first and the last included", low=0
    )
    max_completion_length: int = option(
        96, "longest sample; less where the context ends", unit="tokens", low=1
    )
    checkpoint_every: int = option(100, "updates between checkpoints", unit="updates", low=1)
    keep_checkpoints: int = option(2, "newest checkpoints to keep, besides the best one", low=1)
    output_dir: str = option("runs/sft", "run folder; must not exist yet")
    licence: str = option("other", "licence that the model card states (a hub identifier)")
    data_note: str = option("", "what the examples are and where they are from, for the model card")
    resume: str | None = option(None, "run folder to continue; its own config is used")

    def check(self) -> None:
        """Raises ConfigError for combinations that cannot run."""
        if self.resume is None:
            self._check_corpus()
        self._check_split()
        if self.epochs is not None and self.steps is not None:
            raise ConfigError(
                f"epochs {self.epochs:g} and steps {self.steps} both say when to end; give one of them"
            )
        parts = self.gradient_accumulation_steps
        if self.resume is None and parts is not None and parts > self.batch_size:
            raise ConfigError(
                f"gradient_accumulation_steps {parts} is more than the {self.batch_size} examples of an "
                f"update; use {self.batch_size} or less"
            )

    def _check_corpus(self) -> None:
        pairs = [source.label for source in sources_of(self.dataset_name, self.corpus) if source.completion]
        if self.split == "sentence" and pairs:
            raise ConfigError(
                f"split sentence makes prompts and completions from texts itself, but {pairs[0]} has a "
                "completion; leave out corpus.prompt and corpus.completion, or set split none"
            )

    def _check_split(self) -> None:
        names = ("prompt_sentences", "prompt_tokens", "example_tokens")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.split == "none" and given:
            name, value = next(iter(given.items()))
            raise ConfigError(
                f"{name} {value} would change nothing without split sentence; set it, or leave it out"
            )
        if self.prompt_tokens is None:
            return
        if self.prompt_sentences is not None:
            raise ConfigError(
                f"prompt_sentences {self.prompt_sentences} and prompt_tokens {self.prompt_tokens} both say "
                "how long a prompt is; give one of them"
            )
        if self.example_tokens is not None and self.prompt_tokens >= self.example_tokens:
            raise ConfigError(
                f"prompt_tokens {self.prompt_tokens} leaves nothing of example_tokens {self.example_tokens} "
                f"to the completion; try {self.example_tokens // 4}"
            )
