"""A study folder that no run has made, whose figures are known by hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from talltree import yaml_text

EVIL = '<script>alert(1)</script> & \'so "on"'
ONE = {"kl.coef": ["0", "0.1"]}
TWO = {"size": ["small", "middle", "large"], "kl.coef": ["0", "0.1", "1"]}
THREE = {"kl.coef": ["0", "0.1", "1"], "size": ["small", "large"], "seat": ["left", "right"]}
WORTH = (10.0, 1.0, 100.0)
"""What one level further in the first, second and third factor adds to the reward."""


def outcome(reward: float, kl: float) -> dict[str, float]:
    return {
        "before.reward": 1.0, "before.distinct_2": 0.8, "after.reward": reward, "after.kl": kl,
        "after.distinct_2": 0.5,
    }  # fmt: skip


def fabricate(
    folder: Path,
    factors: dict[str, list[str]],
    seeds: int = 3,
    steps: int = 8,
    config: Callable[[Mapping[str, str]], Mapping[str, Any]] | None = None,
    **changed: Any,
) -> Path:
    """A study folder: reward = 10 * place in the first factor + place in the second + 100 * third + seed.

    KL = 2 * place in the first factor + seed / 10. In metrics.jsonl both rise in equal steps from 0 to
    there. config: of a setting, what its config.yaml holds.
    """
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text("chain: [{stage: rl}] # a < b")
    trials = []
    for levels in itertools.product(*factors.values()):
        setting = dict(zip(factors, levels, strict=True))
        places = [factors[name].index(level) for name, level in setting.items()]
        for seed in range(seeds):
            name = ",".join([*(f"{key}={value}" for key, value in setting.items()), f"seed={seed}"])
            reward = seed + sum(worth * place for worth, place in zip(WORTH, places, strict=False))
            kl = 2.0 * places[0] + 0.1 * seed
            run = folder / "trials" / name / "rl"
            run.mkdir(parents=True)
            if config is not None:
                (run / "config.yaml").write_text(yaml_text.dump(dict(config(setting))))
            rows = [
                {"step": step, "reward/mean": reward * step / steps, "kl/sequence": kl * step / steps}
                for step in range(1, steps + 1)
            ]
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            for side, words in (("before", "a tree"), ("after", EVIL)):
                stories = [
                    {"prompt": "Once", "completion": f" {words} {at}", "reward": float(at), "kl": 0.5,
                     "spans": [[0, 4]], "ended": True}
                    for at in range(11)
                ]  # fmt: skip
                (run / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stories))
            trials.append(
                {"name": name, "setting": setting, "seed": seed, "state": "finished",
                 "reason": "", "seconds": 60,
                 "folders": {"rl": f"trials/{name}/rl"}, "outcomes": {"rl": outcome(reward, kl)}}
            )  # fmt: skip
    results = {
        "study": "made up",
        "chain": [{"link": "rl", "stage": "rl"}],
        "factors": [{"name": name, "levels": each} for name, each in factors.items()],
        "seeds": list(range(seeds)),
        "trials": trials,
        "settings": [],
    } | changed
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def change(folder: Path, how: Callable[[dict[str, Any]], None]) -> Path:
    """Changes every trial of results.json; returns the folder."""
    results = json.loads((folder / "results.json").read_text())
    for trial in results["trials"]:
        how(trial)
    (folder / "results.json").write_text(json.dumps(results))
    return folder
