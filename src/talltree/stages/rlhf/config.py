"""The options of the rlhf loop and of the stages that it runs, all checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from talltree.config import option
from talltree.errors import ConfigError
from talltree.stages.table import config_of

OWN = {
    "reward": ("dataset_name", "validation_name", "output_dir", "resume", "seed"),
    "rl": (
        *("model_name_or_path", "reference_model_name_or_path", "reward", "output_dir", "resume"),
        *("seed", "beta"),
    ),
    "simulate": ("seed",),
}
"""What the loop itself gives to its stages, so that nobody else may."""
MAY_CHANGE = ("after_stop", "judges.port")
"""What a resume may ask for anew."""


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Who judges, and what they are asked."""

    kind: Literal["best", "bws", "pair"] = option(
        "best", "best: the best of k (Ziegler et al. 2019); bws: best and worst; pair: two at a time"
    )
    k: int = option(4, "completions of one prompt judged together", unit="completions", low=2, high=9)
    overlap: int = option(1, "different annotators for each tuple", unit="annotators", low=1, high=7)
    question: str = option("", "what the page asks; empty: the usual question of the kind")
    names: list[str] = option(["annotator"], "people who judge; each gets a private link")
    serve: bool = option(
        True, "serve the page while people are waited for; false: `talltree annotate serve` is run elsewhere"
    )
    port: int = option(8420, "port of the page, on this machine alone; 0 takes a free one", low=0, high=65535)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Reinforcement learning from human feedback, in as many rounds as asked for."""

    model_name_or_path: str = option("seedling", "the start of the policy, and the reference of every round")
    rounds: int = option(
        1,
        "how often labels are collected, the reward model is fitted anew and the policy goes on; "
        "1: offline, all labels first; a few: batched; about 20: online",
        unit="rounds",
        low=1,
    )
    comparisons: int = option(
        500, "judged tuples in all rounds together, validation not counted", unit="tuples", low=4
    )
    validation_tuples: int = option(
        16,
        "further tuples a round on held-out prompts, half of their completions from the policy and half "
        "from the reference; judged alike, never trained on",
        unit="tuples",
        low=0,
    )
    judges: Judges = option(Judges(), "who judges, and what they are asked")
    simulate: dict[str, Any] = option(
        {},
        "options of `annotate simulate` (reward, noise, lapses, ...) where it judges; empty: people",
    )
    reward: dict[str, Any] = option(
        {}, "options of the reward stage; model_name_or_path is the policy's start unless given"
    )
    rl: dict[str, Any] = option(
        {}, "options of the rl stage; steps are those of all rounds together; also rules the sampling"
    )
    after_stop: Literal["end", "go_on"] = option(
        "end",
        "a round whose rl stopped by itself (collapse, constant reward, not finite): end before the next; "
        "or go on from its best checkpoint. The KL ceiling alone always goes on",
    )
    seed: int = option(0, "seed of samples, reward models, training and simulated judges", low=0)
    licence: str = option("other", "licence that the model card states (a hub identifier)")
    data_note: str = option("", "what the prompts and the judges are, for the model card")
    output_dir: str = option("runs/rlhf", "run folder; must not exist yet")
    resume: str | None = option(None, "run folder to continue; its own config is used")

    def check(self) -> None:
        """Raises ConfigError for what any of the stages would refuse, before the first one starts."""
        for group, names in OWN.items():
            given = next((name for name in names if name in getattr(self, group)), None)
            if given is not None:
                raise ConfigError(f"{group}.{given} is given by the loop itself; leave it out")
        for given in _of_group(self.reward, "reference"):
            if given != "samples":
                raise ConfigError(
                    f"reward.reference.{given} is given by the loop itself: fresh samples of "
                    "model_name_or_path, drawn as rl draws, set gain and bias; leave it out"
                )
        if self.judges.kind == "pair" and self.judges.k != 2:
            raise ConfigError(f"judges.k {self.judges.k} is not 2, and judges.kind is pair; set judges.k 2")
        if self.judges.kind == "bws" and self.judges.k < 3:
            raise ConfigError(f"judges.k {self.judges.k} is too few for a best and a worst; use 3 or more")
        if self.validation_tuples and self.judges.k % 2:
            raise ConfigError(
                f"judges.k {self.judges.k} is odd, and half of a validation tuple is from the reference; "
                "use an even k, or validation_tuples 0"
            )
        if self.comparisons < self.rounds:
            raise ConfigError(f"comparisons {self.comparisons} are fewer than rounds {self.rounds}")
        steps = self.stage("rl").steps
        if steps < self.rounds:
            raise ConfigError(
                f"rl.steps {steps} are fewer than rounds {self.rounds}; each needs one at least"
            )
        judges = len(set(self.judges.names))
        if self.is_simulated:
            hidden = self.stage("annotate").simulate
            if bool(hidden.reward) == bool(hidden.model_name_or_path):
                raise ConfigError("simulate needs one hidden utility: reward, or model_name_or_path")
            judges = hidden.annotators if "annotators" in self.simulate else self.judges.overlap
        if judges < self.judges.overlap:
            raise ConfigError(
                f"judges.overlap {self.judges.overlap} needs as many annotators, and there are {judges}; "
                "name more (judges.names, simulate.annotators), or lower judges.overlap"
            )
        self._check_first_fit()

    def _check_first_fit(self) -> None:
        """Refuses now what the reward stage would refuse when people have judged the whole first round."""
        reward = self.stage("reward")
        first = share(self.comparisons, self.rounds, 1) * self.judges.overlap
        held_out = 0.0 if self.validation_tuples else reward.validation_share
        left = int(first * (1 - held_out))
        if left < reward.batch_size:
            raise ConfigError(
                f"the first of {self.rounds} rounds gives {left} judgements to train on, fewer than "
                f"reward.batch_size {reward.batch_size}; raise comparisons, or lower "
                "reward.batch_size or rounds"
            )

    @property
    def is_simulated(self) -> bool:
        """Whether simulated annotators judge."""
        return bool(self.simulate)

    def seed_of(self, round_number: int) -> int:
        """The seed of a round: the run's own in the first one, far from other runs' in later ones."""
        return self.seed + 1_000_003 * (round_number - 1)

    def stage(self, name: str, **given: Any) -> Any:
        """The Config of one of the stages, with what the loop gives it. Raises ConfigError."""
        where = "simulate" if name == "annotate" else name
        return config_of(name, self.mapping(name, **given), where)

    def mapping(self, name: str, **given: Any) -> dict[str, Any]:
        """The options of one of the stages as a config file would hold them, with what the loop gives it."""
        if name == "annotate":
            return {"action": "simulate", "folder": "study", "simulate": dict(self.simulate), **given}
        defaults = {"model_name_or_path": self.model_name_or_path, "licence": self.licence}
        if name == "reward":
            defaults["dataset_name"] = "preferences.jsonl"
        return {**defaults, **getattr(self, name), **given}


def _of_group(mapping: dict[str, Any], group: str) -> list[str]:
    """The options of a group that a nested or dotted mapping gives."""
    nested = mapping.get(group)
    dotted = [key.removeprefix(f"{group}.") for key in mapping if key.startswith(f"{group}.")]
    return [*dotted, *(nested if isinstance(nested, dict) else ())]


def share(total: int, rounds: int, round_number: int) -> int:
    """The part of a total that round 1, 2, ..., `rounds` gets; the parts differ by at most 1 and add up."""
    return total * round_number // rounds - total * (round_number - 1) // rounds
