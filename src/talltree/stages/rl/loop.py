"""The loop of the rl stage: load, preflight, measure before, train, measure after. Read it top to bottom."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from talltree import checkpoint
from talltree.config import to_dict
from talltree.console import Progress
from talltree.errors import ContractError, RewardError
from talltree.interrupt import Interrupts, leave
from talltree.maths.controllers import updated
from talltree.maths.kl import blog_beta_from_coef
from talltree.models.memory import keep_freed_memory, out_of_memory
from talltree.preflight import Check, require
from talltree.run import Run, environment, refuse_used
from talltree.stages.resuming import add_time, resumed_config, say_threads
from talltree.stages.rl.config import Config
from talltree.stages.rl.ending import Ending, fall_back, finish, say
from talltree.stages.rl.measure import run_preflight
from talltree.stages.rl.parts import Parts, load_parts
from talltree.stages.rl.processes import ALONE, Team, gather_team, open_folder, require_same
from talltree.stages.rl.record import metrics_row
from talltree.stages.rl.room import preparing, ran_out, require_room
from talltree.stages.rl.state import (
    MAY_CHANGE,
    State,
    fresh_state,
    judge,
    restore,
    save,
    save_if_new,
)
from talltree.stages.rl.step import Batch, make_batch, make_update, typical_story, warms_up
from talltree.stages.rl.update import BrokenStep, Figures
from talltree.stages.rl.value import NonFinite
from talltree.stops import stop_reason


def run(config: Config) -> None:
    """One run from `config`, or the rest of the run that `config.resume` names.

    Raises TallTreeError for whatever the user can mend. Exits with 130 or 143 after SIGINT or SIGTERM.
    """
    with gather_team() as team:
        if config.resume is not None:
            _resume(config, team)
        else:
            _start(config, team)


def _start(config: Config, team: Team) -> None:
    team.on_main(lambda: refuse_used(Path(config.output_dir)))
    started = time.monotonic()
    parts = _load(config, team)
    beta = blog_beta_from_coef(config.coef)
    say(
        f"{config.algorithm} on {config.model_name_or_path}, reward {config.reward}; KL coefficient "
        f"{config.coef:.4g} per nat (beta {beta:.4g} in the study's unit); device {parts.policy.device}"
    )
    for line in _choices(config, parts):
        say(line)
    # Before there is a folder: a mistake in the reward shows here, and the mended command can be run again.
    with preparing(config, parts):
        say(team.together(lambda: require_room(config, parts)))
        checks = team.on_main(lambda: run_preflight(config, parts._replace(team=ALONE)))
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
    machine = environment(parts.data_sha256) | {"processes": team.size}
    with (
        open_folder(
            team, lambda: Run.create(config.output_dir, to_dict(config), machine), config.output_dir
        ) as folder,
        Interrupts() as interrupts,
    ):
        summary["wall_time_seconds"] = time.monotonic() - started
        team.on_main(lambda: folder.write_summary(summary))
        require(checks)
        save(config, parts, state, folder)
        _complete(config, parts, state, folder, interrupts)


def _resume(asked: Config, team: Team) -> None:
    config = team.together(lambda: resumed_config(asked, tuple(MAY_CHANGE)))
    parts = _load(config, team)
    path = str(asked.resume)
    with (
        open_folder(team, lambda: Run.resume(path, say), path) as folder,
        Interrupts() as interrupts,
    ):
        state = restore(config, parts, folder, say)
        for key, what in MAY_CHANGE.items():
            if (value := getattr(config, key)) != folder.config[key]:
                say(f"{key} is {value} from here on, for this resume: {what}")
        say_threads(folder, say)
        then = folder.environment.get("processes", 1)
        if then != team.size:
            say(
                f"started with {then} processes, this run goes on with {team.size}: its last bits will differ"
            )
        with preparing(config, parts):
            say(team.together(lambda: require_room(config, parts)))
        _complete(config, parts, state, folder, interrupts)


def _load(config: Config, team: Team) -> Parts:
    """`load_parts` in every process. Raises TallTreeError, also where they have not loaded the same."""
    parts = team.together(lambda: load_parts(config, team))
    keep_freed_memory(parts.policy.device)
    if team.size > 1:
        say(f"{team.size} processes share each batch; this one alone calls the reward and writes")
    source = None if parts.critic is None else parts.critic.source_sha256
    require_same(team, (parts.base_sha256, parts.reference_sha256, source, parts.data_sha256))
    return parts


def _complete(config: Config, parts: Parts, state: State, folder: Run, interrupts: Interrupts) -> None:
    """What a run at `state` still lacks: the steps, the measurements, final/ and the summary."""
    started = time.monotonic()
    team = parts.team
    try:
        ending = _train(config, parts, state, folder, interrupts)
        if ending is not None:
            # What is left is one process's work.
            team.leave()
            if not team.is_main:
                return
            finish(config, parts._replace(team=ALONE), state, folder, ending, started)
    except RewardError as error:
        raise RewardError(
            f"{error}; step {state.step} is saved: mend the reward, then continue with "
            f"talltree rl --resume {folder.folder}"
        ) from error
    if ending is None:
        team.on_main(lambda: add_time(folder, started))
        leave(str(interrupts.requested), state.step, "rl", folder.folder, say)
    if ending.failure is not None:
        raise ContractError(ending.reason) from ending.failure


# Training


def _train(config: Config, parts: Parts, state: State, folder: Run, interrupts: Interrupts) -> Ending | None:
    """Steps until the end, or until a signal (None); what was reached is then saved."""
    team, alone = parts.team, parts._replace(team=ALONE)
    rows = team.on_main(folder.metrics)
    with Progress(config.steps) as progress:
        while (reason := _end(config, rows)) is None:
            if (signal := team.agreed(interrupts.requested)) is not None:
                interrupts.requested = signal
                save_if_new(config, parts, state, folder)
                return None
            draws = state.generator.get_state()
            try:
                batch = make_batch(config, parts, state)
                figures = make_update(config, parts, state, batch)
            except BrokenStep as failure:
                held_step = team.on_main(lambda: fall_back(config, alone, folder))
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
            rows.append(_record(config, parts, state, batch, figures, folder))
            if team.is_main:
                progress.update(rows[-1], typical_story(batch))
            if state.step % config.checkpoint_every == 0 or _end(config, rows) is not None:
                judge(config, state, rows)
                save(config, parts, state, folder)
    return Ending(reason, state.step)


def _end(config: Config, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the run is over after the steps of `rows`, or None. Metrics alone decide: a resume agrees."""
    if rows and (reason := stop_reason(rows, **dataclasses.asdict(config.stop))) is not None:
        return reason
    return f"all {config.steps} steps made" if len(rows) >= config.steps else None


def _record(
    config: Config, parts: Parts, state: State, batch: Batch, figures: Figures, folder: Run
) -> dict[str, Any]:
    """Stores the step's samples and metrics and moves the counters on."""
    step = state.step + 1

    def write() -> dict[str, Any]:
        row = metrics_row(
            step,
            batch.scored,
            batch.advantage_NT,
            figures,
            batch.targets,
            group_size=config.num_generations,
            coef=batch.coef,
            clock=batch.clock,
        )
        folder.add_samples(step, batch.columns)
        folder.log(row)
        return row

    row = parts.team.on_main(write)
    state.step, state.baseline = step, batch.baseline
    if not warms_up(config, step):  # a policy that stays says nothing of the coefficient
        state.controller = updated(state.controller, row["kl/sequence"], config.batch_size)
    return row


def _choices(config: Config, parts: Parts) -> list[str]:
    """What the run says of itself besides its first line, where it is not the usual case."""
    lines = []
    if config.reference_model_name_or_path is not None:
        lines.append(f"KL is measured against {config.reference_model_name_or_path}")
    if parts.critic is not None:
        trained = "adapters of its own" if config.lora_r is not None else "all of its weights trained"
        start = config.critic.init_from or "the policy's"
        body = (
            "the policy's body" if parts.critic.is_shared else f"a body of its own, from {start}, {trained}"
        )
        head = "loaded" if config.critic.head == "loaded" else "zero"
        lines.append(f"critic: {body}; value head {head} at the start")
    if parts.truncation is not None:
        ids = ", ".join(map(str, parts.truncation.token_ids[:8]))
        lines.append(
            f"a completion ends with the first {config.truncate_token!r} (token {ids}) at position "
            f"{parts.truncation.after} or later"
        )
    if config.missing_end is not None:
        lines.append(f"a completion without its required end scores {config.missing_end:g}")
    if parts.recompute_reason is not None:
        lines.append(f"old log-probs are read again in the trainer: {parts.recompute_reason}")
    return lines


def _say_checks(checks: Sequence[Check]) -> None:
    width = max(len(check.name) for check in checks)
    say("preflight")
    for check in checks:
        say(f"  {check.status:<6}  {check.name:<{width}}  {check.value}  ({check.bound})")
