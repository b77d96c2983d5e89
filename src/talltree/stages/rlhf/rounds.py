"""What a round hands from step to step: tuples, labels, the options of its stages, and its row of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from talltree.annotation.store import Store
from talltree.annotation.study import StudyTuple
from talltree.data.preferences import Judgement, pairs, write_preferences
from talltree.errors import DataError
from talltree.run import Run
from talltree.stages.rlhf.config import Config, share
from talltree.stages.rlhf.tuples import POLICY, draw_tuples, load_asked, save_asked

__all__ = ["Round", "ask", "label", "load_asked", "report", "reward_options", "rl_options", "round_row"]


class Round(NamedTuple):
    """One round: its number from 1, its folder, and the model that its policy starts from."""

    number: int
    folder: Path
    policy: str

    @property
    def asked(self) -> Path:
        """The tuples that are put before the judges."""
        return self.folder / "asked.jsonl"

    @property
    def study(self) -> Path:
        """The preference store of the round."""
        return self.folder / "study"

    @property
    def training(self) -> Path:
        """The judgements of all rounds so far that the reward model learns from."""
        return self.folder / "preferences.jsonl"

    @property
    def validation(self) -> Path:
        """The judgements of all rounds so far that nothing learns from."""
        return self.folder / "validation.jsonl"

    def earlier(self) -> list[Round]:
        """The rounds before this one; their policies are not known."""
        return [Round(n, self.folder.parent / f"{n:02d}", "") for n in range(1, self.number)]


def ask(config: Config, this: Round) -> None:
    """Draws the round's tuples from its policy, and the validation tuples from policy and reference."""
    asked = draw_tuples(
        config.stage("rl"),
        this.policy,
        config.model_name_or_path,
        training=share(config.comparisons, config.rounds, this.number),
        validation=config.validation_tuples,
        k=config.judges.k,
        seed=config.seed_of(this.number),
    )
    this.folder.mkdir(parents=True, exist_ok=True)
    save_asked(this.asked, asked)


def label(config: Config, this: Round, say: Callable[[str], None]) -> None:
    """Writes what all rounds' judges said so far, the validation tuples apart.

    A validation judgement with a text that a training judgement holds, too, is left out and counted. Raises
    DataError if nothing settles anything.
    """
    if this.validation.is_file():
        return
    training: list[Judgement] = []
    validation: list[Judgement] = []
    for each in [*this.earlier(), this]:
        held_out = {item.tuple_id for item in load_asked(each.asked).validation}
        for judgement in _judgements(each.study):
            (validation if judgement.tuple_id in held_out else training).append(judgement)
    learned = {(each.prompt, text) for each in training for text in each.candidates}
    apart = [
        each for each in validation if not any((each.prompt, text) in learned for text in each.candidates)
    ]
    if not any(pairs(each) for each in training):
        raise DataError(
            f"round {this.number}: none of {len(training)} judgements prefers one completion to another, so "
            "a reward model has nothing to learn"
        )
    if len(apart) < len(validation):
        say(f"{len(validation) - len(apart)} validation judgements hold a training text and are left out")
    if not any(pairs(each) for each in apart):
        apart = []  # ties alone measure nothing: the reward stage then holds out some of the others
    write_preferences(this.training, training)
    write_preferences(this.validation, apart)


def _judgements(study: Path) -> list[Judgement]:
    with Store.open(study) as store:
        return store.judgements()


def reward_options(config: Config, this: Round) -> dict[str, Any]:
    """The options of the reward stage: fitted anew, from the same start, on all judgements so far.

    Gain and bias come from fresh samples of the reference, drawn and cut as the policy's are: the candidates
    of later rounds are no reference samples.
    """
    rl = config.stage("rl")
    given: dict[str, Any] = {
        "dataset_name": str(this.training),
        "seed": config.seed_of(this.number),
        "reference": {
            **config.reward.get("reference", {}),
            "source": "model",
            "model_name_or_path": config.model_name_or_path,
            "temperature": rl.temperature,
            "max_completion_length": rl.max_completion_length,
            "truncate_token": rl.truncate_token,
            "truncate_after": rl.truncation_start,
        },
    }
    if this.validation.stat().st_size:
        given["validation_name"] = str(this.validation)
    return config.mapping("reward", **given)


def rl_options(config: Config, this: Round) -> dict[str, Any]:
    """The options of the rl stage: from this round's policy, against the reference of every round.

    An adaptive KL coefficient goes on from where the last round left it.
    """
    rl = config.stage("rl")
    given: dict[str, Any] = {
        "model_name_or_path": this.policy,
        "reward": str(this.folder / "reward" / "final"),
        "steps": share(rl.steps, config.rounds, this.number),
        "seed": config.seed_of(this.number),
    }
    if this.number > 1:
        last = this.earlier()[-1].folder / "rl"
        given["reference_model_name_or_path"] = config.model_name_or_path
        given["kl"] = {**config.rl.get("kl", {}), "coef": Run.open(last).summary()["kl_coef_end"]}
    return config.mapping("rl", **given)


def round_row(config: Config, this: Round) -> dict[str, Any]:
    """The round's figures, under the names that metrics.jsonl has."""
    rl, reward = (Run.open(this.folder / stage).summary() for stage in ("rl", "reward"))
    preference = preference_for_policy(_judgements(this.study), load_asked(this.asked).validation)
    with this.training.open(encoding="utf-8") as lines:
        comparisons = sum(1 for _ in lines)
    return {
        "rlhf/comparisons": comparisons,
        "rlhf/reward_accuracy": reward["after"]["accuracy"]["mean"],
        "rlhf/policy_preferred": preference.share,
        "rlhf/policy_pairs": preference.pairs,
        "rlhf/reward_before": rl["before"]["reward"]["mean"],
        "rlhf/reward_after": rl["after"]["reward"]["mean"],
        "rlhf/kl": rl["after"]["kl"]["mean"],
    }


def stop_reason(this: Round) -> str:
    """Why the round's reinforcement learning ended."""
    return str(Run.open(this.folder / "rl").summary()["stop_reason"])


def report(row: dict[str, Any]) -> str:
    """What `round_row` found, in one line."""
    of = {key.removeprefix("rlhf/"): value for key, value in row.items()}
    preferred = of["policy_preferred"]
    judged = (
        ""
        if preferred is None
        else f"; its policy preferred to the reference in {preferred:.0%} of {of['policy_pairs']} pairs"
    )
    return (
        f"{of['comparisons']:,} judgements; reward model right on {of['reward_accuracy']:.1%} of "
        f"the held-out pairs{judged}; reward {of['reward_before']:.2f} -> {of['reward_after']:.2f} at "
        f"{of['kl']:.1f} nats"
    )


class Preference(NamedTuple):
    """How often the judges preferred the policy to the reference, of the pairs that set them apart."""

    wins: int
    pairs: int

    @property
    def share(self) -> float | None:
        """Share of the pairs that the policy won; None where there is none."""
        return self.wins / self.pairs if self.pairs else None


def preference_for_policy(judged: Sequence[Judgement], asked: Sequence[StudyTuple]) -> Preference:
    """Wins of the policy's completions over the reference's in the tuples that hold both."""
    sources = {each.tuple_id: each.sources for each in asked if len(set(each.sources)) == 2}
    wins = total = 0
    for judgement in judged:
        source = sources.get(judgement.tuple_id)
        for winner, loser in pairs(judgement) if source else []:
            if source is not None and source[winner] != source[loser]:
                total += 1
                wins += source[winner] == POLICY
    return Preference(wins, total)
