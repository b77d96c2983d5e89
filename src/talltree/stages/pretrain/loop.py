"""Stage `pretrain`: a small causal language model from scratch. Read from the top.

Documents are packed back to back, EOS doc EOS doc EOS, and cut into rows of `context` + 1 tokens, each token
predicted once an epoch. With `documents: packed` attention runs across document boundaries, which EOS marks,
and position ids count from the start of the row; with `separated` both end at the document. The held-out loss
is measured as the model is used: each document from its own EOS, long ones in windows, its last EOS included.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from talltree import checkpoint
from talltree.config import to_dict
from talltree.console import clock
from talltree.data.corpora import Corpus, open_corpus, save_manifest
from talltree.data.tokens import Tokens, load_tokens
from talltree.data.windows import require_windows, training_batch, windows_per_epoch
from talltree.errors import ConfigError, ContractError, TallTreeError
from talltree.interrupt import EXIT_STATUS, Interrupts, leave
from talltree.models.build import build
from talltree.models.card import write_card
from talltree.models.load import load_model, load_tokenizer, save_model
from talltree.models.memory import keep_freed_memory, when_out_of_memory
from talltree.models.optim import set_learning_rate
from talltree.models.shape import dimensions
from talltree.run import Run, environment
from talltree.stages.pretrain.config import Config
from talltree.stages.pretrain.measure import held_out_nats, sample_prompt_ids, write_samples
from talltree.stages.pretrain.objective import Objective
from talltree.stages.pretrain.state import (
    refuse_another_vocabulary,
    refuse_changed_corpus,
    tokenizer_hash,
    whole_config,
)
from talltree.stages.pretrain.team import USER_ERROR, Team, gather_team, launched
from talltree.stages.pretrain.update import (
    compile_blocks,
    learning_rate_factor,
    make_optimizers,
    peak_rates,
    rows_at_a_time,
    update,
)
from talltree.stages.resuming import loading_advice, memory_advice, require_same_data, say_threads


def run(config: Config) -> None:
    """Train from scratch, or continue `config.resume`; writes the run folder and its final/.

    Raises TallTreeError for whatever the user can mend; of several processes the main one alone does. Exits
    with 130 or 143 after SIGINT or SIGTERM.
    """
    rank, _ = launched()
    try:
        config = whole_config(config)
        team = gather_team(config)
        tokenizer = _tokenizer(config)
        corpus = open_corpus(config.corpus, config.dataset_name)
        hashes = {**corpus.sha256, "tokenizer vocabulary": tokenizer_hash(tokenizer)}
    except TallTreeError:
        # Every process finds the same mistake, and one line is enough.
        if rank:
            raise SystemExit(USER_ERROR) from None
        raise
    try:
        with when_out_of_memory(loading_advice):
            _run(config, team, tokenizer, corpus, hashes)
    finally:
        team.leave()


def _run(config: Config, team: Team, tokenizer: Any, corpus: Corpus, hashes: dict[str, str]) -> None:
    """Opens or makes the run folder, tokenises, trains."""

    def start() -> Run:
        if config.resume is not None:
            folder = Run.resume(config.resume, say=print)
            refuse_another_vocabulary(folder, tokenizer, config.tokenizer_name_or_path)
            require_same_data(folder, hashes)
            say_threads(folder, print)
            return folder
        # Before there is a folder, so that the mended command can be run again.
        require_windows(corpus, tokenizer, dimensions(config.model).context, config.batch_size)
        return Run.create(config.output_dir, to_dict(config), environment(hashes))

    folder = team.on_main(start) or Run.open(config.output_dir)

    def tokenise() -> Tokens:
        cache = Path(config.corpus.cache_dir or folder.folder / "cache").expanduser()
        tokens = load_tokens(corpus, tokenizer, cache, team.say)
        refuse_changed_corpus(folder, tokens.manifest)
        return tokens

    with folder:
        found = team.on_main(tokenise)
        tokens = tokenise() if found is None else found
        team.on_main(lambda: save_manifest(folder.folder, tokens.manifest))
        with when_out_of_memory(lambda: memory_advice(folder, "pretrain")):
            train(config, folder, tokens, tokenizer, team)


def _tokenizer(config: Config) -> Any:
    """The tokenizer. Raises ConfigError where it has no EOS, or a sample prompt does not fit the context."""
    tokenizer = load_tokenizer(config.tokenizer_name_or_path)
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"tokenizer {config.tokenizer_name_or_path} has no EOS token; make one with `talltree tokenizer`"
        )
    sample_prompt_ids(config, tokenizer)
    return tokenizer


def train(config: Config, folder: Run, corpus: Tokens, tokenizer: Any, team: Team) -> None:
    """The loop: updates from the last checkpoint (or 0) to `steps`, then final/ with its card."""
    context, eos = dimensions(config.model).context, tokenizer.eos_token_id
    stream, held_out = corpus.train, list(corpus.validation.documents())
    epoch = windows_per_epoch(len(stream), context)
    keep_freed_memory(team.device)

    done, state, model = _begin(config, folder, tokenizer, team)
    elapsed, validation = state.get("seconds", 0.0), state.get("validation", {})
    parameters = sum(p.numel() for p in model.parameters())
    plain = Objective(
        model.to(team.device),
        separated=eos if config.documents == "separated" else None,
        bfloat16=config.dtype == "bfloat16",
        chunked=config.head == "chunked",
    )
    if config.compile:
        compile_blocks(plain, team.device)
    objective, optimizers = team.wrap(plain, make_optimizers(model, config))
    if done:
        team.load_optimizer_states(objective, optimizers, state["optimizers"])
    rows = config.batch_size // team.size
    team.say(
        f"{parameters:,} parameters; {len(stream):,} training tokens in {epoch:,} rows, "
        f"{config.steps * config.batch_size / epoch:.2f} epochs; {len(held_out):,} documents held out; "
        f"{corpus.manifest['duplicates_dropped']:,} duplicates dropped\n"
        f"step {done} to {config.steps} on {team.device.type}"
        + (f" with {team.size} processes" if team.size > 1 else "")
    )
    begun = time.perf_counter()

    def save(step: int) -> None:
        whole = team.whole_model(objective)
        states = team.optimizer_states(objective, optimizers)
        seconds = elapsed + time.perf_counter() - begun

        def write(path: Path) -> None:
            assert whole is not None
            save_model(path, whole, tokenizer)
            checkpoint.save_state(path, {"optimizers": states, "seconds": seconds, "validation": validation})

        team.on_main(
            lambda: folder.save_checkpoint(step, write, config.keep_checkpoints, protect=config.milestones)
        )

    with Interrupts() as interrupts:
        for step in range(done + 1, config.steps + 1):
            started = time.perf_counter()
            factor = learning_rate_factor(config, step)
            for optimizer, peak in zip(optimizers, peak_rates(config), strict=True):
                set_learning_rate(optimizer, peak * factor)
            first_row = (step - 1) * config.batch_size + team.rank * rows
            batch = training_batch(stream, context, rows, first_row, config.seed).to(team.device)
            try:
                with when_out_of_memory(lambda: _advice(config, folder, team)):
                    loss, norm = update(
                        objective, optimizers, batch, rows_at_a_time(config, team), config.max_grad_norm, team
                    )
            except ContractError as error:
                raise ContractError(f"step {step}: {error} (--resume {folder.folder})") from None
            seconds = time.perf_counter() - started
            tokens = config.batch_size * context
            row: dict[str, float | int | None] = {
                "step": step, "tokens": step * tokens, "loss/train": loss, "grad_norm": norm,
                "learning_rate": config.learning_rate * factor, "time/step": seconds,
                "time/tokens_per_second": tokens / seconds,
            }  # fmt: skip
            is_last = step == config.steps
            if is_last or step % config.validation_every == 0:
                validation = _held_out(config, objective, held_out, eos, corpus, team)
                row |= {"loss/validation": validation["loss"], "bits_per_byte": validation["bits_per_byte"]}
                row["time/validation"] = time.perf_counter() - started - seconds
            if team.is_main:
                folder.log(row)
            if is_last or step % config.log_every == 0 or "loss/validation" in row:
                team.say(_progress(row, config.steps, (time.perf_counter() - begun) / (step - done)))
            if config.sample_prompts and (is_last or step % config.sample_every == 0):
                _sample(config, folder, team.whole_model(objective), tokenizer, step, team)
            minutes = (time.perf_counter() - begun) / 60
            is_late = config.max_minutes is not None and minutes > config.max_minutes
            # A signal may reach one process alone, and clocks differ: all stop at the same step.
            stop_reason = _agreed(interrupts.requested or ("max_minutes" if is_late else None), team)
            is_due = step % config.checkpoint_every == 0 or step in config.milestones
            if is_last or is_due or stop_reason is not None:
                save(step)
            if stop_reason is not None and not is_last:
                if stop_reason in EXIT_STATUS:
                    leave(stop_reason, step, "pretrain", folder.folder, team.say)
                team.say(
                    f"stopped by {stop_reason} after step {step}, saved; continue with "
                    f"talltree pretrain --resume {folder.folder}"
                )
                return
    summary = {
        "stage": "pretrain",
        "steps": config.steps,
        "stop_reason": "steps",
        "parameters": parameters,
        "processes": team.size,
        "train_tokens": len(stream),
        "epochs": config.steps * config.batch_size / epoch,
        "validation": validation,
        "corpus": corpus.manifest,
    }
    whole = team.whole_model(objective)

    def finish() -> None:
        assert whole is not None
        summary["wall_time_seconds"] = elapsed + time.perf_counter() - begun
        _finish(config, folder, whole, tokenizer, corpus, held_out, summary)

    team.on_main(finish)


def _advice(config: Config, folder: Run, team: Team) -> str:
    """What to do where an update ran out of memory: rows in half as large parts, where that is possible."""
    mine, rows = config.batch_size // team.size, rows_at_a_time(config, team)
    fewer = [size for size in range(1, rows // 2 + 1) if mine % size == 0]
    smaller = f" --micro_batch_size {fewer[-1]}" if fewer else ""
    return memory_advice(folder, "pretrain", smaller)


def _begin(config: Config, folder: Run, tokenizer: Any, team: Team) -> tuple[int, dict[str, Any], Any]:
    """The step to go on from, the training state of it (empty at 0), and the model."""
    found: tuple[int, Path] | None = None
    if checkpoint.step_folders(folder.checkpoints):
        found = team.from_main(team.on_main(lambda: folder.latest_checkpoint(say=print)))
    done = 0 if found is None else found[0]
    team.on_main(lambda: folder.rewind(done))
    if found is None:
        return 0, {}, build(config.model, tokenizer, config.seed)
    return done, checkpoint.load_state(found[1]), load_model(str(found[1]))


def _held_out(
    config: Config,
    objective: nn.Module,
    documents: Sequence[list[int]],
    eos: int,
    corpus: Tokens,
    team: Team,
) -> dict[str, Any]:
    nats, count = held_out_nats(objective, documents, dimensions(config.model).context, eos, team)
    bits = nats / math.log(2) / corpus.manifest["validation_bytes"]
    return {"loss": nats / count, "bits_per_byte": bits, "tokens": count}


def _sample(config: Config, folder: Run, whole: Any, tokenizer: Any, step: int, team: Team) -> None:
    """One continuation of each prompt, by the main process alone, while the others wait."""

    def write() -> None:
        columns = write_samples(whole, tokenizer, config, step)
        folder.add_samples(step, columns)
        for prompt, completion in zip(columns["prompt"], columns["completion"], strict=True):
            print(f"  sample: {prompt}{completion}", flush=True)

    team.on_main(write)


def _agreed(reason: str | None, team: Team) -> str | None:
    """Why to stop, if any process has a reason; the main one's word is taken where it has one."""
    if team.size == 1:
        return reason
    (asked,) = team.sums([float(reason is not None)])
    return (team.from_main(reason) or "another process") if asked else None


def _finish(
    config: Config,
    folder: Run,
    model: Any,
    tokenizer: Any,
    corpus: Tokens,
    held_out: Sequence[list[int]],
    summary: dict[str, Any],
) -> None:
    """final/ in its dtype with its own held-out loss and card, merged samples, summary.json; one process."""
    stored = deepcopy(model)
    # The compiled forward belongs to the model that was trained.
    nn.Module.to(stored, dtype=getattr(torch, config.final_dtype))
    alone = Team(None, 0, 1, next(stored.parameters()).device, False)
    plain = Objective(deepcopy(stored).float(), separated=None, bfloat16=False, chunked=True)
    final = _held_out(config, plain, held_out, tokenizer.eos_token_id, corpus, alone)
    summary["final"] = {
        "loss": final["loss"], "bits_per_byte": final["bits_per_byte"], "dtype": config.final_dtype
    }  # fmt: skip
    tokenizer.model_max_length = dimensions(config.model).context

    def write(path: Path) -> None:
        save_model(path, stored, tokenizer)
        write_card(path, to_dict(config), summary, folder.environment)

    checkpoint.save_folder(folder.final, write)
    folder.merge_samples()
    folder.write_summary(summary)
    print(
        f"held-out loss {final['loss']:.4f} nats/token, {final['bits_per_byte']:.4f} bits/byte as "
        f"{config.final_dtype}"
    )
    print(f"written to {folder.final}")


def _progress(row: dict[str, Any], steps: int, seconds_per_step: float) -> str:
    line = f"step {row['step']}/{steps}  loss {row['loss/train']:.4f}"
    if "loss/validation" in row:
        line += f"  held-out {row['loss/validation']:.4f} nats/token, {row['bits_per_byte']:.4f} bits/byte"
    left = clock((steps - row["step"]) * seconds_per_step)
    return (
        f"{line}  lr {row['learning_rate']:.2e}  grad {row['grad_norm']:.2f}  "
        f"{row['time/tokens_per_second']:,.0f} tokens/s  left {left}"
    )
