"""The options of the reward stage. Names are those of the ecosystem where it has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from talltree.config import option
from talltree.errors import ConfigError


@dataclass(frozen=True)
class ReferenceOptions:
    """The samples over which rewards get mean 0 and deviation 1, before and after training."""

    source: Literal["candidates", "model"] = option(
        "candidates", "candidates: texts of the training comparisons; model: fresh samples of a model"
    )
    model_name_or_path: str | None = option(
        None, "the model to sample from (source model); null: model_name_or_path"
    )
    samples: int = option(512, "most reference samples", unit="texts", low=2)
    temperature: float = option(1.0, "sampling temperature (source model)", above=0)
    max_completion_length: int = option(
        96, "longest sample (source model); less where the context ends", unit="tokens", low=1
    )
    truncate_token: str | None = option(
        None, "a sample ends with the first such token (source model), as in rl; null: at a stop token"
    )
    truncate_after: int = option(
        16, "position, from 0, at which truncate_token begins to count", unit="tokens", low=0
    )

    def check(self) -> None:
        """Raises ConfigError for a model that is not sampled from, and a truncation that cannot be."""
        for name in ("model_name_or_path", "truncate_token"):
            if self.source == "candidates" and (value := getattr(self, name)) is not None:
                raise ConfigError(
                    f"reference.{name} {value!r} says how a model is sampled, but reference.source is "
                    "candidates; set reference.source model, or leave it out"
                )
        if self.truncate_token == "":
            raise ConfigError(
                "reference.truncate_token '' is no token; give its text, such as '.', or leave it out"
            )
        if self.truncate_token is not None and self.truncate_after >= self.max_completion_length:
            raise ConfigError(
                f"reference.truncate_after {self.truncate_after} leaves no position in "
                f"reference.max_completion_length {self.max_completion_length}; use "
                f"{self.max_completion_length - 1} or less"
            )


@dataclass(frozen=True)
class EnsembleOptions:
    """Several heads, which make one reward."""

    size: int = option(1, "heads, each from its own seed", unit="heads", low=1)
    body: Literal["own", "shared"] = option(
        "own", "own: each head has a body and an order of the data of its own; shared: all on one body"
    )
    combine: Literal["mean", "worst", "mean_minus_variance"] = option(
        "mean", "how their rewards become one when the model is used; it can be named there again"
    )
    variance_weight: float = option(1.0, "factor on the variance in mean_minus_variance", low=0)


@dataclass(frozen=True)
class Config:
    """A reward model, trained on people's comparisons of texts."""

    dataset_name: str = option("", "preferences: a .jsonl file of judgements, as annotate exports it")
    ignore_columns: list[str] = option([], "columns of that file to leave out")
    model_name_or_path: str = option(
        "seedling", "causal language model or sequence classifier: `seedling`, a local folder or a hub name"
    )
    head: Literal["new", "kept"] = option(
        "new", "new: N(0, 1/sqrt(hidden + 1)); kept: the one that a classifier brings along"
    )
    loss: Literal["plackett_luce", "bradley_terry", "softmax"] = option(
        "plackett_luce",
        "plackett_luce: all that a judgement settles, as one partial ranking; bradley_terry: its pairs, "
        "as if independent; softmax: its best alone",
    )
    margin: float = option(
        0.0, "factor on a judgement's own margin, by which the score of the better must lead", low=0
    )
    label_smoothing: float = option(
        0.0, "share of judgements assumed to say the opposite", unit="share", low=0, high=0.5
    )
    centring: float = option(0.0, "factor on the squared mean score of a judgement's candidates", low=0)
    eos: Literal["none", "append"] = option(
        "none", "append: an end token after every text, in training and whenever the model is used"
    )
    max_length: int | None = option(
        None, "longest text, end token included; null: the model's context", unit="tokens", low=2
    )
    too_long: Literal["refuse", "truncate", "drop"] = option(
        "refuse",
        "longer texts: refuse to start; cut their beginning, in use as well; leave their judgements out",
    )
    validation_share: float = option(0.1, "share of the judgements to hold out", above=0, high=0.5)
    validation_name: str = option("", "held-out judgements of their own, instead: a .jsonl file")
    split_by: Literal["auto", "prompt", "items"] = option(
        "auto",
        "what never stands on both sides: prompts and candidates, or candidates; auto: prompt if it can",
    )
    comparisons: int | None = option(
        None, "use only this many training judgements; fewer are a subset of more", unit="judgements", low=1
    )
    epochs: float = option(1.0, "passes over the judgements", unit="epochs", above=0)
    batch_size: int = option(32, "most judgements in an update", unit="judgements", low=1)
    gradient_accumulation_steps: int | None = option(
        None,
        "parts that an update is computed in: less memory, the same loss; null: as the device likes",
        unit="parts",
        low=1,
    )
    learning_rate: float = option(5e-5, "peak learning rate of AdamW", unit="per update", above=0)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = option(
        "linear", "schedule per optimiser update, after the warm-up"
    )
    warmup_steps: int = option(0, "updates over which the rate rises", unit="updates", low=0)
    weight_decay: float = option(0.0, "AdamW's decoupled decay of matrices", low=0)
    max_grad_norm: float | None = option(1.0, "clip the gradient's norm; null: no clipping", above=0)
    lora_r: int | None = option(None, "rank of LoRA adapters; null: train all weights", low=1)
    lora_alpha: float | None = option(None, "scale of the adapters; null: 2 * lora_r", above=0)
    reference: ReferenceOptions = option(ReferenceOptions(), "what sets gain and bias")
    ensemble: EnsembleOptions = option(EnsembleOptions(), "several heads instead of one")
    learning_curve: list[float] = option(
        [],
        "also train afresh on these shares of the training judgements, nested, and measure each",
        unit="share",
        above=0,
        high=1,
    )
    probes: int = option(200, "held-out texts for the coherence probes; 0: none", unit="texts", low=0)
    dtype: Literal["float32", "bfloat16"] = option(
        "float32", "precision of the updates; measuring and use are in float32"
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute; auto: cuda where there is one")
    seed: int = option(0, "seed of split, heads, adapters, order and samples", low=0)
    validation_every: int = option(50, "updates between held-out measurements", unit="updates", low=1)
    checkpoint_every: int = option(100, "updates between checkpoints", unit="updates", low=1)
    keep_checkpoints: int = option(2, "newest checkpoints to keep", low=1)
    output_dir: str = option("runs/reward", "run folder; must not exist yet")
    licence: str = option("other", "licence that the model card states (a hub identifier)")
    data_note: str = option("", "who judged what, and how, for the model card")
    resume: str | None = option(None, "run folder to continue; its own config is used")

    @property
    def members(self) -> int:
        """Bodies of the ensemble."""
        return self.ensemble.size if self.ensemble.body == "own" else 1

    @property
    def heads(self) -> int:
        """Heads on each body."""
        return self.ensemble.size // self.members

    def check(self) -> None:
        """Raises ConfigError for combinations that cannot run."""
        if self.resume is None and not self.dataset_name:
            raise ConfigError("dataset_name is required: a .jsonl file of judgements, as annotate exports it")
        if self.head == "kept" and self.ensemble.size > 1:
            raise ConfigError(
                f"head kept is one head, but ensemble.size is {self.ensemble.size}; use head new, or size 1"
            )
        parts = self.gradient_accumulation_steps
        if self.resume is None and parts is not None and parts > self.batch_size:
            raise ConfigError(
                f"gradient_accumulation_steps {parts} is more than the {self.batch_size} judgements of an "
                f"update; use {self.batch_size} or less"
            )
