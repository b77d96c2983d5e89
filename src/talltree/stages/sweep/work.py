"""One job on the machine where this runs: its process, watched until it ends; both engines use it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from typing import NamedTuple

from talltree import checkpoint, yaml_text
from talltree.errors import RunError
from talltree.run import CONFIG
from talltree.stages import process
from talltree.stages.sweep.state import (
    State,
    asked_to_stop,
    has_ended,
    state_of,
    wait_until_free,
    write_state,
)
from talltree.stages.sweep.trials import Job


class Place(NamedTuple):
    """What a job gets of the machine: threads (None: as the environment says) and variables to set."""

    threads: int | None
    variables: Mapping[str, str]


class Work:
    """A job that runs; made by `begin`, which may find that nothing is left to do."""

    def __init__(self, job: Job, started: process.StageProcess | None, before: State) -> None:
        self.job = job
        self._process = started
        self._before = before
        self._asked = False

    def poll(self, seconds: float = 0.0) -> State | None:
        """The job's last state, written to disk, once it has ended; None while it runs."""
        if self._process is None:
            return self._before
        if not self._asked and asked_to_stop(self.job) is not None:
            self._asked = True
            self._process.signal(signal.SIGTERM)
        ended = self._process.wait(seconds)
        if ended is None:
            return None
        state = settled(self.job, self._before, ended)
        write_state(self.job, state)
        return state

    def kill(self) -> None:
        """Ends the process at once; the job stays as it is on disk, to be resumed."""
        if self._process is not None:
            self._process.kill()


def begin(job: Job, place: Place) -> Work:
    """Starts the job, or goes on with it from its newest checkpoint.

    A folder that cannot be resumed is set aside, never deleted. What keeps it from starting is its state.
    """
    before = state_of(job)
    if before.status in ("finished", "stopped") or has_ended(job):
        return Work(job, None, before)
    try:
        return _begin(job, place, before)
    except (OSError, RunError) as error:
        failed = before._replace(status="failed", reason=" ".join(str(error).split()))
        return Work(job, None, failed)


def _begin(job: Job, place: Place, before: State) -> Work:
    wait_until_free(job.folder)
    if has_ended(job):  # while the folder was still another's, such as one that lost its driver
        return Work(job, None, state_of(job))
    resume = None
    if job.folder.exists():
        if _has_begun(job):
            resume = job.folder
        else:
            job.folder.rename(checkpoint.free_name(job.beside(".aside")))
    with checkpoint.disk_errors(job.folder):
        job.folder.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_file(job.beside(".yaml"), yaml_text.dump(dict(job.config)).encode())
    # The same bits need the same number of threads.
    threads = place.threads if resume is None or before.threads is None else before.threads
    state = State("running", "", before.seconds, before.starts + 1, threads)
    write_state(job, state)
    started = process.start(
        job.stage,
        job.beside(".yaml"),
        job.beside(".log"),
        resume=resume,
        threads=threads,
        launch=_with_port(job.launch),
        environment=place.variables,
    )
    return Work(job, started, state)


def _has_begun(job: Job) -> bool:
    """Whether the stage's own --resume can go on with what is in the folder."""
    if job.resumes == "checkpoint":
        return bool(checkpoint.step_folders(job.folder / "checkpoints"))
    return job.resumes == "folder" and (job.folder / CONFIG).is_file()


def settled(job: Job, before: State, ended: process.Ended) -> State:
    """What a job has come to with the end of its process."""
    state = before._replace(seconds=before.seconds + ended.seconds)
    asked = asked_to_stop(job)
    if ended.status == 0 and (has_ended(job) or not (job.folder / "checkpoints").is_dir()):
        return state._replace(status="finished", reason="")
    if asked is not None and not has_ended(job):
        reason, for_good = asked
        return state._replace(status="stopped" if for_good else "interrupted", reason=reason)
    if ended.status == 0:
        last = process.last_line(job.beside(".log"))
        return state._replace(status="failed", reason=f"it left before its end: {last}")
    return state._replace(status="failed", reason=ended.error)


def _with_port(launch: tuple[str, ...]) -> tuple[str, ...]:
    """The launcher with a free port of its own, where its processes would all meet at the default one."""
    if launch[:2] != ("accelerate", "launch") or "--main_process_port" in launch:
        return launch
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return (*launch, "--main_process_port", str(probe.getsockname()[1]))


def local_threads(jobs: int) -> int | None:
    """The cores of this machine divided among so many jobs; None, as the environment says, for one job."""
    return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)
