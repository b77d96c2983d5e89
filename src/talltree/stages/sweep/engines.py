"""Where jobs run: on this machine, or on the machines of a Ray cluster. Both run `work.begin`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from talltree.errors import ConfigError, RunError
from talltree.stages.process import SMALLER
from talltree.stages.sweep.config import Config
from talltree.stages.sweep.state import State, state_of, write_state
from talltree.stages.sweep.trials import Job
from talltree.stages.sweep.work import Place, Work, begin, local_threads

RETRIES = 3
"""How often Ray starts a job again whose worker or machine died; each start goes on from the checkpoint."""


DIED = f"its Ray worker died {RETRIES + 1} times, out of memory perhaps"


class Engine(Protocol):
    """What starts jobs and says which have ended; `close` ends those that still run."""

    def room(self) -> int:
        """How many more jobs may start now."""

    def start(self, job: Job) -> None:
        """Starts the job, or goes on with it."""

    def poll(self) -> list[tuple[Job, State]]:
        """The jobs that have ended since the last call."""

    def close(self) -> None:
        """Ends whatever still runs, at once."""


class Local:
    """Processes of this machine."""

    def __init__(self, config: Config) -> None:
        self._jobs = config.jobs
        self._threads = config.threads or local_threads(config.jobs)
        self._gpus = config.gpus
        self._running: dict[int, Work] = {}

    def room(self) -> int:
        return self._jobs - len(self._running)

    def start(self, job: Job) -> None:
        slot = next(slot for slot in range(self._jobs) if slot not in self._running)
        variables = {}
        if self._gpus:
            variables["CUDA_VISIBLE_DEVICES"] = str(self._gpus[slot % len(self._gpus)])
        self._running[slot] = begin(job, Place(self._threads, variables))

    def poll(self) -> list[tuple[Job, State]]:
        ended = []
        for slot, work in list(self._running.items()):
            if (state := work.poll()) is not None:
                ended.append((work.job, state))
                del self._running[slot]
        return ended

    def close(self) -> None:
        for work in self._running.values():
            work.kill()
        self._running.clear()


class Cluster:
    """Ray tasks, one a job, each of which runs the stage as a process; the study folder must be shared."""

    def __init__(self, config: Config, folder: Path, say: Callable[[str], None]) -> None:
        self._ray = _import_ray()
        self._jobs = config.jobs
        self._threads = config.threads or max(1, int(config.cpus_per_trial))
        self._folder = folder.resolve()
        self._running: dict[Any, Job] = {}
        self._head = _connect(self._ray, config)
        is_named = config.address not in (None, "auto")
        self._name = config.address if is_named else f"{self._head[0]}:{self._head[1]}"
        self._missed = 0
        self._task = self._ray.remote(
            num_cpus=config.cpus_per_trial, num_gpus=config.gpus_per_trial, max_retries=RETRIES
        )(_on_worker)
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        cores = self._ray.cluster_resources().get("CPU", 0)
        say(f"ray: head {self._name}, machines {len(nodes)}, cores {cores:g}")

    def room(self) -> int:
        return self._jobs - len(self._running)

    def start(self, job: Job) -> None:
        last = state_of(job).starts + RETRIES + 1
        task = self._task.remote(job, str(Path.cwd()), str(self._folder), self._threads, last)
        self._running[task] = job

    def poll(self) -> list[tuple[Job, State]]:
        self._require_head()
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._collect(reference) for reference in ready]

    def _collect(self, reference: Any) -> tuple[Job, State]:
        job = self._running.pop(reference)
        try:
            return job, State(*self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:200]
            state = state_of(job)._replace(status="failed", reason=f"{DIED}: {reason}")
            write_state(job, state)
            return job, state

    def _require_head(self) -> None:
        """Raises RunError if the head has gone, before Ray waits a minute and then ends this process."""
        self._missed = 0 if _answers(self._head) else self._missed + 1
        if self._missed < 3:
            return
        raise RunError(
            f"the Ray head at {self._name} no longer answers; start it again, then the same "
            "command: what has finished is not run again, what had begun goes on from its checkpoints"
        )

    def close(self) -> None:
        self._running.clear()
        if self._missed == 0:
            self._ray.shutdown()


def engine_of(config: Config, folder: Path, say: Callable[[str], None]) -> Engine:
    """The engine that the options name. Raises ConfigError without ray, RunError if no head answers."""
    return Local(config) if config.engine == "local" else Cluster(config, folder, say)


def _on_worker(job: Job, directory: str, study: str, threads: int, last: int) -> State:
    """One job inside a Ray task, from start to end; failed where it would be started more than `last` times.

    Ray itself counts no worker that it ended because a machine's memory was nearly full.
    """
    if not Path(study).is_dir():
        reason = f"{study} is not on the machine {socket.gethostname()}: a Ray study needs a folder all share"
        return State("failed", reason)
    os.chdir(directory)
    state = state_of(job)
    if state.status not in ("finished", "stopped") and state.starts >= last:
        return state._replace(status="failed", reason=f"{DIED}: {SMALLER}")
    work = begin(job, Place(threads, {}))
    while (ended := work.poll(0.5)) is None:
        pass
    return ended


def _import_ray() -> Any:
    # It reports its use to a server, and it writes its own troubles after our line about them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise ConfigError("--engine ray needs Ray: pip install 'talltree[ray]'") from None
    return ray


def _connect(ray: Any, config: Config) -> tuple[str, int]:
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    if config.address is None:
        ray.init(num_cpus=max(1, round(config.jobs * config.cpus_per_trial)), **quiet)
    else:
        asked = config.address
        start = "start one with `ray start --head`, or leave out --address for a Ray of its own"
        if asked != "auto" and not _answers(_split(asked)):
            raise RunError(f"no Ray head answers at {asked}; {start}")
        try:
            ray.init(address=asked, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            token = "RAY_AUTH_MODE and RAY_AUTH_TOKEN must be set here as they were for the head"
            raise RunError(f"the Ray head at {asked} refuses ({reason}); {token}, or {start}") from error
    return _split(ray.get_runtime_context().gcs_address)


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise ConfigError(f"address {address!r} is not HOST:PORT, such as 10.0.0.1:6379, nor auto")
    return host, int(port)


def _answers(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, timeout=3):
            return True
    except OSError:
        return False
