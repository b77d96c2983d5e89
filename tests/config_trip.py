"""Config classes that the tests of config read and write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from talltree.config import option, parse
from talltree.errors import ConfigError


@dataclass(frozen=True)
class Leash:
    coef: float = option(0.1, "Price of a nat.", unit="reward per nat", low=0)
    target: float | None = option(None, "Sequence KL to steer to.", unit="nats", above=0)


@dataclass(frozen=True)
class Trip:
    """A trip that is 100% made up."""

    steps: int = option(10, "How many.", unit="updates", low=1, high=1000)
    learning_rate: float = option(1e-5, "How fast.", above=0)
    algorithm: Literal["rloo", "grpo"] = option("rloo", "Which.")
    kl: Leash = option(Leash(coef=0.2), "The leash.")
    words: tuple[str, ...] = option(("tall", "tree"), "Words.")
    betas: tuple[float, float] = option((0.9, 0.999), "Two decays.", low=0, high=1)
    sizes: list[int] = option([1, 2], "Sizes.", low=1)
    shares: dict[str, float] = option({}, "Shares.", low=0)
    name: str | None = option(None, "A name.")
    folder: str = option("runs/trip", "A folder.")
    mode: str = option("fast", "A mode.", choices=("fast", "slow"))
    window: float | Literal["auto"] = option("auto", "A window.")
    limit: int | None = option(None, "A limit.")
    quick: bool = option(False, "Be quick.")

    def check(self) -> None:
        if self.quick and self.steps > 100:
            raise ConfigError(f"--quick goes with at most 100 steps, not {self.steps}; lower --steps")


def read(*argv: str) -> Trip:
    return parse(Trip, argv, "talltree trip")


def yaml_file(folder: Path, text: str) -> str:
    path = folder / "trip.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


STEPS = "allowed: int, at least 1 and at most 1000 (updates)"
