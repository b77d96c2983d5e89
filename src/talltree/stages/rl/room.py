"""Whether a run fits in memory: said before the first step, and what to change where it does not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from talltree import checkpoint
from talltree.errors import ConfigError, RunError
from talltree.models.memory import (
    GIB,
    Need,
    body_training_bytes,
    free_bytes,
    sampling_bytes,
    standing_bytes,
    training_bytes,
    when_out_of_memory,
)
from talltree.models.policy import trainable
from talltree.models.score import tokens_at_a_time
from talltree.run import Run
from talltree.stages.rl.config import Config
from talltree.stages.rl.parts import Parts

MOMENTS = {"adamw": 2, "sgd": 0}
"""Numbers that an optimiser keeps for each weight."""


def rows_of_update(config: Config, parts: Parts) -> int:
    """Completions of one update that a process has at most."""
    return math.ceil(config.batch_size // config.num_mini_batches / parts.team.size)


def rows_at_once(config: Config, parts: Parts) -> int:
    """Completions sampled side by side: a process's share of a step, or the main one's measurement."""
    return max(math.ceil(config.batch_size / parts.team.size), config.eval_samples)


def texts_at_a_time(config: Config, length: int, parts: Parts) -> int:
    """Texts in one part of an update when all have `length` tokens."""
    rows = rows_of_update(config, parts)
    if config.gradient_accumulation_steps is not None:
        return math.ceil(rows / config.gradient_accumulation_steps)
    return min(rows, max(1, tokens_at_a_time(parts.policy.device) // length))


def longest_text(config: Config, parts: Parts) -> int:
    """Tokens of the longest prompt with the longest completion."""
    return max(map(len, parts.ids_of.values())) + config.max_completion_length


def need(config: Config, parts: Parts) -> Need:
    """What a step will take, from the model's own forward pass on one text of the longest length.

    Of several processes each takes its share of the batch.
    """
    length = longest_text(config, parts)
    texts = texts_at_a_time(config, length, parts)
    changing = list(trainable(parts.policy).values())
    if parts.critic is not None:
        changing += parts.critic.parameters().values()
    return Need(
        standing_bytes(changing, MOMENTS[config.optim]),
        sampling_bytes(parts.policy, rows_at_once(config, parts), length),
        _training_bytes(config, parts, texts, length),
    )


def _training_bytes(config: Config, parts: Parts, texts: int, length: int) -> int:
    """The larger of the policy's passes and the critic's, which come one after the other."""
    taken = training_bytes(parts.policy, texts, length, config.fast)
    if parts.critic is None or parts.critic.is_shared:
        return taken
    return max(taken, body_training_bytes(parts.critic.body, texts, length))


def require_room(config: Config, parts: Parts) -> str:
    """A line on what a step needs and what is free. Raises ConfigError, with the fix, if it does not fit."""
    asked, free = need(config, parts), free_bytes(parts.policy.device)
    if free is not None and parts.policy.device.type == "cpu":
        free //= parts.team.here  # a GPU each, but one machine's memory for all of them
    line = (
        f"about {asked.total / GIB:.1f} GiB more memory is needed (gradients and optimiser "
        f"{asked.standing / GIB:.1f}, then sampling {asked.sampling / GIB:.1f} or training "
        f"{asked.training / GIB:.1f})"
    )
    if free is None:
        return line
    line += f", {free / GIB:.1f} GiB are free"
    if asked.total > free:
        raise ConfigError(f"the batch does not fit: {line}; {_fix(config, parts, free - asked.standing)}")
    return line


def _fix(config: Config, parts: Parts, room: int) -> str:
    """The setting to change so that sampling and training fit in `room` bytes."""
    length = longest_text(config, parts)
    rows = rows_of_update(config, parts)
    one, two = (_training_bytes(config, parts, texts, length) for texts in (1, 2))
    if rows_at_once(config, parts) > 1 and sampling_bytes(parts.policy, 1, length) < room:
        sampled = sampling_bytes(parts.policy, rows_at_once(config, parts), length)
        if sampled > room:
            return "set batch_size or eval_samples lower, whichever is larger, or max_completion_length"
    if one > room:
        lora = "" if config.lora_r is not None else ", or train adapters with lora_r 8"
        return f"set max_completion_length lower than {config.max_completion_length}{lora}"
    fitting = 1 + (room - one) // max(two - one, 1)
    return f"set gradient_accumulation_steps {math.ceil(rows / min(fitting, rows))}"


@contextmanager
def preparing(config: Config, parts: Parts) -> Iterator[None]:
    """One line for running out of memory before the first step. Raises RunError."""
    advice = (
        f"out of memory before the first step, with texts of up to {longest_text(config, parts)} tokens; "
        f"free memory, or set max_completion_length lower than {config.max_completion_length}"
    )
    with when_out_of_memory(lambda: advice):
        yield


@contextmanager
def measuring(config: Config, parts: Parts, folder: Run) -> Iterator[None]:
    """One line for running out of memory while the ended run is measured. Raises RunError."""
    saved = checkpoint.step_folders(folder.checkpoints)[-1][0]
    fewer = f" --eval_samples {config.eval_samples // 2}" if config.eval_samples >= 4 else ""
    advice = (
        f"out of memory while {config.eval_samples} completions of texts of up to "
        f"{longest_text(config, parts)} tokens were measured; step {saved} is saved: "
        f"{'' if fewer else 'free memory and '}continue with talltree rl --resume {folder.folder}{fewer}"
    )
    with when_out_of_memory(lambda: advice):
        yield


def ran_out(config: Config, parts: Parts, step: int, saved: int, folder: Path) -> RunError:
    """The error for a step that ran out of memory; half as many texts at a time may fit."""
    length = longest_text(config, parts)
    rows = rows_of_update(config, parts)
    texts = texts_at_a_time(config, length, parts)
    where = (
        f"step {step}: out of memory with batch_size {config.batch_size} and texts of up to {length} tokens"
    )
    if texts > 1:
        steps = math.ceil(rows / (texts // 2))
        return RunError(
            f"{where}, {texts} at a time; step {saved} is saved: continue with talltree rl --resume {folder} "
            f"--gradient_accumulation_steps {steps}"
        )
    return RunError(
        f"{where}, one at a time; step {saved} is saved: free memory and continue with talltree rl --resume "
        f"{folder}, or start again with a lower max_completion_length"
    )
