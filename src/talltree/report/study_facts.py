"""What a study folder says, read once: results.json, the curves of its trials, and their stories."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from talltree import yaml_text
from talltree.errors import RunError
from talltree.evals.seeds import OverSeeds, over_seeds
from talltree.report.draw import moving_mean
from talltree.report.facts import value
from talltree.run import CONFIG, METRICS, metrics_so_far

RESULTS = "results.json"
STUDY = "study.yaml"


class Trial(NamedTuple):
    """A trial with the resolved config and the metrics of its last link; no config before that has begun."""

    name: str
    setting: Mapping[str, str]
    seed: int
    state: str
    reason: str
    seconds: float
    folder: Path
    outcomes: Mapping[str, float]
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


class Setting(NamedTuple):
    """A setting: its factors' levels, its label, and its trials in the order of their seeds."""

    levels: Mapping[str, str]
    label: str
    trials: Sequence[Trial]

    @property
    def finished(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state == "finished"]

    def outcome(self, key: str) -> OverSeeds | None:
        """An outcome of the last link over the seeds that finished; None where none has it."""
        values = [trial.outcomes[key] for trial in self.finished if key in trial.outcomes]
        return over_seeds(values) if values else None


class Curve(NamedTuple):
    """A metric over the steps: the mean over seeds, the lowest and the highest seed; these empty for one.

    No interval of the mean: while seeds change over one by one, that of three goes far beyond all of them.
    """

    label: str
    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


class StudyFacts(NamedTuple):
    """A study, read; `factors` are those with two levels or more."""

    folder: Path
    name: str
    text: str
    chain: Sequence[Mapping[str, str]]
    factors: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    settings: Sequence[Setting]

    @property
    def trials(self) -> list[Trial]:
        return [trial for setting in self.settings for trial in setting.trials]


def is_study(folder: str | Path) -> bool:
    """Whether the folder is a study's, and no run's."""
    return (Path(folder) / STUDY).is_file()


def read(folder: str | Path) -> StudyFacts:
    """Reads the study in `folder`. Raises RunError, one line, if it is none or has no results yet."""
    path = Path(folder)
    try:
        found = json.loads((path / RESULTS).read_text(encoding="utf-8"))
        text = (path / STUDY).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"{path} has no {RESULTS} yet; run the study first: talltree sweep FILE") from None
    except ValueError as error:
        raise RunError(f"{path / RESULTS} is damaged: {' '.join(str(error).split())}") from error
    factors = {each["name"]: each["levels"] for each in found["factors"] if len(each["levels"]) > 1}
    last = found["chain"][-1]["link"] if found["chain"] else ""
    settings: dict[str, Setting] = {}
    for row in found["trials"]:
        key = json.dumps(row["setting"])
        label = setting_label(row["setting"], factors)
        setting = settings.setdefault(key, Setting(row["setting"], label, []))
        where = path / row["folders"][last]
        trial = Trial(
            name=row["name"],
            setting=row["setting"],
            seed=row["seed"],
            state=row["state"],
            reason=row["reason"],
            seconds=row["seconds"],
            folder=where,
            outcomes=row["outcomes"].get(last, {}),
            config=_config(where / CONFIG),
            rows=metrics_so_far(where / METRICS),
        )
        settings[key] = setting._replace(trials=[*setting.trials, trial])
    return StudyFacts(
        path, found["study"], text, found["chain"], factors, found["seeds"], list(settings.values())
    )


def _config(path: Path) -> Mapping[str, Any]:
    try:
        found = yaml_text.Loader(path.read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    return found if isinstance(found, Mapping) else {}


def decided_by(facts: StudyFacts, key: str) -> list[str]:
    """The factors that decide an option of the last link: each level fixes it, and not all levels alike."""
    found = []
    for factor, levels in facts.factors.items():
        values = {
            level: {
                json.dumps(value(trial.config, key))
                for trial in facts.trials
                if trial.config and trial.setting.get(factor) == level
            }
            for level in levels
        }
        known = [each for each in values.values() if each]
        if all(len(each) == 1 for each in known) and len(set().union(*known)) > 1:
            found.append(factor)
    return found


def setting_label(levels: Mapping[str, str], factors: Mapping[str, Any]) -> str:
    """The levels of what varies, with their factors' names where a level alone says little."""
    shown = [(name, level) for name, level in levels.items() if name in factors]
    parts = [
        level if name == "point" or not _is_bare(level) else f"{short(name)} {level}" for name, level in shown
    ]
    return ", ".join(parts) or "the setting"


def short(name: str) -> str:
    """A factor's name for headings: kl.coef stays, rl.kl.coef loses its link, learning_rate has a space."""
    parts = name.split(".")
    return ".".join(parts[-2:]).replace("_", " ")


def _is_bare(level: str) -> bool:
    try:
        float(level)
    except ValueError:
        return level in ("true", "false", "null")
    return True


def curve(setting: Setting, key: str, window: int = 1) -> Curve | None:
    """A metric of a setting over its seeds, each first smoothed over `window` steps.

    Only steps that every seed with this metric has reached: after the first of them ends, the mean of the
    others would jump. Seeds without it (failed at once) are left out; None where no seed has it.
    """
    series = [_series(trial.rows, key, window) for trial in setting.trials]
    series = [each for each in series if each]
    if not series:
        return None
    steps = sorted(set.intersection(*(set(each) for each in series)))
    found = [[each[step] for each in series] for step in steps]
    if not found:
        return None
    banded = found if len(series) > 1 else []
    means = [sum(values) / len(values) for values in found]
    return Curve(setting.label, steps, means, [min(each) for each in banded], [max(each) for each in banded])


def _series(rows: Sequence[Mapping[str, Any]], key: str, window: int) -> dict[int, float]:
    found = [(row["step"], float(row[key])) for row in rows if isinstance(row.get(key), int | float)]
    if not found:
        return {}
    steps = [step for step, _ in found]
    values = [value for _, value in found]
    return dict(zip(steps, moving_mean(values, window) if window > 1 else values, strict=True))


def stories(trial: Trial, side: str) -> list[Mapping[str, Any]]:
    """The fresh samples of a trial, before or after; none where its stage writes none."""
    path = trial.folder / f"{side}.jsonl"
    if not path.is_file():
        return []
    found: list[Mapping[str, Any]] = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("prompt"), str) and "completion" in row:
            found.append(row)
    return found
