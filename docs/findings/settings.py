"""A study as a table: python docs/findings/settings.py STUDY KEY [KEY ...].

A line for each setting, from the results.json of the study; under each KEY of the last link's summary
(after.reward, after.kl, ...) are the values of the seeds, in the study's order.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple


class Trial(NamedTuple):
    """A finished trial: its levels by factor, its seed, and folder and outcomes of its last link."""

    setting: dict[str, str]
    seed: int
    folder: Path
    outcomes: dict[str, float]


def finished(study: str) -> list[Trial]:
    """The finished trials of a study, settings and seeds in the study's order."""
    results = json.loads((Path(study) / "results.json").read_text(encoding="utf-8"))
    return [
        Trial(
            {name: str(level) for name, level in trial["setting"].items()},
            trial["seed"],
            Path(study) / list(trial["folders"].values())[-1],
            list(trial["outcomes"].values())[-1],
        )
        for trial in results["trials"]
        if trial["state"] == "finished"
    ]


def by_level(trials: list[Trial], *factors: str) -> dict[tuple[str, ...], list[Trial]]:
    """Trials of one combination of levels together."""
    found: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        found.setdefault(tuple(trial.setting[name] for name in factors), []).append(trial)
    return found


def metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run folder's metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def main(study: str, *keys: str) -> None:
    """Prints the table, in Markdown."""
    trials = finished(study)
    factors = list(trials[0].setting)
    print(f"| {' | '.join([*factors, *keys])} |")
    print("|---" * (len(factors) + len(keys)) + "|")
    for levels, seeds in by_level(trials, *factors).items():
        values = [", ".join(f"{seed.outcomes[key]:.3g}" for seed in seeds) for key in keys]
        print(f"| {' | '.join([*levels, *values])} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
