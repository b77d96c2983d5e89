"""The rounds: sample, judge, fit the reward model anew, let the policy follow it. Read from the top.

A round is a folder, rounds/NN, and what is done in it is what lies in it, so the loop has no state of its own
to lose. Reward model and policy are trained by their stages, as processes with run folders of their own.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from talltree import checkpoint
from talltree.config import to_dict
from talltree.errors import RunError
from talltree.interrupt import EXIT_STATUS, Interrupts
from talltree.run import SUMMARY, Run, environment, refuse_used
from talltree.stages.resuming import resumed_config
from talltree.stages.rlhf.config import MAY_CHANGE, Config
from talltree.stages.rlhf.judging import judge, make_study
from talltree.stages.rlhf.rounds import (
    Round,
    ask,
    label,
    report,
    reward_options,
    rl_options,
    round_row,
    stop_reason,
)
from talltree.stages.rlhf.running import Stopped, run_once
from talltree.stops import is_failure

CARD = "README.md"


def run(config: Config) -> None:
    """Makes the rounds of `config`, or the rest of the run that `config.resume` names.

    Raises TallTreeError for whatever the user can mend. Exits with 130 or 143 after SIGINT or SIGTERM.
    """
    started = time.monotonic()
    if config.resume is None:
        refuse_used(Path(config.output_dir))
        folder = Run.create(config.output_dir, to_dict(config), environment({}))
    else:
        path = config.resume
        config = resumed_config(config, MAY_CHANGE)
        folder = Run.resume(path, _say)
    with folder:
        spent = folder.summary()["wall_time_seconds"] if (folder.folder / SUMMARY).is_file() else 0.0
        summary = {"stage": "rlhf", "stop_reason": None, "wall_time_seconds": spent}
        folder.write_summary(summary)
        try:
            rows = _rounds(config, folder)
        except Stopped as stop:
            folder.write_summary(summary | {"wall_time_seconds": spent + time.monotonic() - started})
            _say(
                f"{stop.signal}: {stop.where} is saved; continue with talltree rlhf --resume {folder.folder}"
            )
            raise SystemExit(EXIT_STATUS[stop.signal]) from None
        _save_final(config, folder, rows)
        spent += time.monotonic() - started
        summary |= {"stop_reason": "all rounds made", "rounds": rows, "wall_time_seconds": spent}
        folder.write_summary(summary)
    _say(f"all rounds made; final/ is the policy of the last\nrun folder: {folder.folder}")


def _rounds(config: Config, folder: Run) -> list[dict[str, Any]]:
    """One row a round, each logged once, whatever was done before a resume."""
    logged = {row["step"] for row in folder.metrics()}
    rows = []
    policy = config.model_name_or_path
    for number in range(1, config.rounds + 1):
        this = Round(number, folder.folder / "rounds" / f"{number:02d}", policy)
        row = _round(config, this)
        if number not in logged:
            folder.log({"step": number, **row})
        reason = stop_reason(this)
        rows.append({"round": number, **row, "stop_reason": reason})
        if is_failure(reason) and number < config.rounds and config.after_stop == "end":
            raise RunError(_not_begun(this, folder.folder, reason))
        policy = str(this.folder / "rl" / "final")
    return rows


def _not_begun(this: Round, folder: Path, reason: str) -> str:
    return (
        f"round {this.number}: rl stopped by itself ({reason}), so round {this.number + 1} is not begun; "
        f"look at it with talltree report {this.folder / 'rl'}, then go on from its best checkpoint with "
        f"talltree rlhf --resume {folder} --after_stop go_on, or start anew with a lower "
        "rl.learning_rate or a higher rl.kl.coef"
    )


def _round(config: Config, this: Round) -> dict[str, Any]:
    """One round, or what is left of it. Raises Stopped for a signal, once its work is on disk."""
    where = f"round {this.number} of {config.rounds}"
    with Interrupts() as interrupts:
        if not this.asked.is_file():
            _say(f"{where}: sampling what is judged")
            ask(config, this)
        if interrupts.requested is not None:
            raise Stopped(interrupts.requested, where)
    make_study(config, this)
    judge(config, this, _say)
    label(config, this, _say)
    run_once("reward", reward_options(config, this), this.folder, where, _say)
    run_once("rl", rl_options(config, this), this.folder, where, _say)
    row = round_row(config, this)
    _say(f"{where}: {report(row)} ({stop_reason(this)})")
    return row


def _save_final(config: Config, folder: Run, rows: list[dict[str, Any]]) -> None:
    last = folder.folder / "rounds" / f"{config.rounds:02d}" / "rl" / "final"

    def write(target: Path) -> None:
        shutil.copytree(last, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(checkpoint.MANIFEST))
        with (target / CARD).open("a", encoding="utf-8") as card:
            card.write(_section(config, rows))

    checkpoint.verify(last)
    checkpoint.save_folder(folder.final, write)


def _section(config: Config, rows: list[dict[str, Any]]) -> str:
    judges = "simulated annotators" if config.is_simulated else "people"
    note = f" {config.data_note.strip()}" if config.data_note else ""
    lines = [f"{row['round']}. {report(row)}" for row in rows]
    text = (
        f"The last of {config.rounds} rounds of `talltree rlhf`, whose samples {judges} judged.{note} The "
        "figures above are those of that round. A round's reward model is fitted to all judgements so far."
    )
    return "\n".join(["", "## The loop", text, "", *lines, ""])


def _say(text: str) -> None:
    print(text, flush=True)
