"""Our side: the rl stage as anybody runs it, into a run folder, with nothing switched off.

Phases are the run's own metrics: sample (generation), score (rewards and the reference's log-probs), train
(forward, backward, update). What is left of the step, samples.parquet, metrics and console, is `rest`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.machine import WARM_UP, StepClock, memory
from bench.shapes import from_json
from bench.weights import SEED, prompt
from talltree.config import from_dict
from talltree.run import Run
from talltree.stages import rl

PHASES = ("sample", "score", "train", "rest")
LEARNING_RATE = 1e-6
KL_COEF = 0.05
MAX_GRAD_NORM = 1.0


def settings(task: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the rl stage for a task: a row, model folder, output folder, timed steps and device."""
    row = from_json(task["row"])
    total = task["steps"] + WARM_UP
    return {
        "model_name_or_path": task["model"],
        "prompt": prompt(),
        "reward": "alliteration",
        "algorithm": "rloo",
        "kl": {"coef": KL_COEF},
        "num_generations": row.group,
        "batch_size": row.sequences,
        "max_completion_length": row.tokens,
        "steps": total,
        "learning_rate": LEARNING_RATE,
        "max_grad_norm": MAX_GRAD_NORM,
        "device": task["device"],
        "seed": SEED,
        "eval_samples": 2,
        "checkpoint_every": total,
        "output_dir": str(Path(task["output"]) / "run"),
    }


def work(task: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds, phases and sampled tokens of every step after the warm-up, and peak memory."""
    options = settings(task)
    with StepClock(task["device"]).running() as clock:
        rl.run(from_dict(rl.Config, options))
    rows = Run.open(options["output_dir"]).metrics()[WARM_UP:]
    steps = []
    for seconds, row in zip(clock.seconds(), rows, strict=True):
        phases = {name: row[f"time/{name}"] for name in PHASES if name != "rest"}
        phases["rest"] = seconds - sum(phases.values())
        tokens = round(row["completion/length"] * options["batch_size"])
        steps.append({"seconds": seconds, "phases": phases, "tokens": tokens})
    return {"steps": steps, **memory(task["device"])}
