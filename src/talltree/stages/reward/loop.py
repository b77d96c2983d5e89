"""The loop of the reward stage: load, scale, measure, train, scale again, measure. Read it from the top."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from talltree import checkpoint
from talltree.config import to_dict
from talltree.console import clock
from talltree.errors import ContractError
from talltree.interrupt import Interrupts, leave
from talltree.models.card import write_card
from talltree.models.memory import keep_freed_memory, when_out_of_memory
from talltree.models.policy import trainable
from talltree.models.reward_format import Format
from talltree.models.reward_model import RewardModel, save_reward_model
from talltree.run import Run, environment, refuse_used
from talltree.stages.resuming import (
    add_time,
    loading_advice,
    memory_advice,
    more_parts,
    resumed_config,
    say_threads,
)
from talltree.stages.reward.comparisons import Comparison
from talltree.stages.reward.config import Config
from talltree.stages.reward.curve import learning_curve
from talltree.stages.reward.figures import draw
from talltree.stages.reward.measure import loss_and_accuracy, probes, report, scores, warnings, write_rows
from talltree.stages.reward.parts import MEMBER_SEEDS, Parts, format_of, load_parts
from talltree.stages.reward.reference import (
    References,
    read_references,
    reference_samples,
    write_references,
)
from talltree.stages.reward.state import restore, save, save_if_new
from talltree.stages.reward.update import batches_per_epoch, epoch_batches, update

MAY_CHANGE = ("gradient_accumulation_steps",)
"""What a resume may ask for anew: memory; the loss stays the same, but for its last bits."""
BEFORE, AFTER, FIGURES = "before.jsonl", "after.jsonl", "figures"
HELD_OUT = "preference/held_out_loss"
SPLIT = {
    "straddling": "judgements have candidates on both sides and were reduced to those of one",
    "straddling_left_out": "of them settle nothing then and were left out",
    "straddling_pairs_lost": "of their pairs were lost",
    "shared_candidates": "training judgements with a held-out candidate were left out",
    "shared_prompt": "training judgements with a held-out prompt were left out; --split_by items keeps them",
    "same_prompt_kept": "training judgements have a held-out prompt: held-out figures are for known prompts",
}
"""What the counts of a split say."""


def run(config: Config) -> None:
    """One run from `config`, or the rest of the run that `config.resume` names.

    Raises TallTreeError for whatever the user can mend. Exits with 130 or 143 after SIGINT or SIGTERM.
    """
    with when_out_of_memory(loading_advice):
        if config.resume is not None:
            _resume(config)
        else:
            _start(config)


def _start(config: Config) -> None:
    refuse_used(Path(config.output_dir))
    started = time.monotonic()
    parts = load_parts(config)
    references = reference_samples(config, parts.train, parts.texts, parts.device)
    start = format_of(config, parts, references, None)
    parts = parts._replace(learner=parts.learner._replace(scales=start.scales))
    models = [member.model for member in parts.learner.members]
    trained = sum(p.numel() for model in models for p in trainable(model).values())
    _say_data(config, parts, trained)
    summary = {
        "stage": "reward",
        "model": config.model_name_or_path,
        "loss": config.loss,
        "parameters": sum(p.numel() for model in models for p in model.parameters()),
        "trained_parameters": trained,
        "base_sha256": parts.base_sha256,
        "data": parts.counts,
        "reference": {"source": config.reference.source, "samples": len(references.prompts)},
        "eos": config.eos,
        "stop_reason": None,
    }
    with (
        Run.create(config.output_dir, to_dict(config), environment(parts.data_sha256)) as folder,
        Interrupts() as interrupts,
    ):
        folder.write_summary(summary | {"wall_time_seconds": time.monotonic() - started})
        write_references(folder.folder, references)
        save(config, parts, start, 0, folder)
        _complete(config, parts, references, start, 0, folder, interrupts)


def _resume(asked: Config) -> None:
    config = resumed_config(asked, MAY_CHANGE)
    parts = load_parts(config)
    with Run.resume(str(asked.resume), _say) as folder, Interrupts() as interrupts:
        step, parts, start = restore(config, parts, folder, _say)
        say_threads(folder, _say)
        references = read_references(folder.folder)
        _complete(config, parts, references, start, step, folder, interrupts)


def _complete(
    config: Config,
    parts: Parts,
    references: References,
    start: Format,
    step: int,
    folder: Run,
    interrupts: Interrupts,
) -> None:
    """What a run after `step` updates still lacks: the measurement before, the updates, the curve, final/."""
    started = time.monotonic()
    keep_freed_memory(parts.device)
    with when_out_of_memory(lambda: memory_advice(folder, "reward")):
        if "before" not in folder.summary():
            _measure_before(config, parts, start, folder)
        if _train(config, parts, start, step, folder, interrupts):
            points = learning_curve(
                config, parts, references, folder.folder, lambda: interrupts.requested is not None, _say
            )
            if points is not None:
                _finish(config, parts, references, start, points, folder, started)
                return
    add_time(folder, started)
    leave(str(interrupts.requested), _last_step(folder.metrics()), "reward", folder.folder, _say)


def _measure_before(config: Config, parts: Parts, start: Format, folder: Run) -> None:
    """The held-out judgements under the untrained head, as step 0."""
    started = time.monotonic()
    found = scores(config, parts)
    before = report(config, parts, start, found)
    if not folder.metrics():
        folder.log(_measured(config, parts, started) | {"step": 0})
    write_rows(folder.folder / BEFORE, parts, start, found)
    folder.write_summary(folder.summary() | {"before": before})
    _say(f"before: held-out accuracy {_words(before['accuracy'])}")


# Training


def _train(
    config: Config, parts: Parts, start: Format, step: int, folder: Run, interrupts: Interrupts
) -> bool:
    """Updates until the end (True), or until a signal (False); what was reached is then saved."""
    rows = folder.metrics()
    started, first = time.monotonic(), step
    while step < parts.steps:
        if interrupts.requested is not None:
            save_if_new(config, parts, start, step, folder)
            return False
        try:
            with when_out_of_memory(
                lambda: memory_advice(
                    folder, "reward", more_parts(config.gradient_accumulation_steps, config.batch_size)
                )
            ):
                row = update(
                    config, parts.learner, parts.ids, _batches(config, parts, step), step, parts.steps
                )
        except ContractError as error:
            save_if_new(config, parts, start, step, folder)
            raise ContractError(
                f"step {step + 1}: {error}; step {step} is saved in {folder.folder}"
            ) from None
        step += 1
        row["epoch"] = step / batches_per_epoch(len(parts.train), config.batch_size)
        for key in ("comparisons", "tokens"):
            row[key] += rows[-1].get(key, 0)
        is_last = step == parts.steps
        if is_last or step % config.validation_every == 0:
            row |= _measured(config, parts, time.monotonic())
        folder.log(row)
        rows.append(row)
        _say_progress(row, parts.steps, (time.monotonic() - started) / (step - first))
        if is_last or step % config.checkpoint_every == 0:
            save(config, parts, start, step, folder)
    return True


def _batches(config: Config, parts: Parts, step: int) -> list[list[Comparison]]:
    """The batch of each member for the update after `step` others."""
    epoch, done = divmod(step, batches_per_epoch(len(parts.train), config.batch_size))
    orders = [
        epoch_batches(len(parts.train), config.batch_size, epoch, config.seed + MEMBER_SEEDS * number)
        for number in range(config.members)
    ]
    return [[parts.train[row] for row in order[done]] for order in orders]


def _measured(config: Config, parts: Parts, started: float) -> dict[str, float]:
    loss, accuracy = loss_and_accuracy(config, parts, scores(config, parts))
    return {
        HELD_OUT: loss,
        "preference/held_out_accuracy": accuracy,
        "time/validation": time.monotonic() - started,
    }


def _last_step(rows: Sequence[Mapping[str, Any]]) -> int:
    return int(rows[-1]["step"]) if rows else 0


# The end


def _finish(
    config: Config,
    parts: Parts,
    references: References,
    start: Format,
    points: list[dict[str, Any]],
    folder: Run,
    started: float,
) -> None:
    """Sets gain and bias anew, measures, writes final/ and closes the summary."""
    summary, last = folder.summary(), folder.metrics()[-1]
    end = format_of(config, parts, references, start.scales)
    found = scores(config, parts)
    after = report(config, parts, end, found)
    write_rows(folder.folder / AFTER, parts, end, found)
    if any(share == 1 for share in config.learning_curve):
        whole = {"share": 1.0, "comparisons": len(parts.train)}
        points = [*points, whole | {"accuracy": after["accuracy"], "loss": after["loss"]}]
    summary |= {
        "after": after,
        "probes": probes(config, parts, end),
        "learning_curve": points,
        "gain_and_bias": {
            "before": [list(scale) for scale in start.scales],
            "after": [list(scale) for scale in end.scales],
        },
        "warnings": warnings(len(parts.train), after),
        "steps": last["step"],
        "epochs": last["epoch"],
        "final_step": last["step"],
        "stop_reason": f"all {parts.steps} steps made",
    }

    def write_final(target: Path) -> None:
        save_reward_model(target, RewardModel(parts.learner.members, parts.tokenizer, end))
        write_card(target, to_dict(config), summary, folder.environment)

    checkpoint.save_folder(folder.final, write_final)
    draw(folder.folder / FIGURES, summary)
    summary["wall_time_seconds"] += time.monotonic() - started
    folder.write_summary(summary)
    for warning in summary["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    _say(f"held-out accuracy  {_words(summary['before']['accuracy'])}  ->  {_words(after['accuracy'])}")
    agreed = after["agreement"]
    if agreed["mean"] is not None:
        _say(
            f"  annotators agree with each other in {agreed['mean']:.3f} of {agreed['encounters']:,} "
            "encounters"
        )
    for each in summary["probes"]:
        _say(
            f"  {each['name'].replace('_', ' ')}: original higher in {_words(each)} of {each['texts']:,} "
            "texts"
        )
    _say(f"run folder: {folder.folder}   reward model: {folder.final}")


def _words(value: Mapping[str, float | None]) -> str:
    low, high = value["low"], value["high"]
    spread = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    return f"{value['mean']:.3f}{spread}"


def _say_data(config: Config, parts: Parts, trained: int) -> None:
    counts = parts.counts
    _say(
        f"{config.model_name_or_path}: {trained:,} parameters to train on {parts.device}; loss "
        f"{config.loss}; {counts['train']['comparisons']:,} comparisons of {counts['train']['texts']:,} "
        f"texts, {counts['held_out']['comparisons']:,} held out; {parts.steps:,} updates"
    )
    _say(f"split by: {counts['split']['rule']}")
    for name, count in counts["split"].items():
        if name != "rule" and count:
            _say(f"split: {count:,} {SPLIT[name]}")
    for name, count in counts["left_out"].items():
        if count:
            _say(f"left out: {count:,} ({name.replace('_', ' ')})")
    if counts["truncated_texts"]:
        _say(f"cut at the beginning to {counts['max_length']} tokens: {counts['truncated_texts']:,} texts")


def _say_progress(row: Mapping[str, Any], steps: int, seconds_per_step: float) -> None:
    line = (
        f"step {row['step']}/{steps}  epoch {row['epoch']:.2f}  loss {row['preference/loss']:.4f}  "
        f"accuracy {row['preference/accuracy']:.3f}"
    )
    if HELD_OUT in row:
        line += f"  held-out {row[HELD_OUT]:.4f} nats, {row['preference/held_out_accuracy']:.3f}"
    left = clock((steps - row["step"]) * seconds_per_step)
    _say(f"{line}  lr {row['learning_rate']:.2e}  grad {row['grad_norm']:.2f}  left {left}")


def _say(text: str) -> None:
    print(text, flush=True)
