"""The loop of the sft stage: load, measure before, train, keep the best, measure after. Read from the top."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from talltree import checkpoint
from talltree.config import to_dict
from talltree.console import clock, printable
from talltree.data.corpora import near_duplicate_report, save_manifest
from talltree.errors import ContractError, RunError
from talltree.interrupt import Interrupts, leave
from talltree.models.card import write_card
from talltree.models.load import save_model
from talltree.models.memory import keep_freed_memory, when_out_of_memory
from talltree.models.optim import clipped_norm, schedule, set_learning_rate
from talltree.models.policy import trainable
from talltree.models.score import by_length, completion_loss, precision
from talltree.run import Run, environment, refuse_used
from talltree.stages.resuming import (
    add_time,
    loading_advice,
    memory_advice,
    more_parts,
    resumed_config,
    say_threads,
)
from talltree.stages.sft.config import Config
from talltree.stages.sft.measure import change, held_out_loss, read_rows, write_rows, written
from talltree.stages.sft.parts import Parts, load_parts
from talltree.stages.sft.state import (
    VALIDATION,
    best_step,
    load_weights,
    restore,
    save,
    save_if_new,
    without_best,
)
from talltree.stages.sft.tokens import Batch, Tokens, batches_per_epoch, epoch_batches, parts_of, tensors

MAY_CHANGE = ("gradient_accumulation_steps",)
"""What a resume may ask for anew: memory; the loss stays the same, but for its last bits."""
BEFORE, AFTER = "before.jsonl", "after.jsonl"


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
    trained = sum(parameter.numel() for parameter in trainable(parts.model).values())
    manifest = parts.corpus.manifest() | near_duplicate_report(parts.corpus)
    _say_data(config, parts, manifest, trained)
    summary = {
        "stage": "sft",
        "model": config.model_name_or_path,
        "loss_on": config.loss_on,
        "parameters": sum(parameter.numel() for parameter in parts.model.parameters()),
        "trained_parameters": trained,
        "base_sha256": parts.base_sha256,
        "data": parts.counts,
        "corpus": manifest,
        "stop_reason": None,
    }
    with (
        Run.create(config.output_dir, to_dict(config), environment(parts.corpus.sha256)) as folder,
        Interrupts() as interrupts,
    ):
        folder.write_summary(summary | {"wall_time_seconds": time.monotonic() - started})
        save_manifest(folder.folder, manifest)
        save(config, parts, 0, folder, [])
        _complete(config, parts, 0, folder, interrupts)


def _resume(asked: Config) -> None:
    config = resumed_config(asked, MAY_CHANGE)
    parts = load_parts(config)
    with Run.resume(str(asked.resume), _say) as folder, Interrupts() as interrupts:
        step = restore(config, parts, folder, _say)
        say_threads(folder, _say)
        _complete(config, parts, step, folder, interrupts)


def _complete(config: Config, parts: Parts, step: int, folder: Run, interrupts: Interrupts) -> None:
    """What a run after `step` updates still lacks: the loss before, the updates, final/ and the summary."""
    started = time.monotonic()
    keep_freed_memory(parts.model.device)
    with when_out_of_memory(lambda: memory_advice(folder, "sft")):
        if "before" not in folder.summary():
            _measure_before(config, parts, folder)
        reason = _train(config, parts, step, folder, interrupts)
        if reason is not None:
            _finish(config, parts, folder, reason, started)
            return
    add_time(folder, started)
    leave(str(interrupts.requested), _last_step(folder.metrics()), "sft", folder.folder, _say)


def _measure_before(config: Config, parts: Parts, folder: Run) -> None:
    """Loss and samples of the model as it came, as step 0; a kill in between leaves what is there already."""
    started = time.monotonic()
    before = held_out_loss(config, parts.model, parts.held_out)
    if parts.sampled and 0 not in folder.samples()["step"].to_pylist():
        folder.add_samples(0, written(config, parts))
    if not folder.metrics():
        folder.log({"step": 0, VALIDATION: before.loss, "time/validation": time.monotonic() - started})
    write_rows(folder.folder / BEFORE, parts.held_out_examples, before)
    held = before.interval()
    folder.write_summary(folder.summary() | {"before": held})
    _say(f"before: held-out loss {_words(held['loss'])}")


# Training


def _train(config: Config, parts: Parts, step: int, folder: Run, interrupts: Interrupts) -> str | None:
    """Updates until the end, or until a signal (None); what was reached is then saved."""
    rows = folder.metrics()
    started, first = time.monotonic(), step
    batches = _batches(config, parts, step)
    while (reason := _end(config, parts, rows)) is None:
        if interrupts.requested is not None:
            save_if_new(config, parts, step, folder, rows)
            return None
        try:
            with when_out_of_memory(
                lambda: memory_advice(
                    folder, "sft", more_parts(config.gradient_accumulation_steps, config.batch_size)
                )
            ):
                row = _update(config, parts, step, next(batches))
        except ContractError as error:
            save_if_new(config, parts, step, folder, rows)
            raise ContractError(
                f"step {step + 1}: {error}; step {step} is saved in {folder.folder}"
            ) from None
        step += 1
        is_last = step == parts.steps
        if is_last or step % config.validation_every == 0:
            row |= _measure(config, parts, step, folder)
        row["tokens"] += rows[-1].get("tokens", 0)
        folder.log(row)
        rows.append(row)
        _say_progress(row, parts.steps, (time.monotonic() - started) / (step - first))
        is_best = VALIDATION in row and best_step(rows) == step
        if is_best or is_last or step % config.checkpoint_every == 0 or _end(config, parts, rows) is not None:
            save(config, parts, step, folder, rows)
    return reason


def _end(config: Config, parts: Parts, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the run is over after the updates of `rows`, or None. Metrics alone decide: a resume agrees."""
    if _last_step(rows) >= parts.steps:
        return f"all {parts.steps} steps made"
    if config.patience is not None and without_best(rows) >= config.patience:
        return f"{config.patience} held-out losses without a new best"
    return None


def _last_step(rows: Sequence[Mapping[str, Any]]) -> int:
    return int(rows[-1]["step"]) if rows else 0


def _batches(config: Config, parts: Parts, step: int) -> Iterator[list[Tokens]]:
    """The batches after the first `step` ones, without end."""
    lengths = [len(each.ids) for each in parts.train]
    epoch, done = divmod(step, batches_per_epoch(len(lengths), config.batch_size))
    while True:
        for rows in epoch_batches(lengths, config.batch_size, epoch, config.seed)[done:]:
            yield [parts.train[row] for row in rows]
        epoch, done = epoch + 1, 0


def _update(config: Config, parts: Parts, step: int, chosen: list[Tokens]) -> dict[str, Any]:
    """One optimiser update after `step` others, and its row. Raises ContractError with the weights untouched.

    The loss is -log p summed over the learned tokens of the whole batch and divided by their number, before
    the batch is split into parts.
    """
    started = time.monotonic()
    batch = tensors(chosen, parts.model.device)
    learning_rate = config.learning_rate * schedule(
        config.lr_scheduler_type, step, parts.steps, config.warmup_steps
    )
    tokens = int(batch.mask_NT.sum())
    try:
        loss = _backward(config, parts, batch, tokens)
        norm = clipped_norm(parts.optimizer, config.max_grad_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ContractError(
                f"loss {loss} with gradient norm {norm} is not finite; the weights were left as they "
                f"were: start again with a lower learning_rate than {config.learning_rate:g}"
            )
        set_learning_rate(parts.optimizer, learning_rate)
        parts.optimizer.step()
    finally:
        parts.optimizer.zero_grad(set_to_none=True)
    seconds = time.monotonic() - started
    return {
        "step": step + 1,
        "epoch": (step + 1) / batches_per_epoch(len(parts.train), config.batch_size),
        "tokens": tokens,
        "loss/train": loss,
        "grad_norm": norm,
        "learning_rate": learning_rate,
        "time/step": seconds,
        "time/tokens_per_second": tokens / seconds,
    }


def _backward(config: Config, parts: Parts, batch: Batch, tokens: int) -> float:
    """Accumulates the gradient of the mean loss over the batch's `tokens`, in parts, and gives the loss."""
    total = 0.0
    count = config.gradient_accumulation_steps
    size = None if count is None else math.ceil(len(batch.prompt_ids) / count)
    for part in parts_of(batch, by_length(batch.prompt_ids, batch.mask_NT, size)):
        with precision(parts.model.device, config.dtype == "bfloat16"):
            loss = completion_loss(
                parts.model,
                part.prompt_ids,
                part.ids_NT,
                part.mask_NT,
                1.0,
                lambda logp, _: -logp / tokens,
            ).loss
        loss.backward()
        total += loss.item()
    return total


def _measure(config: Config, parts: Parts, step: int, folder: Run) -> dict[str, float]:
    """The held-out loss after `step` updates; the samples of that step go into the folder."""
    started = time.monotonic()
    loss = held_out_loss(config, parts.model, parts.held_out).loss
    if parts.sampled:
        columns = written(config, parts)
        folder.add_samples(step, columns)
        story = columns["prompt"][0] + columns["completion"][0]
        _say("    " + printable(" ".join(story.split())))
    return {VALIDATION: loss, "time/validation": time.monotonic() - started}


# The end


def _finish(config: Config, parts: Parts, folder: Run, reason: str, started: float) -> None:
    """Writes final/ from the best checkpoint, measures it and closes the summary."""
    rows, summary = folder.metrics(), folder.summary()
    chosen = _load_best(config, parts, folder, rows)
    before = read_rows(folder.folder / BEFORE)
    after = held_out_loss(config, parts.model, parts.held_out)
    write_rows(folder.folder / AFTER, parts.held_out_examples, after)
    last = rows[-1]
    summary |= {
        "after": after.interval(),
        "change": change(before, after),
        "steps": last["step"],
        "epochs": last["epoch"],
        "learned_tokens": last["tokens"],
        "best_step": best_step(rows),
        "final_step": chosen,
        "stop_reason": reason,
    }

    def write_final(target: Path) -> None:
        save_model(target, parts.model, parts.tokenizer)
        write_card(target, to_dict(config), summary, folder.environment)

    checkpoint.save_folder(folder.final, write_final)
    folder.merge_samples()
    summary["wall_time_seconds"] += time.monotonic() - started
    folder.write_summary(summary)
    _say(f"{reason}; final/ is step {chosen}")
    _say(f"  held-out loss  {_words(summary['before']['loss'])}  ->  {_words(summary['after']['loss'])}")
    _say(f"  change         {_words(summary['change'])}")
    _say(f"run folder: {folder.folder}   model: {folder.final}")


def _load_best(config: Config, parts: Parts, folder: Run, rows: Sequence[Mapping[str, Any]]) -> int:
    """Puts the best checkpoint's weights into the model and gives its step."""
    best, last = best_step(rows), _last_step(rows)
    if best == last:
        return last
    if best == 0:
        print(
            "no held-out loss was below that of the model as it came, so final/ is that model",
            file=sys.stderr,
        )
    path = folder.checkpoints / f"step-{best}"
    try:
        checkpoint.verify(path)
    except RunError as damage:
        print(f"{damage}; it was the best, now final/ is step {last}", file=sys.stderr)
        return last
    load_weights(config, parts, path)
    return best


def _words(value: Mapping[str, float | None]) -> str:
    low, high = value["low"], value["high"]
    spread = "" if low is None or high is None else f" ({low:.4f} to {high:.4f})"
    return f"{value['mean']:.4f}{spread} nats/token"


def _say_data(config: Config, parts: Parts, manifest: Mapping[str, Any], trained: int) -> None:
    counts = {**parts.counts, **manifest}
    _say(
        f"{config.model_name_or_path}: {trained:,} parameters to train on {parts.model.device}; loss on the "
        f"{config.loss_on}; {counts['train']['examples']:,} examples with "
        f"{counts['train']['learned_tokens']:,} tokens to learn, "
        f"{counts['held_out']['examples']:,} held out; {parts.steps:,} updates"
    )
    for key, words in (
        ("empty_dropped", "without a text or a completion"),
        ("duplicates_dropped", "that stand twice"),
        ("overlaps_dropped", "whose prompt is held out explicitly"),
        ("too_long", "longer than max_length or the context"),
        ("undivided", "without a sentence for the prompt and one for the completion"),
        ("shared_prompts", "with a prompt that is held out"),
    ):
        if counts[key]:
            _say(f"left out: {counts[key]:,} examples {words}")


def _say_progress(row: Mapping[str, Any], steps: int, seconds_per_step: float) -> None:
    line = f"step {row['step']}/{steps}  epoch {row['epoch']:.2f}  loss {row['loss/train']:.4f}"
    if VALIDATION in row:
        line += f"  held-out {row[VALIDATION]:.4f} nats/token"
    left = clock((steps - row["step"]) * seconds_per_step)
    _say(
        f"{line}  lr {row['learning_rate']:.2e}  grad {row['grad_norm']:.2f}  "
        f"{row['time/tokens_per_second']:,.0f} tokens/s  left {left}"
    )


def _say(text: str) -> None:
    print(text, flush=True)
