"""Stage `pretrain`: a small causal language model from scratch.

Documents are packed back to back, EOS doc EOS doc EOS, and cut into rows of `context` + 1 tokens, each token
predicted once an epoch. Nothing is masked: attention runs across document boundaries, which EOS marks, and
position ids count from the start of the row. The held-out loss is measured as the model is used: each
document from its own EOS, long ones in windows, its final EOS included.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from talltree import checkpoint
from talltree.config import from_dict, to_dict
from talltree.data.corpora import Corpus, encode, load_corpus, pack, training_batch, windows_per_epoch
from talltree.errors import ConfigError, ContractError, RunError
from talltree.interrupt import Interrupts
from talltree.models.build import build
from talltree.models.card import model_card
from talltree.models.load import load_model, load_tokenizer, save_model
from talltree.models.optim import Muon, decay_groups, schedule, set_learning_rate
from talltree.run import Run, environment
from talltree.sampling.decode import sample
from talltree.stages.pretrain.config import Config


def learning_rate_factor(config: Config, step: int) -> float:
    """Factor on the learning rate of update `step`, counted from 1; see `models.optim.schedule`."""
    plan = config.schedule
    return schedule(
        plan.name, step - 1, config.steps, plan.warmup_steps,
        decay_share=plan.decay_share, final_factor=plan.final_factor,
    )  # fmt: skip


def make_optimizers(model: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW over all parameters, or Muon for the matrices of the blocks and AdamW for the rest.

    Weight decay falls on parameters with two or more dimensions, not on norms and biases; under muon not on
    the embedding either. GPT-2 keeps its matrices transposed, which neither optimiser notices.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    embeddings |= {id(model.get_output_embeddings().weight)}  # type: ignore[operator]
    matrices = [p for p in model.parameters() if p.dim() >= 2 and id(p) not in embeddings]
    tables = [p for p in model.parameters() if p.dim() >= 2 and id(p) in embeddings]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    with_muon = config.optimizer == "muon"
    rest = [{"params": tables + vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(
        rest if with_muon else decay_groups(matrices + tables + vectors, config.weight_decay),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        fused=True,
    )
    if not with_muon:
        return [adamw]
    return [Muon(matrices, config.muon_learning_rate, weight_decay=config.weight_decay), adamw]


def update(
    model: nn.Module,
    forward: Callable[..., Any],
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Tensor,
    micro_rows: int,
    max_grad_norm: float,
) -> tuple[float, float]:
    """One optimiser update on rows of context + 1 tokens -> (mean loss in nats/token, gradient norm).

    The loss is divided by the batch's whole token count, so micro-batches do not change it. Raises
    ContractError, with the weights untouched, when loss or gradient is not finite.
    """
    total = 0.0
    targets = batch[:, 1:].numel()
    for rows in batch.split(micro_rows):
        logits = forward(input_ids=rows[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum") / targets
        loss.backward()
        total += loss.item()
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm).item()
    if not (math.isfinite(total) and math.isfinite(norm)):
        raise ContractError(
            f"loss {total} with gradient norm {norm} is not finite; the weights were left as they were: "
            "set a lower learning_rate in config.yaml and continue from the last checkpoint"
        )
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total, norm


@torch.no_grad()
def held_out_nats(
    model: PreTrainedModel, documents: Sequence[list[int]], context: int, eos: int
) -> tuple[float, int]:
    """Sum of -log p over EOS doc EOS of each document and the number of tokens predicted.

    A document longer than the context goes on in a new row that starts with the last token of the one before.
    Rows are batched by length and padded on the right, where no real token looks.
    """
    whole = [[eos, *document, eos] for document in documents]
    rows = [ids[at : at + context + 1] for ids in whole for at in range(0, len(ids) - 1, context)]
    rows.sort(key=len)
    nats, count = 0.0, 0
    for start in range(0, len(rows), 32):
        some = rows[start : start + 32]
        ids = torch.full((len(some), len(some[-1])), eos)
        targets = torch.full_like(ids, -100)
        for index, row in enumerate(some):
            ids[index, : len(row)] = torch.tensor(row)
            targets[index, : len(row) - 1] = ids[index, 1 : len(row)]
        ids, targets = ids[:, :-1].to(model.device), targets[:, :-1].to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
        nats += loss.item()
        count += sum(len(row) - 1 for row in some)
    return nats, count


def sample_prompt_ids(config: Config, tokenizer: Any) -> list[list[int]]:
    """Token ids of each sample prompt. Raises ConfigError for one without tokens or without room after it."""
    prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in config.sample_prompts]
    for prompt, ids in zip(config.sample_prompts, prompt_ids, strict=True):
        if not 0 < len(ids) < config.model.context:
            raise ConfigError(
                f"sample_prompts: {prompt[:40]!r} has {len(ids)} tokens; it needs at least 1 and fewer than "
                f"model.context {config.model.context}"
            )
    return prompt_ids


def write_samples(model: PreTrainedModel, tokenizer: Any, config: Config, step: int) -> dict[str, list[Any]]:
    """Columns of one continuation of each sample prompt at temperature 1, drawn from (seed, step)."""
    prompt_ids = sample_prompt_ids(config, tokenizer)
    room = config.model.context - max(map(len, prompt_ids))
    drawn = sample(
        model, prompt_ids, max_completion_length=room, stop_ids=(tokenizer.eos_token_id,), temperature=1.0,
        generator=torch.Generator().manual_seed(config.seed * 1_000_003 + step),
    )  # fmt: skip
    ids = [
        tokens[mask].tolist() for tokens, mask in zip(drawn.tokens_NT.cpu(), drawn.mask_NT.cpu(), strict=True)
    ]
    return {
        "prompt": config.sample_prompts,
        "completion": [tokenizer.decode(each, skip_special_tokens=True) for each in ids],
        "prompt_ids": prompt_ids,
        "completion_ids": ids,
        "logp": drawn.logp_NT.sum(1).tolist(),
        "ended": drawn.ended_N.tolist(),
    }


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of the vocabulary, sorted by token id: a resumed run must find the same one."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def run(config: Config) -> None:
    """Train from scratch, or continue `config.resume`; writes the run folder and its final/."""
    if config.resume is not None:
        stored = from_dict(Config, Run.open(config.resume).config)
        config = replace(
            stored, resume=config.resume, max_minutes=config.max_minutes, output_dir=config.resume
        )
    tokenizer = load_tokenizer(config.tokenizer_name_or_path)
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"tokenizer {config.tokenizer_name_or_path} has no EOS token; make one with `talltree tokenizer`"
        )
    corpus = load_corpus(config.dataset_name, config.separator, config.validation_share)
    hashes = {**corpus.sha256, "tokenizer vocabulary": tokenizer_hash(tokenizer)}
    # Before there is a folder, so that the mended command can be run again.
    sample_prompt_ids(config, tokenizer)
    stream = pack(encode(tokenizer, corpus.train), tokenizer.eos_token_id)
    windows_per_epoch(stream, config.model.context)
    if config.resume is None:
        folder = Run.create(config.output_dir, to_dict(config), environment(hashes))
    else:
        folder = Run.resume(config.resume, say=print)
        for name, expected in folder.environment["data_sha256"].items():
            if hashes.get(name) != expected:
                raise RunError(
                    f"{config.resume}: {name} has changed since the run began; bring the old one back"
                )
    with folder:
        train(config, folder, corpus, stream, tokenizer)


def train(config: Config, folder: Run, corpus: Corpus, stream: Tensor, tokenizer: Any) -> None:
    """The loop: updates from the last checkpoint (or 0) to `steps`, then final/ with its card.

    stream: the training documents as `pack` joins them.
    """
    context = config.model.context
    device = "cuda" if torch.cuda.is_available() else "cpu"
    held_out = encode(tokenizer, corpus.validation)
    epoch = windows_per_epoch(stream, context)

    done, elapsed, validation = 0, 0.0, {}
    model = build(config.model, tokenizer, config.seed)
    if checkpoint.step_folders(folder.checkpoints):
        done, saved = folder.latest_checkpoint(say=print)
        model = load_model(str(saved))
    nn.Module.to(model, device)
    optimizers = make_optimizers(model, config)
    if done:
        state = checkpoint.load_state(saved)
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        elapsed, validation = state["seconds"], state["validation"]
    folder.rewind(done)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{parameters:,} parameters; {len(stream):,} training tokens in {epoch:,} rows, "
        f"{config.steps * config.batch_size / epoch:.2f} epochs; {len(held_out):,} documents held out; "
        f"{corpus.counts.duplicates_dropped:,} duplicates dropped\nstep {done} to {config.steps} on {device}",
        flush=True,
    )
    forward = torch.compile(model) if config.compile else model
    begun = time.perf_counter()
    micro_rows = config.micro_batch_size or config.batch_size
    peaks = [config.muon_learning_rate if isinstance(o, Muon) else config.learning_rate for o in optimizers]

    def save(step: int) -> None:
        def write(path: Path) -> None:
            save_model(path, model, tokenizer)
            states = [optimizer.state_dict() for optimizer in optimizers]
            seconds = elapsed + time.perf_counter() - begun
            checkpoint.save_state(path, {"optimizers": states, "seconds": seconds, "validation": validation})

        folder.save_checkpoint(step, write, keep=config.keep_checkpoints)

    stop_reason = "steps"
    with Interrupts() as interrupts:
        for step in range(done + 1, config.steps + 1):
            started = time.perf_counter()
            factor = learning_rate_factor(config, step)
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                set_learning_rate(optimizer, peak * factor)
            first_row = (step - 1) * config.batch_size
            batch = training_batch(stream, context, config.batch_size, first_row, config.seed).to(device)
            try:
                loss, norm = update(model, forward, optimizers, batch, micro_rows, config.max_grad_norm)
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
                nats, count = held_out_nats(model, held_out, context, tokenizer.eos_token_id)
                bits = nats / math.log(2) / corpus.counts.validation_bytes
                validation = {"loss": nats / count, "bits_per_byte": bits, "tokens": count}
                row |= {"loss/validation": nats / count, "bits_per_byte": bits}
                row["time/validation"] = time.perf_counter() - started - seconds
            folder.log(row)
            if is_last or step % config.log_every == 0 or "loss/validation" in row:
                _say_progress(row, config.steps, (time.perf_counter() - begun) / (step - done))
            if config.sample_prompts and (is_last or step % config.sample_every == 0):
                columns = write_samples(model, tokenizer, config, step)
                folder.add_samples(step, columns)
                for prompt, completion in zip(columns["prompt"], columns["completion"], strict=True):
                    print(f"  sample: {prompt}{completion}", flush=True)
            out_of_time = (
                config.max_minutes is not None and time.perf_counter() - begun > 60 * config.max_minutes
            )
            if interrupts.requested or out_of_time:
                stop_reason = "steps" if is_last else interrupts.requested or "max_minutes"
            if is_last or stop_reason != "steps" or step % config.checkpoint_every == 0:
                save(step)
            if stop_reason != "steps":
                print(
                    f"stopped by {stop_reason} after step {step}, saved; continue with "
                    f"talltree pretrain --resume {folder.folder}",
                    flush=True,
                )
                return
    stored = deepcopy(model)
    nn.Module.to(stored, dtype=getattr(torch, config.final_dtype))
    nats, count = held_out_nats(deepcopy(stored).float(), held_out, context, tokenizer.eos_token_id)
    bits = nats / math.log(2) / corpus.counts.validation_bytes
    summary = {
        "stage": "pretrain",
        "steps": config.steps,
        "stop_reason": stop_reason,
        "parameters": parameters,
        "train_tokens": len(stream),
        "epochs": config.steps * config.batch_size / epoch,
        "validation": validation,
        "final": {"loss": nats / count, "bits_per_byte": bits, "dtype": config.final_dtype},
        "corpus": corpus.manifest(),
        "wall_time_seconds": elapsed + time.perf_counter() - begun,
    }
    tokenizer.model_max_length = context

    def write_final(path: Path) -> None:
        save_model(path, stored, tokenizer)
        (path / "README.md").write_text(
            model_card(to_dict(config), summary, folder.environment), encoding="utf-8"
        )

    checkpoint.save_folder(folder.final, write_final)
    folder.merge_samples()
    folder.write_summary(summary)
    print(f"held-out loss {nats / count:.4f} nats/token, {bits:.4f} bits/byte as {config.final_dtype}")
    print(f"written to {folder.final}")


def _say_progress(row: dict[str, Any], steps: int, seconds_per_step: float) -> None:
    left = (steps - row["step"]) * seconds_per_step / 60
    line = f"step {row['step']}/{steps}  loss {row['loss/train']:.4f}"
    if "loss/validation" in row:
        line += f"  held-out {row['loss/validation']:.4f} nats/token, {row['bits_per_byte']:.4f} bits/byte"
    print(
        f"{line}  lr {row['learning_rate']:.2e}  grad {row['grad_norm']:.2f}  "
        f"{row['time/tokens_per_second']:,.0f} tokens/s  {left:.0f} min left",
        flush=True,
    )
