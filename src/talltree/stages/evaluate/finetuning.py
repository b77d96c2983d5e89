"""The fine-tuning tasks as parts: one fine-tuning of one seed each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from talltree.evals.finetune_options import FinetuneOptions
from talltree.evals.results import TaskResult
from talltree.stages.evaluate.models import Loaded
from talltree.stages.evaluate.parts import Part, Progress, Task

if TYPE_CHECKING:
    from talltree.evals.classification_items import TaskData

FINETUNING_VERSION = 1


def finetuning_task(name: str, data: TaskData, options: FinetuneOptions) -> Task:
    """One task of GLUE, SuperGLUE or MSGS, a part for each seed."""
    digest = hashlib.sha256(repr((data.train, data.scored)).encode("utf-8", "surrogatepass")).hexdigest()
    return Task(name, [_seed(name, data, digest, options, seed) for seed in options.seeds], _join)


def _seed(name: str, data: TaskData, digest: str, options: FinetuneOptions, seed: int) -> Part:
    def compute(loaded: Loaded, _: Sequence[TaskResult], progress: Progress) -> TaskResult:
        from talltree.evals.finetune import run_seed

        device: Any = loaded.model.device.type
        found = run_seed(name, loaded.place.source, data, replace(options, device=device), seed, progress.say)
        # A part is kept as rows: the predictions, and after them the rest of what the summary needs.
        rest = {"seed_result": name, "seed": seed, "history": found.history, "facts": found.facts}
        return TaskResult({}, [*found.rows, rest])

    decides = {key: value for key, value in asdict(options).items() if key not in ("seeds", "device")}
    return Part(f"seed {seed}", digest, [FINETUNING_VERSION, seed, decides], compute)


def _join(results: Sequence[TaskResult]) -> TaskResult:
    from talltree.evals.finetune import SeedResult, summarise_seeds

    seeds = []
    for result in results:
        *rows, rest = result.rows
        seeds.append(SeedResult(rest["seed_result"], rest["seed"], rows, rest["history"], rest["facts"]))
    return summarise_seeds(seeds)
