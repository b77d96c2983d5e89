"""What a study folder says about its jobs, and what may not change in it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from talltree import checkpoint, yaml_text
from talltree.config import to_dict
from talltree.errors import ConfigError, RunError
from talltree.run import LOCK, SUMMARY
from talltree.stages.sweep.study import Given
from talltree.stages.sweep.trials import Job, Trial, difference
from talltree.stages.table import config_of

STUDY = "study.yaml"
TRIAL = "trial.yaml"
PATIENCE = 15.0
"""Seconds to wait for a run folder whose process is just ending."""

Status = Literal["waiting", "running", "interrupted", "finished", "failed", "stopped"]


class State(NamedTuple):
    """Where a job is: waiting, running, interrupted (to be resumed), finished, failed or stopped (given up).

    reason: why it failed or was stopped, one line. seconds: over all its starts. threads: of its first start.
    """

    status: Status
    reason: str = ""
    seconds: float = 0.0
    starts: int = 0
    threads: int | None = None


def state_of(job: Job) -> State:
    """The job's state on disk; a run that has ended counts as finished even if its driver was killed."""
    path = job.beside(".json")
    state = State(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else State("waiting")
    if state.status not in ("finished", "failed", "stopped") and has_ended(job):
        return state._replace(status="finished")
    return state


def write_state(job: Job, state: State) -> None:
    """Replaces the job's state on disk."""
    checkpoint.write_file(job.beside(".json"), (json.dumps(state._asdict()) + "\n").encode())


def has_ended(job: Job) -> bool:
    """Whether the run folder has a summary of a run that came to its end."""
    summary = summary_of(job)
    return summary is not None and summary.get("stop_reason", "") is not None


def summary_of(job: Job) -> dict[str, Any] | None:
    """summary.json of the job; None where there is none, or none that can be read yet."""
    try:
        found = json.loads((job.folder / SUMMARY).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def ask_to_stop(job: Job, reason: str, for_good: bool) -> None:
    """Leaves word for whoever runs the job, on whatever machine, to end it."""
    content = json.dumps({"reason": reason, "for_good": for_good}) + "\n"
    checkpoint.write_file(job.beside(".stop"), content.encode())


def asked_to_stop(job: Job) -> tuple[str, bool] | None:
    """(reason, for good) if the job was asked to stop."""
    path = job.beside(".stop")
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return found["reason"], found["for_good"]


def clear_stop(job: Job) -> None:
    """Takes back what `ask_to_stop` left, unless it was for good."""
    asked = asked_to_stop(job)
    if asked is not None and not asked[1]:
        job.beside(".stop").unlink()


@contextmanager
def hold(folder: Path, given: Given) -> Iterator[None]:
    """Makes or takes the study folder, and holds its lock. Raises RunError if it is another's."""
    study = folder / STUDY
    if folder.exists() and not folder.is_dir():
        raise RunError(f"output_dir {folder} is a file; choose another output_dir")
    if folder.is_dir() and not study.is_file() and any(each.name != LOCK for each in folder.iterdir()):
        raise RunError(f"output_dir {folder} is not empty and holds no study; choose another output_dir")
    with checkpoint.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+", encoding="utf-8")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise RunError(
                f"{folder} is being run by process {lock.read().strip()}; wait until it ends, or stop it"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        checkpoint.write_file(study, given.text.encode())
        yield


def refuse_changed(trials: Sequence[Trial]) -> None:
    """Raises ConfigError if a trial's folder was made with another config than the study now gives it."""
    for trial in trials:
        job = trial.jobs[-1]
        path = job.folder.parent / TRIAL
        if not path.is_file():
            continue
        stored = yaml_text.Loader(path.read_text(encoding="utf-8")).get_single_data()["links"]
        if list(stored) != [each.link for each in trial.jobs]:
            raise ConfigError(
                f"{job.folder.parent} was made by the chain {' -> '.join(stored)}, and the study now has "
                f"{' -> '.join(each.link for each in trial.jobs)}; give the study another name"
            )
        for each in trial.jobs:
            _refuse_changed(job.folder.parent, each, stored[each.link])


def _refuse_changed(folder: Path, job: Job, stored: Mapping[str, Any]) -> None:
    # Through the stage's own config, so that an option which is new in this version has its default.
    old = to_dict(config_of(job.stage, stored, str(folder / TRIAL)))
    now = to_dict(config_of(job.stage, job.identity, str(folder)))
    if (found := difference(old, now)) is not None:
        key, was, wanted = found
        raise ConfigError(
            f"{folder} was made with {job.link}.{key} {yaml_text.word(was)}, and the study now says "
            f"{yaml_text.word(wanted)}; nothing is overwritten: bring the old value back, or give the study "
            "another name"
        )


def write_trial(trial: Trial) -> None:
    """trial.yaml: the setting, the seed, and for each link its folder and resolved config."""
    folder = trial.jobs[-1].folder.parent
    path = folder / TRIAL
    if path.is_file():
        return
    with checkpoint.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    content = {
        "setting": dict(trial.setting),
        "seed": trial.seed,
        "folders": {job.link: os.path.relpath(job.folder, folder) for job in trial.jobs},
        "links": {job.link: dict(job.identity) for job in trial.jobs},
    }
    checkpoint.write_file(path, yaml_text.dump(content).encode())


def wait_until_free(folder: Path) -> None:
    """Returns once no process holds the run folder's lock. Raises RunError if one keeps it."""
    path = folder / LOCK
    deadline = time.monotonic() + PATIENCE
    while path.is_file():
        with path.open("r+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                holder = lock.read().strip()
        if time.monotonic() > deadline:
            raise RunError(f"{folder} is being written by process {holder}; wait until it ends, or stop it")
        time.sleep(0.2)
