"""Groups of options of the rl stage: the KL penalty, the critic, automatic stops, the choice of final/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from talltree.config import option


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
    gain: float = option(
        0.0,
        "power of KL / target that the adaptive coefficient follows at once; 1 meets a target in short runs, "
        "0 is the rule of Ziegler et al.",
        low=0,
        high=10,
    )
    loss: Literal["k1", "k2", "k3"] = option(
        "k3", "estimator where the KL stands in the loss (grpo); k1 is refused, its expected gradient is zero"
    )


@dataclass(frozen=True)
class Critic:
    """The critic of ppo, a value head on the hidden states of a body."""

    body: Literal["separate", "shared"] = option(
        "separate", "a body of its own (with LoRA: adapters of its own), or the policy's"
    )
    init_from: str | None = option(
        None,
        "folder that the critic starts from: a reward model, or a run with critic/; null: the policy's body",
    )
    head: Literal["zero", "loaded"] = option(
        "zero", "value head at the start: every value 0, or as it is in init_from"
    )
    learning_rate: float | None = option(
        None, "peak learning rate of the critic; null: learning_rate", unit="per update", above=0
    )
    warmup_steps: int = option(
        0, "steps at the start in which the critic learns alone and the policy stays", unit="steps", low=0
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
