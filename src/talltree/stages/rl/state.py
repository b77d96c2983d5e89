"""What changes from step to step, and its way into a checkpoint and back, bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from talltree import checkpoint
from talltree.errors import RunError
from talltree.maths.advantages import MovingBaseline
from talltree.maths.controllers import KLController
from talltree.models.load import load_model
from talltree.models.policy import trainable
from talltree.run import Run
from talltree.stages.rl.config import Config
from talltree.stages.rl.parts import REWARD_FILE, Parts
from talltree.stops import is_candidate, window_reward

MAY_CHANGE = {
    "gradient_accumulation_steps": "the same loss, its last bits differ",
    "eval_samples": "for the measurements before and after, which are both made at the end",
}
"""What a resume may ask for anew, and what that changes: memory above all."""


@dataclasses.dataclass
class State:
    """What changes besides weights and optimiser; all of it is in a checkpoint.

    best_step and best_reward: the checkpoint that would become final/ now, None while none is within bounds.
    """

    step: int
    updates: int
    controller: KLController
    baseline: MovingBaseline
    generator: torch.Generator
    best_step: int | None = None
    best_reward: float | None = None


def fresh_state(config: Config) -> State:
    """The state before the first step."""
    controller = KLController(config.coef, config.kl.target, config.kl.horizon, config.kl.gain)
    return State(0, 0, controller, MovingBaseline(), torch.Generator().manual_seed(config.seed))


def judge(config: Config, state: State, rows: Sequence[Mapping[str, Any]]) -> None:
    """Remembers the step that is about to be saved if it is the best within the bounds of `best`.

    Only steps that an uninterrupted run would save are judged: an interruption must not change final/.
    """
    best = config.best
    window = rows[-best.window :]
    bounds = {"min_distinct_2": best.min_distinct_2, "min_unique": best.min_unique}
    if not is_candidate(window, rows[0], max_kl=best.max_kl, **bounds):
        return
    reward = window_reward(window)
    if state.best_reward is None or reward > state.best_reward:
        state.best_step, state.best_reward = state.step, reward


def save(config: Config, parts: Parts, state: State, folder: Run) -> None:
    """Saves checkpoints/step-N and deletes surplus ones, never the best; the main process does."""
    parts.team.on_main(lambda: _save(config, parts, state, folder))


def save_if_new(config: Config, parts: Parts, state: State, folder: Run) -> None:
    """`save`, unless this step has its checkpoint already."""

    def save_it() -> None:
        if not (folder.checkpoints / f"step-{state.step}").exists():
            _save(config, parts, state, folder)

    # Within, so that no process asks after the main one has saved.
    parts.team.on_main(save_it)


def _save(config: Config, parts: Parts, state: State, folder: Run) -> None:
    def write(target: Path) -> None:
        parts.policy.save_pretrained(target, safe_serialization=True)
        parts.tokenizer.save_pretrained(target)
        tree = {
            "step": state.step,
            "updates": state.updates,
            "controller": list(state.controller),
            "baseline": list(state.baseline),
            "generator": state.generator.get_state(),
            "best_step": state.best_step,
            "best_reward": state.best_reward,
            "reference_sha256": parts.reference_sha256,
            "base_sha256": parts.base_sha256,
            "critic_source_sha256": None if parts.critic is None else parts.critic.source_sha256,
            "critic": {} if parts.critic is None else parts.critic.parameters(),
            "optimizer": parts.optimizer.state_dict(),
            "adapters": trainable(parts.policy) if config.lora_r is not None else {},
        }
        checkpoint.save_state(target, tree)

    protect = () if state.best_step is None else (state.best_step,)
    folder.save_checkpoint(state.step, write, config.keep_checkpoints, protect)


def restore(config: Config, parts: Parts, folder: Run, say: Callable[[str], None]) -> State:
    """Brings parts and folder back to the newest good checkpoint and gives its state.

    Raises RunError without one, and where the base model or the prompts are not those of the run's start.
    """
    step, path = parts.team.on_main(lambda: folder.latest_checkpoint(say))
    return parts.team.together(lambda: _restore(config, parts, folder, say, step, path))


def _restore(
    config: Config, parts: Parts, folder: Run, say: Callable[[str], None], step: int, path: Path
) -> State:
    tree = checkpoint.load_state(path)
    _check_same_models(config, parts, folder, tree)
    changed = [
        name
        for name, digest in parts.data_sha256.items()
        if folder.environment["data_sha256"].get(name) != digest
    ]
    for name in [name for name in changed if name.startswith(f"{REWARD_FILE} ")]:
        say(f"{name} has changed since {folder.folder} was started; what was scored before keeps its rewards")
        changed.remove(name)
    if changed:
        raise RunError(
            f"prompts {config.prompts} have changed since {folder.folder} was started; bring the old file "
            "back, or start a new run"
        )
    load_weights(config, parts, path)
    parts.optimizer.load_state_dict(tree["optimizer"])
    generator = torch.Generator()
    generator.set_state(tree["generator"])
    if parts.team.is_main:
        folder.rewind(step)
    say(f"resuming {folder.folder} after step {step} of {config.steps}")
    return State(
        step,
        tree["updates"],
        KLController(*tree["controller"]),
        MovingBaseline(*tree["baseline"]),
        generator,
        tree["best_step"],
        tree["best_reward"],
    )


def _check_same_models(config: Config, parts: Parts, folder: Run, tree: Mapping[str, Any]) -> None:
    """Raises RunError where a model that the run starts from has other weights than it had then."""
    source = None if parts.critic is None else parts.critic.source_sha256
    models = (
        (config.reference_model_name_or_path, "reference_sha256", parts.reference_sha256, "reference"),
        (config.model_name_or_path, "base_sha256", parts.base_sha256, "start"),
        (config.critic.init_from, "critic_source_sha256", source, "critic"),
    )
    consequence = {
        "reference": "the KL would be measured against another reference",
        "start": "adapters and the measurement before would stand on others",
        "critic": "its adapters would stand on others",
    }
    for name, key, found, role in models:
        if tree[key] != found:
            raise RunError(
                f"{name or config.model_name_or_path} is not the model that {folder.folder} started from: "
                f"its weights have changed, so {consequence[role]}; bring the old ones back, or start a new "
                "run"
            )


def load_weights(config: Config, parts: Parts, path: Path) -> None:
    """Puts a checkpoint's weights into policy and critic."""
    if config.lora_r is None:
        parts.policy.load_state_dict(load_model(str(path)).state_dict())
    if config.lora_r is None and parts.critic is None:
        return
    tree = checkpoint.load_state(path)
    with torch.no_grad():
        if config.lora_r is not None:
            for name, parameter in trainable(parts.policy).items():
                parameter.copy_(tree["adapters"][name])
        if parts.critic is not None:
            for name, parameter in parts.critic.parameters().items():
                parameter.copy_(tree["critic"][name])
