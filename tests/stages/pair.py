"""Two processes that run command lines as one launch has them: started once, used for many runs."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

WORKER = """
import contextlib, io, json, os, sys
from talltree import cli
for line in sys.stdin:
    job = json.loads(line)
    os.environ.update(job["environment"])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.ExitStack() as planted:
        exec(job["plant"], {"rank": int(os.environ["RANK"]), "planted": planted})
        try:
            status = cli.main(job["arguments"])
        except SystemExit as left:
            status = left.code
        except (TypeError, ArithmeticError) as defect:
            status = repr(defect)
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


class Said(NamedTuple):
    """How one process's command ended: exit status, or a defect's repr."""

    status: int | str
    out: str
    err: str


class Pair:
    """`run(arguments)` gives what process 0 and process 1 said; `plant` is code that both run before."""

    def __init__(self) -> None:
        self._workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **ENVIRONMENT},
            )
            for _ in range(2)
        ]

    def run(self, arguments: list[str], plant: str = "") -> list[Said]:
        self.start(arguments, plant)
        return [Said(*json.loads(worker.stdout.readline())) for worker in self._workers]

    def start(self, arguments: list[str], plant: str = "") -> None:
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank, worker in enumerate(self._workers):
            environment = common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
            job = {"environment": environment, "arguments": arguments, "plant": plant}
            worker.stdin.write(json.dumps(job) + "\n")
            worker.stdin.flush()

    def heard(self, rank: int) -> Said:
        """What one process says at the end of the run that `start` began."""
        return Said(*json.loads(self._workers[rank].stdout.readline()))

    def kill(self, rank: int) -> None:
        self._workers[rank].kill()

    def end(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.communicate()


@contextlib.contextmanager
def pair() -> Iterator[Pair]:
    made = Pair()
    try:
        yield made
    finally:
        made.end()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
