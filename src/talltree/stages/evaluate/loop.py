"""The loop of the evaluate stage: check everything, then model by model, task by task, part by part."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from talltree import checkpoint
from talltree.config import resumed, to_dict
from talltree.console import clock
from talltree.errors import ModelError
from talltree.evals import cache
from talltree.evals.results import TaskResult
from talltree.evals.seeds import OverSeeds, interval_words, over_seeds
from talltree.interrupt import EXIT_STATUS, Interrupts
from talltree.models.card_results import check_folder, write_results
from talltree.models.load import compute_device
from talltree.report import evaluation
from talltree.report.evaluation import RESULTS
from talltree.run import Run, environment, refuse_used
from talltree.stages.evaluate.config import Config
from talltree.stages.evaluate.models import Loaded, Place, folder_name, load, places
from talltree.stages.evaluate.parts import Part, Progress, Task
from talltree.stages.evaluate.settings import settings
from talltree.stages.evaluate.tasks import task_list

ROWS = "rows"
FORMAT = 1
SECONDS_BETWEEN_LINES = 10.0


def run(config: Config) -> None:
    """One evaluation, or the rest of the one that `config.resume` names.

    Raises TallTreeError for whatever the user can mend. Exits with 130 or 143 after SIGINT or SIGTERM;
    finished parts are kept.
    """
    is_resumed = config.resume is not None
    folder = Path(config.resume or config.output_dir)
    if is_resumed:
        begun = Run.open(folder)
        begun.require_unended()
        config = resumed(config, begun.config, folder)
    else:
        refuse_used(folder)
    models = places(config.models)
    if config.write_card:
        for each in models:
            check_folder(each.source)
    device = compute_device(config.device)
    tasks = task_list(config)
    _say(f"{len(models)} models, {len(tasks)} tasks, {sum(len(task.parts) for task in tasks)} parts each")
    opened = Run.resume(folder, _say) if is_resumed else Run.create(folder, to_dict(config), environment())
    with opened as writing, Interrupts() as interrupts:
        _evaluate(config, models, tasks, device, writing, interrupts)


def _evaluate(
    config: Config,
    models: Sequence[Place],
    tasks: Sequence[Task],
    device: Any,
    run: Run,
    interrupts: Interrupts,
) -> None:
    started = time.monotonic()
    stored = Path(config.cache_dir or run.folder.parent / "eval-cache").expanduser()
    summary: dict[str, Any] = {
        "stage": "evaluate",
        "tasks": [task.name for task in tasks],
        "stop_reason": None,
    }
    run.write_summary(summary)
    results: dict[str, Any] = {"format": FORMAT, "models": []}
    for each in models:
        loaded = load(each, device)
        entry = _about(loaded)
        results["models"].append(entry)
        for task in tasks:
            found = _task(task, loaded, stored, interrupts, run.folder)
            entry["tasks"][task.name] = _keep(run.folder, each, task, found)
            results["settings"] = settings(models, results["models"])
            checkpoint.write_file(run.folder / RESULTS, _json(results))
            _say_result(each, task, found)
        if config.write_card:
            write_results(Path(each.source), entry)
            _say(f"{each.label}: results are in {Path(each.source) / 'README.md'}")
    _say_settings(results)
    page = evaluation.write(run.folder)
    seconds = time.monotonic() - started
    run.write_summary(summary | {"stop_reason": "every task is done", "wall_time_seconds": seconds})
    _say(f"done in {clock(seconds)}: {page}, {run.folder / RESULTS}")


def _about(loaded: Loaded) -> dict[str, Any]:
    parameters = sum(each.numel() for each in loaded.model.parameters())
    return {"name": loaded.place.label, "source": loaded.place.source, "parameters": parameters} | {
        **loaded.identity,
        "tasks": {},
    }


# One task of one model


class _Meter(NamedTuple):
    """What has been computed of a task: seconds, tokens and parts, those from the cache left out."""

    seconds: float = 0.0
    tokens: int = 0
    parts: int = 0


def _task(task: Task, loaded: Loaded, stored: Path, interrupts: Interrupts, folder: Path) -> TaskResult:
    """The joined result of a task's parts, each from the cache or computed and kept."""
    found: list[TaskResult] = []
    meter = _Meter()
    cached = 0
    for number, part in enumerate(task.parts, 1):
        answers_to = loaded.identity | {
            "task": f"{task.name}, {part.name}",
            "data": part.data,
            "options": part.options,
        }
        result = cache.load(stored, answers_to, _say)
        if result is None:
            _stop_if_asked(interrupts, folder)
            where = f"{loaded.place.label}  {task.name} {number}/{len(task.parts)} {part.name}"
            result, meter = _compute(part, loaded, found, where, meter, interrupts, folder)
            cache.store(stored, answers_to, result)
            left = meter.seconds / meter.parts * (len(task.parts) - number)
            _say(f"{where}  {_rate(meter)}left {clock(left)}")
        else:
            cached += 1
        found.append(result)
    if cached:
        _say(f"{loaded.place.label}  {task.name}: {cached} of {len(task.parts)} parts were there already")
    return task.join(found)


def _compute(
    part: Part,
    loaded: Loaded,
    earlier: Sequence[TaskResult],
    where: str,
    meter: _Meter,
    interrupts: Interrupts,
    folder: Path,
) -> tuple[TaskResult, _Meter]:
    started = last = time.monotonic()
    tokens = 0

    def heard(count: int) -> None:
        nonlocal tokens, last
        tokens += count
        _stop_if_asked(interrupts, folder)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            _say(f"{where}  {_rate(_Meter(now - started, tokens, 1))}{clock(now - started)} so far")

    def say(line: str) -> None:
        _stop_if_asked(interrupts, folder)
        _say(f"{loaded.place.label}  {line}")

    result = part.compute(loaded, earlier, Progress(heard, say))
    seconds = time.monotonic() - started
    return result, _Meter(meter.seconds + seconds, meter.tokens + tokens, meter.parts + 1)


def _rate(meter: _Meter) -> str:
    return f"{meter.tokens / meter.seconds:,.0f} tokens/s  " if meter.tokens and meter.seconds else ""


def _stop_if_asked(interrupts: Interrupts, folder: Path) -> None:
    if interrupts.requested is not None:
        _say(
            f"{interrupts.requested}: finished parts are kept; go on with talltree evaluate --resume {folder}"
        )
        raise SystemExit(EXIT_STATUS[interrupts.requested])


# What is written


def _keep(folder: Path, model: Place, task: Task, found: TaskResult) -> dict[str, Any]:
    """Writes the rows of a task, and returns what results.json says of it."""
    path = folder / ROWS / folder_name(model.label) / f"{task.name.replace(':', '-')}.jsonl"
    with checkpoint.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows)
    checkpoint.write_file(path, "".join(lines).encode("utf-8", "surrogatepass"))
    return {
        "metrics": {key: metric.as_json() for key, metric in found.metrics.items()},
        "notes": list(found.notes),
        "rows": path.relative_to(folder).as_posix(),
        "by_seed": {
            key: {"values": dict(values), **over_seeds(list(values.values()))._asdict()}
            for key, values in found.by_seed.items()
        },
    }


def _json(content: Any) -> bytes:
    try:
        return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except ValueError:
        raise ModelError(
            "a figure is not finite: the weights hold NaN, infinity, or numbers that give them"
        ) from None


def _say_result(model: Place, task: Task, found: TaskResult) -> None:
    for name, metric in list(found.metrics.items())[:2]:
        spread = "" if metric.low is None else f" ({metric.low:.4g} to {metric.high:.4g})"
        _say(f"{model.label}  {task.name}: {name} {metric.value:.4g}{spread} {metric.unit}")
        if len(values := found.by_seed.get(name, {})) > 1:
            _say(
                f"{model.label}  {task.name}: {name} {_over(over_seeds(list(values.values())), metric.unit)}"
            )


def _say_settings(results: dict[str, Any]) -> None:
    """The first metrics of each task over the models of a setting."""
    for setting in results.get("settings", []):
        for task, metrics in setting["tasks"].items():
            for name, each in list(metrics.items())[:2]:
                spread = over_seeds(list(each["values"].values()))
                _say(f"{setting['name']}  {task}: {name} {_over(spread, each['unit'])}")


def _over(spread: OverSeeds, unit: str) -> str:
    bounds = "" if spread.low is None else f" ({spread.low:.4g} to {spread.high:.4g})"
    return f"{spread.mean:.4g}{bounds} {unit}, {spread.n} seeds, {interval_words([spread.kind])}"


def _say(line: str) -> None:
    print(line, file=sys.stdout, flush=True)
