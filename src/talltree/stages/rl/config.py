"""The options of the rl stage. Names are those of the ecosystem where it has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from talltree.config import option
from talltree.errors import ConfigError

DEFAULT_COEF = 0.05


@dataclass(frozen=True)
class KL:
    """The price of moving away from the reference."""

    coef: float | None = option(
        None, "price of one nat of sequence KL; null: 0.05, or what beta says", unit="reward per nat", low=0
    )
    target: float | None = option(
        None,
        "sequence KL that the coefficient is adapted to; null: the coefficient is fixed",
        unit="nats",
        above=0,
    )
    horizon: float = option(
        10_000.0, "episodes over which the adaptive coefficient moves", unit="episodes", above=0
    )
    loss: Literal["k1", "k2", "k3"] = option(
        "k3", "estimator where the KL stands in the loss (grpo); k1 is refused, its expected gradient is zero"
    )


@dataclass(frozen=True)
class Stop:
    """When a run ends by itself, with its reason in summary.json."""

    kl_ceiling: float | None = option(
        None, "end the run above this mean sequence KL; null: never", unit="nats", above=0
    )
    min_unique: float = option(
        0.2, "end when fewer completions than this differ, `patience` steps long", unit="share", low=0, high=1
    )
    min_distinct_2: float = option(
        0.1, "end when distinct-2 falls below this share of the first step's", unit="share", low=0, high=1
    )
    max_near_duplicates: float = option(
        0.95,
        "end when more completions than this have a near twin in their step",
        unit="share",
        low=0,
        high=1,
    )
    constant_steps: int = option(
        20,
        "end after so many steps in which every completion got one and the same reward",
        unit="steps",
        low=2,
    )
    patience: int = option(5, "steps that a collapse must last", unit="steps", low=1)


@dataclass(frozen=True)
class Best:
    """Which checkpoint becomes final/: the highest mean reward within these bounds."""

    max_kl: float | None = option(None, "bound on the mean sequence KL; null: none", unit="nats", above=0)
    min_distinct_2: float = option(
        0.5, "bound on distinct-2 as a share of the first step's", unit="share", low=0, high=1
    )
    min_unique: float = option(
        0.5, "bound on the share of different completions", unit="share", low=0, high=1
    )
    window: int = option(5, "steps before a checkpoint that are averaged to judge it", unit="steps", low=1)


@dataclass(frozen=True)
class Config:
    """Reinforcement learning of a causal language model on a reward, under a KL penalty."""

    model_name_or_path: str = option("seedling", "`seedling`, a local folder or a hub name")
    prompts: str | None = option(None, "JSONL file with a `prompt` column, or .txt with one prompt a line")
    prompt: str = option("Once upon a time", "the one prompt to use where `prompts` is null")
    held_out: float = option(
        0.1,
        "share of different prompts kept for the evaluation before and after",
        unit="share",
        low=0,
        high=0.9,
    )
    reward: str = option(
        "alliteration",
        "a built-in reward, FILE.py:FUNCTION, or a weighted sum such as 'alliteration - 0.1*length'",
    )
    algorithm: Literal["reinforce", "rloo", "grpo"] = option("rloo", "row of the algorithm table")
    baseline: Literal["none", "moving", "batch"] | None = option(None, "baseline of reinforce; null: none")
    scale_rewards: bool | None = option(
        None, "grpo: divide by the group's deviation; false gives Dr. GRPO's centred advantage; null: true"
    )
    constant_length: bool = option(
        False, "grpo: divide by max_completion_length, not by each completion's length (Dr. GRPO)"
    )
    epsilon: float | None = option(
        None, "clip the ratio below 1 - epsilon; null: 0.2 in grpo, no clipping elsewhere", above=0, high=1
    )
    epsilon_high: float | None = option(
        None, "clip the ratio above 1 + epsilon_high; null: the same as epsilon", above=0
    )
    kl: KL = option(KL(), "the KL penalty")
    beta: float | None = option(
        None, "the KL penalty in the alliteration study's unit: 99 times kl.coef", unit="study's beta", low=0
    )
    num_generations: int = option(8, "completions of one prompt: a group", unit="completions", low=1)
    batch_size: int = option(64, "completions of one step", unit="completions", low=1)
    steps: int = option(100, "steps to make", unit="steps", low=1)
    num_iterations: int = option(1, "passes over each step's completions", unit="passes", low=1)
    num_mini_batches: int = option(1, "optimiser updates a pass is split into", unit="updates", low=1)
    gradient_accumulation_steps: int | None = option(
        None,
        "parts that an update is computed in: less memory, the same loss; null: as the device likes",
        unit="parts",
        low=1,
    )
    max_completion_length: int = option(96, "longest completion", unit="tokens", low=1)
    temperature: float = option(1.0, "logits are divided by this in sampling and in training", above=0)
    optim: Literal["sgd", "adamw"] = option("adamw", "optimiser; sgd has no momentum")
    learning_rate: float = option(1e-4, "peak learning rate", unit="per update", above=0)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = option(
        "constant", "schedule per optimiser update"
    )
    warmup_steps: int = option(0, "updates over which the rate rises", unit="updates", low=0)
    weight_decay: float = option(0.0, "AdamW's decoupled decay of matrices", low=0)
    max_grad_norm: float | None = option(1.0, "clip the gradient's norm; null: no clipping", above=0)
    lora_r: int | None = option(None, "rank of LoRA adapters; null: train all weights", low=1)
    lora_alpha: float | None = option(None, "scale of the adapters; null: 2 * lora_r", above=0)
    dtype: Literal["float32", "bfloat16"] = option("float32", "precision of forward and backward passes")
    fast: bool = option(
        True,
        "false: the library's cache, whole logits and autograd throughout; slower, to compare with",
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute; auto: cuda where there is one")
    seed: int = option(0, "seed of sampling, order and adapters", low=0)
    eval_samples: int = option(256, "fresh completions measured before and after", unit="completions", low=2)
    checkpoint_every: int = option(25, "steps between checkpoints", unit="steps", low=1)
    keep_checkpoints: int = option(2, "newest checkpoints to keep, besides the best one", low=1)
    stop: Stop = option(Stop(), "automatic stops")
    best: Best = option(Best(), "choice of the checkpoint for final/")
    output_dir: str = option("runs/rl", "run folder; must not exist yet")
    licence: str = option("other", "licence that the model card states (a hub identifier)")
    data_note: str = option("", "what the prompts are and where they are from, for the model card")
    resume: str | None = option(None, "run folder to continue; its own config is used")

    def check(self) -> None:
        """Raises ConfigError for combinations that cannot run."""
        from talltree.algorithms import check_groups

        self._check_kl()
        self.algorithm_options()
        check_groups(self.algorithm, self.num_generations, self.batch_size)
        if self.batch_size % self.num_mini_batches:
            divisors = [n for n in range(1, self.batch_size + 1) if self.batch_size % n == 0]
            near = sorted(divisors, key=lambda n: abs(n - self.num_mini_batches))[:2]
            raise ConfigError(
                f"batch_size {self.batch_size} is not divisible by num_mini_batches {self.num_mini_batches}; "
                f"try {' or '.join(map(str, near))}"
            )
        rows = self.batch_size // self.num_mini_batches
        if self.gradient_accumulation_steps is not None and self.gradient_accumulation_steps > rows:
            raise ConfigError(
                f"gradient_accumulation_steps {self.gradient_accumulation_steps} is more than the {rows} "
                f"completions of an update; use {rows} or less"
            )
        updates = self.num_iterations * self.num_mini_batches
        if updates > 1 and self.clip is None:
            raise ConfigError(
                f"{self.algorithm} is exact for one update a step, and this makes {updates}; set epsilon 0.2 "
                "to clip the ratio, or num_iterations 1 and num_mini_batches 1"
            )

    def _check_kl(self) -> None:
        from talltree.maths.controllers import MAX_ERROR

        if self.kl.coef is not None and self.beta is not None:
            raise ConfigError(
                f"kl.coef {self.kl.coef:g} and beta {self.beta:g} state the same thing in two units; give one"
            )
        if self.kl.loss == "k1":
            raise ConfigError(
                "kl.loss k1 as a loss has zero expected gradient; use k3 or k2, or an algorithm with the KL "
                "in the reward (rloo, reinforce)"
            )
        if self.kl.target is None:
            return
        if self.coef == 0:
            raise ConfigError(
                f"kl.target {self.kl.target:g} cannot be reached from a coefficient of 0, which is only "
                f"multiplied; start with kl.coef {DEFAULT_COEF}"
            )
        if self.batch_size * MAX_ERROR >= self.kl.horizon:
            raise ConfigError(
                f"kl.horizon {self.kl.horizon:g} is too short for batch_size {self.batch_size}; "
                f"use {self.batch_size * 10} or more"
            )

    @property
    def coef(self) -> float:
        """The KL coefficient at the start, reward per nat of sequence KL, from either unit."""
        from talltree.maths.kl import coef_from_blog_beta

        if self.beta is not None:
            return coef_from_blog_beta(self.beta)
        return DEFAULT_COEF if self.kl.coef is None else self.kl.coef

    @property
    def clip(self) -> tuple[float, float] | None:
        """How far below and above 1 the ratio may go, or None where nothing is clipped."""
        if self.epsilon is None and self.algorithm != "grpo":
            return None
        low = 0.2 if self.epsilon is None else self.epsilon
        return low, low if self.epsilon_high is None else self.epsilon_high

    def algorithm_options(self) -> dict[str, Any]:
        """The options of the algorithm's row. Raises ConfigError for one that belongs to another row."""
        from talltree.algorithms import algorithm

        of_grpo = {
            "scale_rewards": self.scale_rewards is not None,
            "constant_length": self.constant_length,
            "kl.loss": self.kl.loss != "k3",
        }
        if self.algorithm != "grpo" and any(of_grpo.values()):
            name = next(name for name, given in of_grpo.items() if given)
            raise ConfigError(
                f"{name} belongs to grpo and would change nothing in {self.algorithm}; leave it out"
            )
        if self.epsilon_high is not None and self.clip is None:
            raise ConfigError(f"epsilon_high {self.epsilon_high:g} needs epsilon as well, such as 0.2")
        chosen: dict[str, Any] = {
            "baseline": self.baseline,
            "standardise": self.scale_rewards,
            "constant_length": float(self.max_completion_length) if self.constant_length else None,
        }
        if self.algorithm == "grpo" and self.clip is not None:
            chosen["clip_low"], chosen["clip_high"] = self.clip
        chosen = {key: value for key, value in chosen.items() if value is not None}
        algorithm(self.algorithm, **chosen)
        return chosen
