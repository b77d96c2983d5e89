"""A search by Optuna: its proposals become trials, and what they reached is told back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talltree.errors import ConfigError
from talltree.stages.sweep.results import outcomes, trial_state
from talltree.stages.sweep.state import summary_of
from talltree.stages.sweep.study import Given, Space
from talltree.stages.sweep.trials import Trial, label, make

if TYPE_CHECKING:
    import optuna

STORAGE = "search.db"


class Proposals:
    """The settings of a search, kept in search.db: `proposed` so far, `propose` for more, `settle` the ended.

    A setting that was proposed before the study was killed is run to its end first.
    """

    def __init__(self, given: Given, folder: Path) -> None:
        self._optuna = _import_optuna()
        self._given, self._folder = given, folder
        asked = given.study.search
        self._space = {key: _distribution(self._optuna, each) for key, each in given.space.items()}
        storage = f"sqlite:///{(folder / STORAGE).resolve()}"
        self._optuna.logging.set_verbosity(self._optuna.logging.ERROR)
        self._study: optuna.Study = self._optuna.create_study(
            storage=storage, study_name=given.name, direction=asked.direction, load_if_exists=True
        )
        self._refuse_changed()
        # A sampler starts its draws anew with the process; the same seed again would propose the same again.
        seed = asked.seed + len(self._study.trials)
        samplers = self._optuna.samplers
        if asked.sampler == "random":
            self._study.sampler = samplers.RandomSampler(seed=seed)
        else:
            self._study.sampler = samplers.TPESampler(seed=seed, constant_liar=True)
        self._open: dict[int, list[Trial]] = {}
        self.proposed: list[Trial] = []
        for trial in self._study.get_trials(deepcopy=False):
            if set(trial.params) != set(self._space):
                if not trial.state.is_finished():
                    self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
                continue
            made = self._made(trial.number, trial.params)
            self.proposed += made
            if not trial.state.is_finished():
                self._open[trial.number] = made

    def is_open(self, trial: Trial) -> bool:
        """Whether the trial's setting still waits for its outcome."""
        return any(trial in made for made in self._open.values())

    def propose(self) -> list[Trial]:
        """The trials of one more setting; none once there are as many settings as asked for."""
        if len(self._study.get_trials(deepcopy=False)) >= self._given.study.search.trials:
            return []
        asked = self._study.ask(fixed_distributions=self._space)
        self._open[asked.number] = self._made(asked.number, asked.params)
        self.proposed += self._open[asked.number]
        return self._open[asked.number]

    def settle(self) -> Iterator[str]:
        """Tells what the settings have reached whose every trial has ended; a line about each.

        The mean over the seeds; a setting with a failed trial failed, one with a trial given up is pruned.
        """
        states = self._optuna.trial.TrialState
        for number, made in list(self._open.items()):
            found = [trial_state(trial).status for trial in made]
            if not set(found) <= {"finished", "failed", "stopped"}:
                continue
            del self._open[number]
            values = [value for trial in made if (value := self._value(trial)) is not None]
            metric = self._given.study.search.metric
            if "failed" in found or ("stopped" not in found and len(values) < len(made)):
                self._study.tell(number, state=states.FAIL)
                missing = "" if "failed" in found else f": its summary has no {metric}"
                yield f"setting {number:04d} failed{missing}"
            elif "stopped" in found:
                self._study.tell(number, state=states.PRUNED)
                yield f"setting {number:04d} was given up"
            else:
                mean = sum(values) / len(values)
                self._study.tell(number, mean)
                yield f"setting {number:04d}: {metric} {mean:.4g}; best {self._study.best_value:.4g}"

    def _made(self, number: int, params: dict[str, Any]) -> list[Trial]:
        labels = {key: label(params[key]) for key in self._space}
        return make(self._given, self._folder, labels, {key: params[key] for key in self._space}, number)

    def _value(self, trial: Trial) -> float | None:
        summary = summary_of(trial.jobs[-1])
        return None if summary is None else outcomes(summary).get(self._given.study.search.metric)

    def _refuse_changed(self) -> None:
        asked = self._given.study.search
        now = {
            "space": {key: json.loads(_json(self._optuna, each)) for key, each in self._space.items()},
            "metric": asked.metric,
            "direction": asked.direction,
        }
        before = self._study.user_attrs.get("asked")
        if before is None:
            self._study.set_user_attr("asked", now)
            return
        if (key := next((key for key in now if before[key] != now[key]), None)) is not None:
            raise ConfigError(
                f"{self._given.path}: search.{key} is not what {self._folder / STORAGE} was begun with; "
                "bring the old one back, or give the study another name"
            )


def _json(optuna: Any, distribution: Any) -> str:
    return str(optuna.distributions.distribution_to_json(distribution))


def _distribution(optuna: Any, space: Space) -> Any:
    kinds = optuna.distributions
    if space.choices:
        return kinds.CategoricalDistribution(space.choices)
    ends: Sequence[Any] = (space.low, space.high)
    if all(isinstance(end, int) for end in ends) and isinstance(space.step, int | None):
        return kinds.IntDistribution(space.low, space.high, log=space.log, step=space.step or 1)
    return kinds.FloatDistribution(float(ends[0]), float(ends[1]), log=space.log, step=space.step)


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError("a search needs Optuna: pip install 'talltree[sweep]'") from None
    return optuna
