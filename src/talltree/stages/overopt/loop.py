"""One measurement from beginning to end: sample each source once, score, fit, advise, write."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from talltree import checkpoint, rewards
from talltree.config import resumed, to_dict
from talltree.errors import RunError
from talltree.evals.comparison import MANY_PROMPTS
from talltree.interrupt import Interrupts
from talltree.models.load import compute_device
from talltree.report import overoptimisation as page
from talltree.run import Run, environment, refuse_used
from talltree.stages import fresh
from talltree.stages.fresh import Completion, Loaded
from talltree.stages.overopt import curves, gold
from talltree.stages.overopt.config import PEOPLE, Config
from talltree.stages.overopt.sources import BASE, Plan, Source, load_source, plan, require_start

DRAWN = "drawn"
SAMPLES = "samples.jsonl"
RESULT = "overopt.json"
EXIT_STATUS = {"SIGINT": 130, "SIGTERM": 143}
MAY_CHANGE = ("gold", "proxy", "judgements")
"""What a resume may ask for anew: the draws stay as they are and are scored again."""


def run(config: Config) -> None:
    """Writes overopt.json, samples.jsonl, summary.json and report.html; `resume` goes on with what is drawn.

    With gold people and no judgements it ends after sampling. Raises TallTreeError for whatever the user can
    mend. Exits with 130 or 143 after SIGINT or SIGTERM; what is drawn is kept.
    """
    started = time.monotonic()
    if config.resume is None:
        folder = Path(config.output_dir).expanduser()
        refuse_used(folder)
    else:
        opened = Run.open(Path(config.resume).expanduser())
        if opened.config.get("gold") is None:
            raise RunError(f"{opened.folder} is no overopt folder; name the output_dir that overopt wrote")
        folder, config = opened.folder, resumed(config, opened.config, opened.folder, MAY_CHANGE)
        if config.gold != PEOPLE:
            config = replace(config, judgements=None)
    planned = plan(config)
    _check_rewards(config, planned)
    opening = (
        Run.create(folder, to_dict(config), environment())
        if config.resume is None and not folder.joinpath("config.yaml").is_file()
        else Run.resume(folder, _say)
    )
    with opening as made, Interrupts() as interrupts:
        sampled = _drawn(planned, compute_device(config.device), made.folder, interrupts)
        rows = [{"source": name, **row._asdict()} for name, each in sampled.items() for row in each]
        fresh.write_rows(folder / SAMPLES, rows)
        if config.gold == PEOPLE and config.judgements is None:
            made.write_summary({"stage": "overopt", "stop_reason": None, "waiting_for": "judgements"})
            _say(
                f"{len(rows)} samples are in {folder / SAMPLES}; have them judged (talltree annotate), then "
                f"go on with talltree overopt --resume {folder} --judgements FILE.jsonl"
            )
            return
        content = _measured(config, planned, sampled)
        written = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        checkpoint.write_file(folder / RESULT, written.encode())
        page.write(folder)
        for curve in content["curves"]:
            _say(" ".join(curve["advice"]))
        for note in content["notes"]:
            _say(note)
        made.write_summary(
            {
                "stage": "overopt",
                "stop_reason": "every source is measured",
                "advice": {curve["name"]: curve["advice"] for curve in content["curves"]},
                "wall_time_seconds": time.monotonic() - started,
            }
        )
    _say(f"curves: {folder / RESULT}   page: {folder / 'report.html'}")


def _check_rewards(config: Config, planned: Plan) -> None:
    """A misspelt reward is to show before an hour of sampling."""
    for spec in (planned.proxy, *([] if config.gold in (None, PEOPLE) else [str(config.gold)])):
        rewards.load(spec)


# Sampling


def _drawn(
    planned: Plan, device: torch.device, folder: Path, interrupts: Interrupts
) -> dict[str, list[Completion]]:
    """Completions by source, the reference first; a file for each, which a resume reads instead."""
    names = [BASE, *(source.name for source in planned.sources)]
    with checkpoint.disk_errors(folder):
        (folder / DRAWN).mkdir(exist_ok=True)
    files = {BASE: folder / DRAWN / f"{BASE}.jsonl"}
    for each in planned.sources:
        # A run that was rewound has another checkpoint of the same step: its manifest tells.
        if not (each.folder / checkpoint.MANIFEST).is_file():
            checkpoint.verify(each.folder)
        digest = checkpoint.file_sha256(each.folder / checkpoint.MANIFEST)[:12]
        files[each.name] = folder / DRAWN / f"{each.name.replace('/', '--')}-{digest}.jsonl"
    if not all(path.is_file() for path in files.values()):
        reference = fresh.load(planned.reference, device)
        started: set[str] = set()
        for number, source in enumerate([None, *planned.sources]):
            name = BASE if source is None else source.name
            if files[name].is_file():
                continue
            if interrupts.requested is not None:
                _say(f"{interrupts.requested}: continue with talltree overopt --resume {folder}")
                raise SystemExit(EXIT_STATUS[interrupts.requested])
            began = time.monotonic()
            if source is not None and source.run not in started:
                require_start(source, reference)
                started.add(source.run)
            completions = _draw(planned, source, reference, device)
            fresh.write_rows(files[name], [row._asdict() for row in completions])
            taken = time.monotonic() - began
            _say(f"{number + 1} of {len(names)}: {name}, {len(completions)} completions in {taken:.1f} s")
    return {name: fresh.read_completions(path) for name, path in files.items()}


def _draw(planned: Plan, source: Source | None, reference: Loaded, device: torch.device) -> list[Completion]:
    if source is None:
        many = max(2 * planned.best_of, planned.sampling.num_generations)
        return fresh.draw(
            reference, planned.prompts, planned.sampling._replace(num_generations=many), reference
        )
    loaded = load_source(source, device)
    fresh.require_same_tokens(loaded, reference)
    return fresh.draw(loaded, planned.prompts, planned.sampling, reference)


# Measuring


def _measured(config: Config, planned: Plan, sampled: Mapping[str, Sequence[Completion]]) -> dict[str, Any]:
    proxy = gold.scored(planned.proxy, sampled, planned.prompts)
    true = (
        gold.scored(str(config.gold), sampled, planned.prompts)
        if config.judgements is None
        else gold.judged(config.judgements, sampled)
    )
    found = [
        curves.run_curve(name, [each for each in planned.sources if each.run == name], sampled, proxy, true)
        for name in dict.fromkeys(source.run for source in planned.sources)
    ]
    notes = _notes(sampled)
    if planned.best_of and true.per_sample is None:
        notes.append("Best-of-n is left out: win rates say nothing of single samples; ratings would.")
    elif planned.best_of and true.per_sample is not None and proxy.per_sample is not None:
        best = curves.best_of_curve(
            sampled[BASE], proxy.per_sample[BASE], true.per_sample[BASE], planned.best_of
        )
        if best is None:
            notes.append(
                f"Best-of-n is left out: no prompt has more than {planned.best_of} samples with both rewards."
            )
        else:
            found.append(best)
    return {
        "stage": "overopt",
        "proxy": planned.proxy,
        "gold": config.gold,
        "reference": planned.reference,
        "prompts": len({each.prompt for each in sampled[BASE]}),
        "samples": {name: len(each) for name, each in sampled.items()},
        "temperature": planned.sampling.temperature,
        "max_completion_length": planned.sampling.max_completion_length,
        "curves": [curves.as_json(curve, curves.fitted(curve)) for curve in found],
        "notes": notes,
    }


def _notes(sampled: Mapping[str, Sequence[Completion]]) -> list[str]:
    prompts = len({each.prompt for each in sampled[BASE]})
    notes = [
        (
            "KL is logp - ref_logp summed over a completion, in nats, averaged over samples; of best-of-n it "
            "is log n - (n - 1) / n. Intervals are 95%, percentile bootstrap."
        ),
        "One training stands behind each run: the intervals leave out what training again would change.",
    ]
    if prompts < MANY_PROMPTS:
        these = "this one prompt" if prompts == 1 else f"these {prompts} prompts"
        notes.append(f"Draws are what is resampled, so intervals hold for {these} and say nothing of others.")
    else:
        notes.append(f"Intervals are over {prompts} prompts.")
    return notes


def _say(text: str) -> None:
    print(text, flush=True)
