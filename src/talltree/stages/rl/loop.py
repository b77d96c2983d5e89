"""The loop of the rl stage: load, preflight, measure before, train, measure after. Read it top to bottom."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from talltree import checkpoint
from talltree.config import to_dict
from talltree.console import Progress, Story, plain
from talltree.errors import ContractError, RewardError, RunError
from talltree.interrupt import Interrupts
from talltree.maths.advantages import MovingBaseline
from talltree.maths.controllers import updated
from talltree.maths.kl import blog_beta_from_coef, kl_loss
from talltree.models.memory import out_of_memory
from talltree.models.optim import schedule
from talltree.preflight import Check, require
from talltree.run import Run, environment, refuse_used
from talltree.stages.rl.card import write_final
from talltree.stages.rl.config import Config
from talltree.stages.rl.measure import (
    PREFLIGHT_SAMPLES,
    PREFLIGHT_STREAM,
    collect_rollout,
    columns_of,
    measure,
    repeated,
    run_preflight,
    score_rollout,
    seeded,
)
from talltree.stages.rl.parts import Parts, load_parts
from talltree.stages.rl.record import metrics_row
from talltree.stages.rl.room import ran_out, require_room
from talltree.stages.rl.state import (
    MAY_CHANGE,
    State,
    fresh_state,
    judge,
    load_weights,
    restore,
    resumed_config,
    save,
    save_if_new,
)
from talltree.stages.rl.update import BrokenStep, Figures, NonFinite, Objective, Passes, update
from talltree.stops import stop_reason
from talltree.types import Prompt, Scored

EXIT_STATUS = {"SIGINT": 130, "SIGTERM": 143}


def run(config: Config) -> None:
    """One run from `config`, or the rest of the run that `config.resume` names.

    Raises TallTreeError for whatever the user can mend. Exits with 130 or 143 after SIGINT or SIGTERM.
    """
    if config.resume is not None:
        _resume(config)
    else:
        _start(config)


def _start(config: Config) -> None:
    refuse_used(Path(config.output_dir))
    started = time.monotonic()
    parts = load_parts(config)
    beta = blog_beta_from_coef(config.coef)
    _say(
        f"{config.algorithm} on {config.model_name_or_path}, reward {config.reward}; KL coefficient "
        f"{config.coef:.4g} per nat (beta {beta:.4g} in the study's unit); device {parts.policy.device}"
    )
    # Before there is a folder: a mistake in the reward shows here, and the mended command can be run again.
    _say(require_room(config, parts))
    checks = run_preflight(config, parts)
    _say_checks(checks)
    state = fresh_state(config)
    summary: dict[str, Any] = {
        "stage": "rl",
        "model": config.model_name_or_path,
        "algorithm": config.algorithm,
        "reward": config.reward,
        "kl_coef": config.coef,
        "evaluated_on": "training prompts" if parts.held_out_is_train else "held-out prompts",
        "preflight": [check._asdict() for check in checks],
        "stop_reason": None,
    }
    with (
        Run.create(config.output_dir, to_dict(config), environment(parts.data_sha256)) as folder,
        Interrupts() as interrupts,
    ):
        folder.write_summary(summary | {"wall_time_seconds": time.monotonic() - started})
        require(checks)
        save(config, parts, state, folder)
        _complete(config, parts, state, folder, interrupts)


def _resume(asked: Config) -> None:
    config = resumed_config(asked)
    parts = load_parts(config)
    with Run.resume(str(asked.resume), _say) as folder, Interrupts() as interrupts:
        state = restore(config, parts, folder, _say)
        for key in MAY_CHANGE:
            if (value := getattr(config, key)) != folder.config[key]:
                _say(f"{key} is {value} from here on, for this resume: the same loss, its last bits differ")
        then, now = folder.environment["torch_threads"], torch.get_num_threads()
        if then != now:
            _say(
                f"this run was started with {then} threads and goes on with {now}: its last bits will "
                f"differ; OMP_NUM_THREADS={then} keeps them"
            )
        _say(require_room(config, parts))
        _complete(config, parts, state, folder, interrupts)


def _complete(config: Config, parts: Parts, state: State, folder: Run, interrupts: Interrupts) -> None:
    """What a run at `state` still lacks: the steps, the measurements, final/ and the summary."""
    started = time.monotonic()
    try:
        ending = _train(config, parts, state, folder, interrupts)
        if ending is not None:
            _finish(config, parts, state, folder, ending, started)
    except RewardError as error:
        raise RewardError(
            f"{error}; step {state.step} is saved: mend the reward, then continue with "
            f"talltree rl --resume {folder.folder}"
        ) from error
    if ending is None:
        summary = folder.summary()
        summary["wall_time_seconds"] += time.monotonic() - started
        folder.write_summary(summary)
        signal = str(interrupts.requested)
        _say(f"{signal}: saved step {state.step}; continue with talltree rl --resume {folder.folder}")
        raise SystemExit(EXIT_STATUS[signal])
    if ending.failure is not None:
        raise ContractError(ending.reason) from ending.failure


# Training


class Batch(NamedTuple):
    """A step's completions and what is known before the update; making one changes only the generator."""

    scored: Scored
    advantage_NT: Tensor
    baseline: MovingBaseline
    columns: dict[str, list[Any]]
    coef: float
    clock: list[float]


class Ending(NamedTuple):
    """Why the steps are over, and the step whose weights the policy holds."""

    reason: str
    held_step: int
    failure: NonFinite | None = None


def _train(config: Config, parts: Parts, state: State, folder: Run, interrupts: Interrupts) -> Ending | None:
    """Steps until the end, or until a signal (None); what was reached is then saved."""
    rows = folder.metrics()
    with Progress(config.steps) as progress:
        while (reason := _end(config, rows)) is None:
            if interrupts.requested is not None:
                save_if_new(config, parts, state, folder)
                return None
            draws = state.generator.get_state()
            try:
                batch = _batch(config, parts, state)
                figures = _update(config, parts, state, batch)
            except BrokenStep as failure:
                held_step = _fall_back(config, parts, folder)
                if state.best_step is not None and state.best_step > held_step:
                    state.best_step = state.best_reward = None
                return Ending(f"stopped at step {state.step + 1}: {failure}", held_step, failure)
            except (RuntimeError, MemoryError) as failure:
                if not out_of_memory(failure):
                    raise
                saved = checkpoint.step_folders(folder.checkpoints)[-1][0]
                raise ran_out(config, parts, state.step + 1, saved, folder.folder) from failure
            except (NonFinite, RewardError) as failure:
                # Nothing has changed yet but the generator.
                state.generator.set_state(draws)
                save_if_new(config, parts, state, folder)
                if isinstance(failure, RewardError):
                    raise
                return Ending(f"stopped at step {state.step + 1}: {failure}", state.step, failure)
            rows.append(_record(config, state, batch, figures, folder))
            progress.update(rows[-1], _typical_story(batch))
            if state.step % config.checkpoint_every == 0 or _end(config, rows) is not None:
                judge(config, state, rows)
                save(config, parts, state, folder)
    return Ending(reason, state.step)


def _end(config: Config, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the run is over after the steps of `rows`, or None. Metrics alone decide: a resume agrees."""
    if rows and (reason := stop_reason(rows, **dataclasses.asdict(config.stop))) is not None:
        return reason
    return f"all {config.steps} steps made" if len(rows) >= config.steps else None


def _batch(config: Config, parts: Parts, state: State) -> Batch:
    """Rollout, rewards, advantages. Raises RewardError, and NonFinite with its source."""
    step, coef = state.step + 1, state.controller.coef
    clock = [time.monotonic()]
    rollout = collect_rollout(config, parts, _step_prompts(config, parts, step), state.generator)
    if not torch.isfinite(rollout.logp_NT).all():
        raise BrokenStep(
            "non-finite log-prob of a sample: the weights are too large; use a lower learning_rate"
        )
    clock.append(time.monotonic())
    scored = score_rollout(config, parts, rollout, coef)
    if not torch.isfinite(scored.ref_logp_NT).all():
        raise NonFinite("non-finite log-prob under the reference")
    advantage_NT, baseline = parts.algorithm.advantage(
        scored.token_reward_NT,
        rollout.completion_mask_NT,
        scored.scored_N,
        config.num_generations,
        state.baseline,
    )
    if not torch.isfinite(advantage_NT).all():
        low, high = float(scored.reward_N.min()), float(scored.reward_N.max())
        raise NonFinite(f"non-finite advantage, from rewards of {low:g} to {high:g}; scale the reward down")
    columns = columns_of(parts, scored, advantage_NT)
    clock.append(time.monotonic())
    return Batch(scored, advantage_NT, baseline, columns, coef, clock)


def _update(config: Config, parts: Parts, state: State, batch: Batch) -> Figures:
    total = config.steps * config.num_iterations * config.num_mini_batches

    def next_learning_rate() -> float:
        factor = schedule(config.lr_scheduler_type, state.updates, total, config.warmup_steps)
        state.updates += 1
        return config.learning_rate * factor

    objective = Objective(
        parts.algorithm,
        batch.scored,
        batch.advantage_NT,
        config.temperature,
        batch.coef,
        kl_loss(config.kl.loss),
    )
    passes = Passes(
        config.num_iterations,
        config.num_mini_batches,
        config.gradient_accumulation_steps,
        config.clip,
        config.max_grad_norm,
        config.dtype == "bfloat16",
        config.fast,
    )
    figures = update(parts.policy, parts.optimizer, objective, passes, next_learning_rate, state.generator)
    batch.clock.append(time.monotonic())
    return figures


def _record(config: Config, state: State, batch: Batch, figures: Figures, folder: Run) -> dict[str, Any]:
    """Stores the step's samples and metrics and moves the counters on."""
    step = state.step + 1
    row = metrics_row(
        step,
        batch.scored,
        batch.advantage_NT,
        figures,
        group_size=config.num_generations,
        coef=batch.coef,
        clock=batch.clock,
    )
    folder.add_samples(step, batch.columns)
    folder.log(row)
    state.step, state.baseline = step, batch.baseline
    state.controller = updated(state.controller, row["kl/sequence"], config.batch_size)
    return row


def _typical_story(batch: Batch) -> Story:
    """The completion of median reward: the best would flatter the run."""
    columns = batch.columns
    scored = [i for i, is_scored in enumerate(batch.scored.scored_N.tolist()) if is_scored]
    median = sorted(scored, key=lambda i: float(batch.scored.reward_N[i]))[len(scored) // 2]
    return Story(columns["prompt"][median], columns["completion"][median], columns["spans"][median])


# The end


def _fall_back(config: Config, parts: Parts, folder: Run) -> int:
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


def _finish(config: Config, parts: Parts, state: State, folder: Run, ending: Ending, started: float) -> None:
    """Writes final/ from the best checkpoint, else as the run ended, measures it and closes the summary."""
    chosen = _load_best(config, parts, state, folder, ending.held_step)
    # The reference is the policy as it was before, so measuring it can wait until the steps are made.
    before, after = (
        measure(config, parts, coef, folder.folder / f"{side}.jsonl", reference=side == "before")
        for side, coef in (("before", config.coef), ("after", state.controller.coef))
    )
    summary = folder.summary()
    summary |= {
        "before": before,
        "after": after,
        "steps": state.step,
        "best_step": state.best_step,
        "final_step": chosen,
        "stop_reason": ending.reason,
        "wall_time_seconds": summary["wall_time_seconds"] + time.monotonic() - started,
    }
    checkpoint.save_folder(
        folder.final, lambda target: write_final(target, config, parts, summary, folder.environment)
    )
    folder.merge_samples()
    folder.write_summary(summary)
    _say(f"{ending.reason}; final/ is step {chosen}")
    for name, unit in (("reward", ""), ("kl", " nats"), ("length", " tokens")):
        _say(f"  {name:<10} {_words(before[name], unit)}  ->  {_words(after[name], unit)}")
    for name in ("distinct_1", "distinct_2", "unique"):
        _say(f"  {name:<10} {before[name]:.3f}  ->  {after[name]:.3f}")
    _say(f"run folder: {folder.folder}   page: talltree report {folder.folder}")


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


def _words(value: dict[str, float | None], unit: str) -> str:
    mean, low, high = (
        None if each is None else plain(each) for each in map(value.get, ("mean", "low", "high"))
    )
    spread = "" if low is None else f" ({low} to {high})"
    return ("not finite" if mean is None else mean + unit) + spread


def _step_prompts(config: Config, parts: Parts, step: int) -> list[Prompt]:
    """The groups of a step: prompts in an order shuffled anew in each pass, from seed and step alone."""
    groups, count = config.batch_size // config.num_generations, len(parts.prompts)
    chosen = []
    for place in range((step - 1) * groups, step * groups):
        order = torch.randperm(count, generator=seeded(config.seed * 1_000_003 + place // count))
        chosen.append(parts.prompts[int(order[place % count])])
    return [prompt for prompt in chosen for _ in range(config.num_generations)]


def _say_checks(checks: Sequence[Check]) -> None:
    width = max(len(check.name) for check in checks)
    _say("preflight")
    for check in checks:
        _say(f"  {check.status:<6}  {check.name:<{width}}  {check.value}  ({check.bound})")


def _say(text: str) -> None:
    print(text, flush=True)
