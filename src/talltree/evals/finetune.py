"""Fine-tuning tasks of the BabyLM challenge: (Super)GLUE and MSGS, one run per task and seed.

`run_seed` is the unit that a caller may cache: its result is JSON. `summarise_seeds` makes metrics of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from talltree.errors import ConfigError
from talltree.evals import glue, msgs
from talltree.evals.classification_items import TaskData, carve, check_apart, majority
from talltree.evals.finetune_options import FinetuneOptions
from talltree.evals.results import Metric, TaskResult

TASKS: dict[str, str] = {
    **{f"glue:{name}": task.about for name, task in glue.TASKS.items()},
    **{f"msgs:{name}": about for name, about in msgs.TASKS.items()},
}
"""Every task by name, and the question that it puts."""


class SeedResult(NamedTuple):
    """One fine-tuning: its predictions, its looks at the stopping rows, and counts. All of it is JSON."""

    task: str
    seed: int
    rows: list[dict[str, Any]]
    history: list[dict[str, float]]
    facts: dict[str, Any]


def measures_of(name: str) -> tuple[str, ...]:
    """The measures of a task, the headline first."""
    kind, task = _split(name)
    return glue.TASKS[task].measures if kind == "glue" else msgs.MEASURES


def read_task(name: str, data: Path | None) -> TaskData:
    """The rows of a task. Raises DataError that says what is missing and what to fetch."""
    kind, task = _split(name)
    return glue.read(task, data) if kind == "glue" else msgs.read(task, data)


def run_task(
    name: str, model_path: str, data: Path | None, options: FinetuneOptions, progress: Callable[[str], None]
) -> TaskResult:
    """Fine-tunes the model on a task once per seed, and scores each on rows that it never saw.

    data: a folder with the tasks' files; None: the hub. Raises ConfigError, DataError or ModelError.
    """
    rows = read_task(name, data)
    return summarise_seeds(
        [run_seed(name, model_path, rows, options, seed, progress) for seed in options.seeds]
    )


def run_seed(
    name: str,
    model_path: str,
    data: TaskData | Path | None,
    options: FinetuneOptions,
    seed: int,
    progress: Callable[[str], None],
) -> SeedResult:
    """One fine-tuning of a fresh copy of the model; the same seed gives the same bits on the same machine.

    A row of the result: task, seed, part, item, group, block, label, prediction, logits, cut_words.
    """
    import torch

    from talltree.evals.classification import Classifier, fine_tune, predict, tokens_of
    from talltree.models.load import compute_device, context_length, load_model, load_tokenizer
    from talltree.models.policy import add_lora

    options.check()
    task = data if isinstance(data, TaskData) else read_task(name, data)
    carved = carve(task, options.stop_share, seed, options.max_train_rows)
    scored = [(part, item) for part, items in task.scored.items() for item in items]
    check_apart(carved.fit, carved.stop, [item for _, item in scored])
    device = compute_device(options.device, options.dtype)
    model, tokenizer = load_model(model_path), load_tokenizer(model_path)
    tokenizer.model_max_length = 2**31  # no warning of the library's: what is too long is cut and counted
    context = context_length(model)
    if options.max_length is not None and options.max_length > context:
        raise ConfigError(
            f"max_length {options.max_length} is more than the {context} tokens that {model_path} can read; "
            f"use {context} or less"
        )
    most = options.max_length or context
    if options.lora_r is not None:
        model = add_lora(model, options.lora_r, 2.0 * options.lora_r, seed)
    model.to(device)  # type: ignore[arg-type]
    progress(f"{name}, seed {seed}: {len(carved.fit):,} rows to fit, {len(scored):,} to score")
    fit, stop = (tokens_of(tokenizer, items, most) for items in (carved.fit, carved.stop))
    tokens = tokens_of(tokenizer, [item for _, item in scored], most)
    classifier = Classifier(model, _outputs(name), seed)
    measure = measures_of(name)[0]
    fitted = fine_tune(
        classifier, fit, stop, measure, options, seed, lambda line: progress(f"{name}, seed {seed}: {line}")
    )
    logits = predict(classifier, tokens, options.dtype)
    predictions = torch.argmax(logits, 1).tolist()
    groups: dict[str, int] = {}
    blocks: dict[str, int] = {}
    rows = [
        {
            "task": name,
            "seed": seed,
            "part": part,
            "item": item.id,
            "group": groups.setdefault(item.group, len(groups)),
            "block": blocks.setdefault(item.block, len(blocks)),
            "label": item.label,
            "prediction": prediction,
            "logits": values,
            "cut_words": encoded.cut_words,
        }
        for (part, item), encoded, prediction, values in zip(
            scored, tokens, predictions, logits.tolist(), strict=True
        )
    ]
    facts = {
        "sources": list(task.sources),
        "notes": list(task.notes),
        "majority": majority([*carved.fit, *carved.stop]),
        "classes": logits.shape[1],
        "train_rows": len(task.train),
        "fitted": len(fit),
        "stopping": len(stop),
        "left_out": carved.left_out,
        "cut_in_training": sum(item.cut_words > 0 for item in (*fit, *stop)),
        "max_length": most,
        "updates": fitted.updates,
        "best_update": fitted.best_update,
    }
    return SeedResult(name, seed, rows, [look._asdict() for look in fitted.history], facts)


def summarise_seeds(results: Sequence[SeedResult]) -> TaskResult:
    """Metrics over all seeds of one task, with intervals, beside the majority class of the training rows.

    Names: `accuracy` and so on for the part that counts, `mismatched/accuracy` for another one;
    `majority/accuracy` for always saying the most frequent training label; `cut` and `train/cut` count the
    items that were cut to length. by_seed has each fine-tuning's own value.
    """
    import numpy as np

    from talltree.evals.classification_metrics import (
        by_seed_values,
        counts_by_group,
        group_numbers,
        summarise,
    )

    name = results[0].task
    classes = int(results[0].facts["classes"])
    metrics: dict[str, Metric] = {}
    values: dict[str, dict[str, float]] = {}
    parts = list(dict.fromkeys(row["part"] for row in results[0].rows))
    for part in parts:
        prefix = f"{part}/" if part else ""
        by_seed = [[row for row in result.rows if row["part"] == part] for result in results]
        constant = [
            [{**row, "prediction": result.facts["majority"]} for row in rows]
            for result, rows in zip(results, by_seed, strict=True)
        ]
        for measure in measures_of(name):
            for key, given in ((f"{prefix}{measure}", by_seed), (f"{prefix}majority/{measure}", constant)):
                # The same draws for every figure, so that figures are compared on the same resamples.
                metrics[key] = summarise(measure, given, classes, np.random.default_rng(0))
            counts = counts_by_group(measure, by_seed, group_numbers(by_seed[0]), classes)
            found = by_seed_values(measure, counts).tolist()
            values[f"{prefix}{measure}"] = {
                str(result.seed): value for result, value in zip(results, found, strict=True)
            }
    scored = results[0].rows
    cut = sum(row["cut_words"] > 0 for row in scored)
    metrics["cut"] = Metric(float(cut), None, None, len(scored), "items")
    trained = [result.facts["fitted"] + result.facts["stopping"] for result in results]
    cut_in_training = [result.facts["cut_in_training"] for result in results]
    metrics["train/cut"] = Metric(
        sum(cut_in_training) / len(results), None, None, round(sum(trained) / len(results)), "items"
    )
    rows = [row for result in results for row in result.rows]
    return TaskResult(metrics, rows, _notes(results, cut, metrics), values)


def _notes(results: Sequence[SeedResult], cut: int, metrics: Mapping[str, Metric]) -> tuple[str, ...]:
    first = results[0].facts
    seeds = ", ".join(str(result.seed) for result in results)
    fitted, of, stopping = (first[name] for name in ("fitted", "train_rows", "stopping"))
    found = [
        f"Fitted on {fitted:,} of {of:,} training rows, stopped by {stopping:,} others, scored on neither."
    ]
    if len(results) == 1:
        found.append(
            f"One seed ({seeds}): intervals are over items and leave out what another seed would change."
        )
    else:
        found.append(
            f"{len(results)} seeds ({seeds}): figures are their mean, intervals are over items and seeds; "
            "with so few seeds they are somewhat too narrow: see those over seeds alone, too."
        )
    if first["left_out"]:
        found.append(f"{first['left_out']:,} training rows have the texts of a scored row and were left out.")
    if cut or metrics["train/cut"].value:
        found.append(
            f"Longer than {first['max_length']} tokens, so words were cut off: {cut:,} of "
            f"{len(results[0].rows):,} scored rows and {metrics['train/cut'].value:,.0f} of "
            f"{metrics['train/cut'].n:,} training rows."
        )
    return (*found, *first["notes"])


def _outputs(name: str) -> int:
    """Outputs of the head: one per class, or one where the texts of an item are the choices."""
    kind, task = _split(name)
    if kind == "msgs":
        return len(msgs.LABELS)
    return 1 if glue.TASKS[task].choices else len(glue.TASKS[task].labels)


def _split(name: str) -> tuple[str, str]:
    kind, _, task = name.partition(":")
    if name not in TASKS:
        from difflib import get_close_matches

        near = get_close_matches(name, TASKS, n=1)
        hint = f"; nearest is {near[0]}" if near else f"; known are {', '.join(list(TASKS)[:3])}, ..."
        raise ConfigError(f"task {name!r} is not known{hint}")
    return kind, task
