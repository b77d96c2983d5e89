"""A run folder with something in it, for tests."""

import os
import sys
from pathlib import Path

ENVIRONMENT = {**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
CONFIG = {
    "model_name_or_path": "seedling",
    "kl": {"coef": 0.1, "target": None},
    "learning_rate": 1e-5,
    "text": "æøå: 🌲",
    "seed": "1e5",
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def columns(step: int, count: int = 2) -> dict[str, list]:
    return {
        "prompt": ["Once"] * count,
        "completion": [f"upon {step}.{index} 🌲" for index in range(count)],
        "prompt_ids": [[1]] * count,
        "completion_ids": [[5, step, index] for index in range(count)],
        "reward": [0.5, None][:count],
        "kl": [0.25] * count,
        "spans": [[], [[0, 4], [5, 7]]][:count],
        "reward/length": [float(step)] * count,
    }


def expected_rows(*steps: int) -> list[dict]:
    rows = []
    for step in steps:
        made = columns(step)
        rows += [{"step": step, **{name: made[name][index] for name in made}} for index in range(2)]
    return rows
