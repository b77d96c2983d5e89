"""The options of the rl stage. Names are those of the ecosystem where it has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from talltree.config import option
from talltree.errors import ConfigError
from talltree.stages.rl.groups import KL, Best, Critic, Stop

DEFAULT_COEF = 0.05
DEFAULT_TRUNCATE_AFTER = 16
"""Tokens, as in Ziegler et al. 2019."""

OF_PPO = ("gamma", "lam", "vf_coef", "cliprange_value", "whiten_rewards")


@dataclass(frozen=True)
class Config:
    """Reinforcement learning of a causal language model on a reward, under a KL penalty."""

    model_name_or_path: str = option("seedling", "`seedling`, a local folder or a hub name")
    reference_model_name_or_path: str | None = option(
        None, "model that the KL is measured against, of the same tokens; null: the policy as it starts"
    )
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
    algorithm: Literal["reinforce", "rloo", "grpo", "ppo"] = option("rloo", "row of the algorithm table")
    baseline: Literal["none", "moving", "batch"] | None = option(None, "baseline of reinforce; null: none")
    scale_rewards: bool | None = option(
        None, "grpo: divide by the group's deviation; false gives Dr. GRPO's centred advantage; null: true"
    )
    constant_length: bool = option(
        False, "grpo: divide by max_completion_length, not by each completion's length (Dr. GRPO)"
    )
    epsilon: float | None = option(
        None,
        "clip the ratio below 1 - epsilon; null: 0.2 in grpo and ppo, no clipping elsewhere",
        above=0,
        high=1,
    )
    epsilon_high: float | None = option(
        None, "clip the ratio above 1 + epsilon_high; null: the same as epsilon", above=0
    )
    gamma: float | None = option(None, "ppo: discount per token; null: 1", low=0, high=1)
    lam: float | None = option(
        None, "ppo: GAE's lambda, from 0 (one step) to 1 (the whole return); null: 0.95", low=0, high=1
    )
    whiten_rewards: bool | None = option(
        None, "ppo: rewards per token in deviations, their mean kept; null: true"
    )
    vf_coef: float | None = option(None, "ppo: weight of the value loss; null: 0.1", above=0)
    cliprange_value: float | None = option(
        None, "ppo: how far one step's updates may take a value; null: 0.2", unit="reward", above=0
    )
    critic: Critic = option(Critic(), "the critic of ppo")
    kl: KL = option(KL(), "the KL penalty")
    beta: float | None = option(
        None, "the KL penalty in the alliteration study's unit: 99 times kl.coef", unit="study's beta", low=0
    )
    num_generations: int = option(8, "completions of one prompt: a group", unit="completions", low=1)
    batch_size: int = option(64, "completions of one step", unit="completions", low=1)
    steps: int = option(100, "steps to make", unit="steps", low=1)
    num_iterations: int | None = option(
        None, "passes over each step's completions; null: 4 in ppo, 1 elsewhere", unit="passes", low=1
    )
    num_mini_batches: int = option(1, "optimiser updates a pass is split into", unit="updates", low=1)
    gradient_accumulation_steps: int | None = option(
        None,
        "parts that an update is computed in: less memory, the same loss; null: as the device likes",
        unit="parts",
        low=1,
    )
    max_completion_length: int = option(96, "longest completion", unit="tokens", low=1)
    truncate_token: str | None = option(
        None, 'text of a token that ends a completion, such as "."; null: stop tokens alone do'
    )
    truncate_after: int | None = option(
        None, "position, from 0, at which truncate_token begins to count; null: 16", unit="tokens", low=0
    )
    missing_eos_penalty: float | None = option(
        None,
        "score of a completion without its required end, instead of its reward: truncate_token, else a stop "
        "token; null: -1 with truncate_token, otherwise none",
        unit="reward",
    )
    temperature: float = option(1.0, "logits are divided by this in sampling and in training", above=0)
    optim: Literal["sgd", "adamw"] = option("adamw", "optimiser; sgd has no momentum")
    learning_rate: float = option(1e-4, "peak learning rate", unit="per update", above=0)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = option(
        "constant", "schedule per optimiser update"
    )
    warmup_steps: int = option(0, "updates over which the rate rises", unit="updates", low=0)
    weight_decay: float = option(0.0, "AdamW's decoupled decay of matrices", low=0)
    adam_epsilon: float = option(1e-8, "AdamW's epsilon", above=0)
    max_grad_norm: float | None = option(
        1.0, "clip the gradient's norm, a separate critic's by itself; null: no clipping", above=0
    )
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
        self._check_end()
        self._check_critic()
        updates = self.iterations * self.num_mini_batches
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
            if self.kl.gain > 0:
                raise ConfigError(
                    f"kl.gain {self.kl.gain:g} has no target to follow; set kl.target to the nats a sequence "
                    "that the run may spend, or leave kl.gain out"
                )
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

    def _check_end(self) -> None:
        if self.truncate_token is None and self.truncate_after is not None:
            raise ConfigError(
                f"truncate_after {self.truncate_after} needs truncate_token as well, such as '.'"
            )
        if self.truncate_token == "":
            raise ConfigError("truncate_token '' is no token; give its text, such as '.', or leave it out")
        if self.truncate_token is not None and self.truncation_start >= self.max_completion_length:
            raise ConfigError(
                f"truncate_after {self.truncation_start} leaves no position in max_completion_length "
                f"{self.max_completion_length} for truncate_token; use {self.max_completion_length - 1} or "
                "less"
            )

    def _check_critic(self) -> None:
        critic = self.critic
        if critic.warmup_steps >= self.steps:
            raise ConfigError(
                f"critic.warmup_steps {critic.warmup_steps} leaves no step of {self.steps} in which the "
                f"policy learns; use {self.steps - 1} or less"
            )
        if critic.head == "loaded" and critic.init_from is None:
            raise ConfigError(
                "critic.head loaded has nothing to load from; name a folder by critic.init_from"
            )
        if critic.head == "zero" and critic.init_from is not None and critic.body == "shared":
            raise ConfigError(
                f"critic.init_from {critic.init_from} would change nothing: a shared body is the policy's, "
                "and critic.head is zero; set critic.head loaded, or critic.body separate"
            )

    @property
    def iterations(self) -> int:
        """Passes over each step's completions."""
        return self.num_iterations or (4 if self.algorithm == "ppo" else 1)

    @property
    def truncation_start(self) -> int:
        """The position, from 0, at which truncate_token begins to count."""
        return DEFAULT_TRUNCATE_AFTER if self.truncate_after is None else self.truncate_after

    @property
    def missing_end(self) -> float | None:
        """The score of a completion without its required end, None where its reward stands."""
        if self.missing_eos_penalty is None and self.truncate_token is not None:
            return -1.0
        return self.missing_eos_penalty

    @property
    def value_clip(self) -> float:
        """How far one step's updates may take a value."""
        return 0.2 if self.cliprange_value is None else self.cliprange_value

    @property
    def value_coef(self) -> float:
        """The weight of the value loss beside the policy's."""
        return 0.1 if self.vf_coef is None else self.vf_coef

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
        if self.epsilon is None and self.algorithm not in ("grpo", "ppo"):
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
        of_ppo = {name: getattr(self, name) is not None for name in OF_PPO} | {
            "critic": self.critic != Critic()
        }
        if self.algorithm != "ppo" and any(of_ppo.values()):
            name = next(name for name, given in of_ppo.items() if given)
            raise ConfigError(
                f"{name} belongs to ppo and would change nothing in {self.algorithm}; leave it out"
            )
        if self.epsilon_high is not None and self.clip is None:
            raise ConfigError(f"epsilon_high {self.epsilon_high:g} needs epsilon as well, such as 0.2")
        chosen: dict[str, Any] = {
            "baseline": self.baseline,
            "standardise": self.scale_rewards,
            "constant_length": float(self.max_completion_length) if self.constant_length else None,
        }
        chosen |= {name: getattr(self, name) for name in ("gamma", "lam", "whiten_rewards")}
        if self.algorithm in ("grpo", "ppo") and self.clip is not None:
            chosen["clip_low"], chosen["clip_high"] = self.clip
        chosen = {key: value for key, value in chosen.items() if value is not None}
        algorithm(self.algorithm, **chosen)
        return chosen
