"""The loop of the sweep stage: read, check everything, start what can start, watch, write. From the top."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from talltree.console import clock
from talltree.errors import ConfigError, RunError
from talltree.interrupt import EXIT_STATUS, Interrupts
from talltree.run import METRICS, metrics_so_far
from talltree.stages import process
from talltree.stages.sweep import results, trials
from talltree.stages.sweep.config import Config
from talltree.stages.sweep.engines import Engine, engine_of
from talltree.stages.sweep.search import Proposals
from talltree.stages.sweep.state import (
    State,
    ask_to_stop,
    asked_to_stop,
    clear_stop,
    has_ended,
    hold,
    refuse_changed,
    state_of,
    summary_of,
    write_state,
    write_trial,
)
from talltree.stages.sweep.stopping import value_at, verdict
from talltree.stages.sweep.study import Given, changed, read
from talltree.stages.sweep.trials import Job, Trial
from talltree.stages.sweep.view import Line, View, counts

MANY = 200
"""Trials beyond which a study is started only after a yes."""
PAUSE = 0.2
"""Seconds between two looks at what runs."""


class Board(NamedTuple):
    """The study while it runs: its trials, its jobs by folder in the order they may start, and their states.

    rows: metrics.jsonl of jobs as last read, by folder, with its size then. judged: steps at which a trial
    has met the stop rule.
    """

    given: Given
    folder: Path
    trials: list[Trial]
    jobs: dict[Path, Job]
    states: dict[Path, State]
    rows: dict[Path, tuple[int, list[dict[str, float | None]]]]
    judged: dict[str, set[int]]

    def add(self, new: Sequence[Trial], *, is_open: bool = True) -> None:
        """Takes trials in; what has failed is tried again, unless its run has ended or `is_open` is False."""
        for trial in new:
            write_trial(trial)
            self.trials.append(trial)
            stop, rows = self.given.study.stop, _rows(self, trial.jobs[-1])
            # Judged before the study was interrupted: again, among more trials, would be another rule.
            passed = (step for step in stop.steps if value_at(rows, stop, step) is not None)
            self.judged[trial.name] = set(passed)
            for job in trial.jobs:
                if job.folder in self.jobs:
                    continue
                self.jobs[job.folder] = job
                clear_stop(job)
                state = state_of(job)
                done = state.status in ("finished", "stopped") or (
                    state.status == "failed" and has_ended(job)
                )
                self.states[job.folder] = state if done or not is_open else state._replace(status="waiting")

    def with_status(self, status: str) -> list[Job]:
        return [job for folder, job in self.jobs.items() if self.states[folder].status == status]


def run(config: Config) -> None:
    """Runs the study, or what is left of it. Raises TallTreeError for what can be mended, failed trials too.

    Exits with 130 or 143 after SIGINT or SIGTERM, when every stage that ran has saved a checkpoint.
    """
    given = changed(read(config.study), config.set, config.seeds)
    folder = Path(config.output_dir or Path("runs") / given.name)
    many = trials.count(given)
    _require_yes(many, config)
    planned = _planned(given, folder)
    if config.plan:
        _say_plan(many, planned, folder)
        return
    refuse_changed(planned)
    with hold(folder, given), Interrupts() as interrupts, View() as view:
        board = Board(given, folder, [], {}, {}, {}, {})
        proposals = Proposals(given, folder) if given.study.search.trials else None
        if proposals is None:
            board.add(planned)
        else:
            refuse_changed(proposals.proposed)
            for trial in proposals.proposed:
                board.add([trial], is_open=proposals.is_open(trial))
        statuses = [results.trial_state(trial).status for trial in board.trials]
        if "finished" in statuses:
            view.say(f"{folder}: {statuses.count('finished')} of {many} trials are finished already")
        engine = engine_of(config, folder, view.say)
        try:
            _run_jobs(board, engine, proposals, view, interrupts)
        finally:
            engine.close()
            results.write(folder, results.collect(given.name, board.trials, folder))
        signal = interrupts.requested
    _conclude(board, signal, config.report)


def _require_yes(many: int, config: Config) -> None:
    if many <= MANY or config.yes or config.plan:
        return
    if not sys.stdin.isatty():
        raise ConfigError(
            f"{config.study} makes {many:,} trials, more than {MANY}; say --yes to start them, or --plan to "
            "see them"
        )
    if input(f"{config.study} makes {many:,} trials. Start them? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError(f"{config.study}: {many:,} trials were not started")


def _planned(given: Given, folder: Path) -> list[Trial]:
    """Every listed trial, checked; of a search none yet, but what its space allows is checked as well."""
    if given.study.search.trials:
        for sets in trials.ends(given.space):
            labels = {key: trials.label(value) for key, value in sets.items()}
            trials.make(given, folder, labels, sets)
        return []
    made = [each for setting in trials.settings(given) for each in trials.make(given, folder, *setting)]
    names = [trial.name for trial in made]
    for name in names if len(set(names)) < len(names) else []:
        if names.count(name) > 1:
            raise ConfigError(f"{given.path}: two trials are called {name}; name one of them")
    return made


def _say_plan(many: int, planned: Sequence[Trial], folder: Path) -> None:
    for trial in planned:
        print(f"{trial.name:<50}  {' -> '.join(str(job.folder) for job in trial.jobs)}")
    jobs = {job.folder for trial in planned for job in trial.jobs}
    print(f"{many:,} trials, {len(jobs) or many:,} runs, in {folder}", flush=True)


# While it runs


def _run_jobs(
    board: Board, engine: Engine, proposals: Proposals | None, view: View, interrupts: Interrupts
) -> None:
    """Until every job has ended, or after a signal until those that ran have saved and left."""
    asked = False
    while True:
        if interrupts.requested is not None and not asked:
            asked = True
            running = board.with_status("running")
            view.say(
                f"{interrupts.requested}: {len(running)} running save their last step; again to kill them"
            )
            for job in running:
                ask_to_stop(job, interrupts.requested, for_good=False)
        if ended := engine.poll():
            _take(board, ended, view)
            results.write(board.folder, results.collect(board.given.name, board.trials, board.folder))
        if proposals is not None:
            for line in proposals.settle():
                view.say(line)
        if not asked:
            _start(board, engine, proposals, view)
            _give_up(board, view)
        if not board.with_status("running") and (asked or not board.with_status("waiting")):
            return
        if view.is_live:
            view.show([_line(board, trial) for trial in board.trials])
        time.sleep(PAUSE)


def _start(board: Board, engine: Engine, proposals: Proposals | None, view: View) -> None:
    """Starts waiting jobs whose earlier link is finished, while there is room; a search may propose more."""
    while engine.room() > 0:
        ready = None
        for job in board.with_status("waiting"):
            earlier = None if job.after is None else board.states[job.after]
            if earlier is None or earlier.status == "finished":
                ready = job
                break
            if earlier.status in ("failed", "stopped"):
                # In memory alone: the next start of the study tries the earlier link again.
                board.states[job.folder] = State("failed", f"{job.after} {earlier.status}")
        if ready is None:
            new = proposals.propose() if proposals is not None else []
            if not new:
                return
            board.add(new)
            continue
        board.states[ready.folder] = board.states[ready.folder]._replace(status="running")
        engine.start(ready)
        is_new = board.states[ready.folder].starts == 0
        view.say(f"{'started' if is_new else 'goes on'}  {_called(board, ready)}")


def _take(board: Board, ended: Sequence[tuple[Job, State]], view: View) -> None:
    for job, state in ended:
        board.states[job.folder] = state
        if state_of(job) != state:  # it could not even start, so nobody has written why
            write_state(job, state)
        done = sum(
            results.trial_state(trial).status in ("finished", "failed", "stopped") for trial in board.trials
        )
        line = f"{state.status}  {_called(board, job)}  {clock(state.seconds)}"
        if state.status == "finished":
            line += _outcome(job)
        elif state.reason:
            line += f": {state.reason}"
        if state.status == "failed":
            line += f" (log: {job.beside('.log')})"
        view.say(f"{line}   [{done} of {len(board.trials)}]")


def _give_up(board: Board, view: View) -> None:
    """Asks the trials to stop that the rule finds hopeless now."""
    stop = board.given.study.stop
    if not stop.metric:
        return
    for trial in board.trials:
        job = trial.jobs[-1]
        if board.states[job.folder].status != "running" or asked_to_stop(job) is not None:
            continue
        others = [_rows(board, other.jobs[-1]) for other in board.trials if other is not trial]
        reason = verdict(_rows(board, job), others, stop, board.judged[trial.name])
        if reason is not None:
            ask_to_stop(job, reason, for_good=True)
            view.say(f"stopping  {_called(board, job)}: {reason}")


def _rows(board: Board, job: Job) -> list[dict[str, float | None]]:
    path = job.folder / METRICS
    size = path.stat().st_size if path.is_file() else 0
    known = board.rows.get(job.folder)
    if known is None or known[0] != size:
        board.rows[job.folder] = known = size, metrics_so_far(path)
    return known[1]


def _line(board: Board, trial: Trial) -> Line:
    at = [board.states[job.folder] for job in trial.jobs]
    place = next((place for place, state in enumerate(at) if state.status != "finished"), len(at) - 1)
    job, rows = trial.jobs[place], _rows(board, trial.jobs[place])
    steps = job.config.get("steps")
    seconds = sum(state.seconds for state in at)
    return Line(trial.name, at[place].status, job.link, rows[-1] if rows else {}, steps, seconds)


def _called(board: Board, job: Job) -> str:
    """The trial's name, with the link where there are several; an earlier link by its own folder's name."""
    if job.folder.parent.name == "links" and len(board.given.links) > 1:
        return job.folder.name
    name = job.folder.parent.name
    return f"{name} ({job.link})" if len(board.given.links) > 1 else name


def _outcome(job: Job) -> str:
    found = results.outcomes(summary_of(job) or {})
    keys = [key for key in ("after.reward", "after.kl", "after.loss", "final.loss") if key in found]
    return "".join(f"  {key} {found[key]:.4g}" for key in keys)


# The end


def _conclude(board: Board, signal: str | None, with_page: bool) -> None:
    """The page, the counts, and what failed."""
    states = [results.trial_state(trial) for trial in board.trials]
    left = [state for state in states if state.status not in ("finished", "failed", "stopped")]
    if signal is not None and left:
        print(f"{signal}: {counts([state.status for state in states])}; the same command goes on", flush=True)
        raise SystemExit(EXIT_STATUS[signal])
    print(counts([state.status for state in states]), flush=True)
    print(f"results: {board.folder / results.RESULTS}, {board.folder / results.TABLE}", flush=True)
    if with_page:
        log = board.folder / "report.log"
        ended = process.run_stage("report", None, log, arguments=[str(board.folder)])
        page = board.folder / "report.html"
        print(f"page: {page}" if ended.status == 0 else f"no page: {ended.error} (log: {log})", flush=True)
    failed = [
        trial.name for trial, state in zip(board.trials, states, strict=True) if state.status == "failed"
    ]
    if failed:
        reason = states[[trial.name for trial in board.trials].index(failed[0])].reason
        raise RunError(
            f"{len(failed)} of {len(states)} trials failed, the first {failed[0]}: {reason}; the same "
            "command tries them again"
        )
