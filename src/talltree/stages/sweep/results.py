"""results.json and results.csv: every trial with its outcomes, and every setting over its seeds."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from talltree import checkpoint
from talltree.evals.seeds import over_seeds
from talltree.stages.sweep.state import State, state_of, summary_of
from talltree.stages.sweep.trials import Trial

RESULTS, TABLE = "results.json", "results.csv"
LEFT_OUT = ("corpus", "data", "preflight")
"""Parts of a summary that describe the input, not the outcome."""


def outcomes(summary: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a summary by its dotted key; of a measure {"mean", "low", "high"} the mean.

    Of a list of mappings, such as rounds, the last one counts.
    """
    return dict(_numbers({key: value for key, value in summary.items() if key not in LEFT_OUT}, ""))


def _numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        mean = value.get("mean")
        if "mean" in value and isinstance(mean, int | float | None):
            yield from _numbers(mean, key)
            return
        for name, inner in value.items():
            yield from _numbers(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and value and isinstance(value[-1], Mapping):
        yield from _numbers(value[-1], key)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield key, value


def trial_state(trial: Trial) -> State:
    """Of the first link that is not finished, else of the last; its seconds are those of all links."""
    states = [state_of(job) for job in trial.jobs]
    at = next((at for at, state in enumerate(states) if state.status != "finished"), len(states) - 1)
    found = states[at]._replace(seconds=sum(state.seconds for state in states))
    if found.status == "failed" and at < len(states) - 1:
        found = found._replace(reason=f"{trial.jobs[at].link}: {found.reason}")
    return found


def collect(name: str, trials: Sequence[Trial], folder: Path) -> dict[str, Any]:
    """What results.json holds; settings are averaged over their finished trials."""
    rows = []
    for trial in trials:
        state = trial_state(trial)
        found = {job.link: summary_of(job) for job in trial.jobs}
        rows.append(
            {
                "name": trial.name,
                "setting": dict(trial.setting),
                "seed": trial.seed,
                "state": state.status,
                "reason": state.reason,
                "seconds": round(state.seconds, 3),
                "folders": {job.link: os.path.relpath(job.folder, folder) for job in trial.jobs},
                "outcomes": {link: outcomes(summary) for link, summary in found.items() if summary},
            }
        )
    chain = trials[0].jobs if trials else ()
    factors: dict[str, list[str]] = {}
    for trial in trials:
        for factor, label in trial.setting.items():
            if label not in factors.setdefault(factor, []):
                factors[factor].append(label)
    return {
        "study": name,
        "chain": [{"link": job.link, "stage": job.stage} for job in chain],
        "factors": [{"name": factor, "levels": levels} for factor, levels in factors.items()],
        "seeds": list(dict.fromkeys(trial.seed for trial in trials)),
        "trials": rows,
        "settings": _settings(rows),
    }


def _settings(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for setting in {json.dumps(row["setting"]): row["setting"] for row in rows}.values():
        mine = [row for row in rows if row["setting"] == setting and row["state"] == "finished"]
        keys = dict.fromkeys(
            (link, key) for row in mine for link in row["outcomes"] for key in row["outcomes"][link]
        )
        measured: dict[str, dict[str, Any]] = {}
        for link, key in keys:
            # A link that seeds share has run once: its figure is one value, however many trials used it.
            values = {
                row["folders"][link]: row["outcomes"][link][key]
                for row in mine
                if key in row["outcomes"].get(link, {})
            }
            measured.setdefault(link, {})[key] = over_seeds(list(values.values()))._asdict()
        found.append({"setting": setting, "finished": len(mine), "outcomes": measured})
    return found


def write(folder: Path, results: Mapping[str, Any]) -> None:
    """Replaces results.json and results.csv."""
    content = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    checkpoint.write_file(folder / RESULTS, content.encode())
    checkpoint.write_file(folder / TABLE, table(results).encode())


def table(results: Mapping[str, Any]) -> str:
    """results.csv: one line a trial."""
    factors = [each["name"] for each in results["factors"]]
    rows = results["trials"]
    keys = dict.fromkeys(
        (link, key) for row in rows for link in row["outcomes"] for key in row["outcomes"][link]
    )
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", *factors, "seed", "state", "reason", "seconds", *(f"{a}.{b}" for a, b in keys)])
    for row in rows:
        writer.writerow(
            [
                row["name"],
                *(row["setting"].get(factor, "") for factor in factors),
                *(row[key] for key in ("seed", "state", "reason", "seconds")),
                *(row["outcomes"].get(link, {}).get(key, "") for link, key in keys),
            ]
        )
    return out.getvalue()
