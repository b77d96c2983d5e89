"""The end of a run: which weights become final/, what they earn beside the start's, and the summary."""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

import torch

from talltree import checkpoint
from talltree.console import plain
from talltree.errors import ContractError, ModelError, RunError
from talltree.models.critic import FOLDER, save_critic
from talltree.run import Run
from talltree.stages.rl.card import write_final
from talltree.stages.rl.config import Config
from talltree.stages.rl.measure import (
    PREFLIGHT_SAMPLES,
    PREFLIGHT_STREAM,
    collect_rollout,
    measure,
    repeated,
    seeded,
)
from talltree.stages.rl.parts import Parts, start_model
from talltree.stages.rl.room import measuring
from talltree.stages.rl.state import State, load_weights
from talltree.stages.rl.value import NonFinite


class Ending(NamedTuple):
    """Why the steps are over, and the step whose weights the policy holds."""

    reason: str
    held_step: int
    failure: NonFinite | None = None


def fall_back(config: Config, parts: Parts, folder: Run) -> int:
    """Loads the newest checkpoint whose samples are finite; one saved after a bad update may not be."""
    for step, path in reversed(checkpoint.step_folders(folder.checkpoints)):
        load_weights(config, parts, path)
        prompts = repeated(parts.prompts, PREFLIGHT_SAMPLES)
        if torch.isfinite(
            collect_rollout(config, parts, prompts, seeded(PREFLIGHT_STREAM + config.seed)).logp_NT
        ).all():
            return step
    raise ContractError(
        f"no checkpoint of {folder.folder} gives finite log-probs; start again with a lower learning_rate"
    )


def finish(config: Config, parts: Parts, state: State, folder: Run, ending: Ending, started: float) -> None:
    """Writes final/ from the best checkpoint, else as the run ended, measures it and closes the summary."""
    chosen = _load_best(config, parts, state, folder, ending.held_step)
    # The policy as it started is kept as the reference, or can be had again: its measurement can wait.
    with measuring(config, parts, folder):
        with start_model(config, parts) as start:
            before = measure(config, parts, config.coef, folder.folder / "before.jsonl", start)
        after = measure(config, parts, state.controller.coef, folder.folder / "after.jsonl", parts.policy)
    summary = folder.summary()
    summary |= {
        "before": before,
        "after": after,
        "steps": state.step,
        "kl_coef_end": state.controller.coef,
        "best_step": state.best_step,
        "final_step": chosen,
        "stop_reason": ending.reason,
        "wall_time_seconds": summary["wall_time_seconds"] + time.monotonic() - started,
    }
    _save_critic(parts, folder)
    checkpoint.save_folder(
        folder.final, lambda target: write_final(target, config, parts, summary, folder.environment)
    )
    folder.merge_samples()
    folder.write_summary(summary)
    say(f"{ending.reason}; final/ is step {chosen}")
    for name, unit in (("reward", ""), ("kl", " nats"), ("length", " tokens")):
        say(f"  {name:<10} {_words(before[name], unit)}  ->  {_words(after[name], unit)}")
    for name in ("distinct_1", "distinct_2", "unique"):
        say(f"  {name:<10} {before[name]:.3f}  ->  {after[name]:.3f}")
    say(f"run folder: {folder.folder}   page: talltree report {folder.folder}")


def _save_critic(parts: Parts, folder: Run) -> None:
    """Writes critic/, for a later run to start from; a family that has no layout for it is named."""
    critic = parts.critic
    if critic is None:
        return
    try:
        checkpoint.save_folder(
            folder.folder / FOLDER, lambda target: save_critic(target, critic, parts.tokenizer)
        )
    except ModelError as error:
        print(f"no {FOLDER}/: {error}", file=sys.stderr)


def _load_best(config: Config, parts: Parts, state: State, folder: Run, last: int) -> int:
    """Puts the best checkpoint's weights into the policy, if there is one, and gives its step."""
    if state.best_step is None:
        print(f"no checkpoint kept within the bounds of `best`, so final/ is step {last}", file=sys.stderr)
        return last
    if state.best_step == last:
        return last
    path = folder.checkpoints / f"step-{state.best_step}"
    try:
        checkpoint.verify(path)
    except RunError as damage:
        print(f"{damage}; it was the best, now final/ is step {last}", file=sys.stderr)
        return last
    load_weights(config, parts, path)
    return state.best_step


def say(text: str) -> None:
    """A line on standard output, at once."""
    print(text, flush=True)


def _words(value: dict[str, float | None], unit: str) -> str:
    mean, low, high = (
        None if each is None else plain(each) for each in map(value.get, ("mean", "low", "high"))
    )
    spread = "" if low is None else f" ({low} to {high})"
    return ("not finite" if mean is None else mean + unit) + spread
