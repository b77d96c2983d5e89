"""One measurement in a process of its own, so that its peak memory and its threads are its own.

`measure` starts `python -m bench.worker KIND TASK.json RESULT.json` and gives back what that measured.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talltree.errors import RunError, TallTreeError

ROOT = Path(__file__).resolve().parent.parent
KINDS = {
    "machine": "bench.machine",
    "weights": "bench.weights",
    "ours": "bench.ours",
    "trl": "bench.peer",
    "sampling": "bench.sampling",
    "pretrain": "bench.pretrain",
}
"""Kind of measurement -> module with `work(task) -> dict`."""


def measure(kind: str, task: Mapping[str, Any], threads: int | None) -> dict[str, Any]:
    """What `work(task)` of the kind's module returns; the task gets `output`, a folder that is then removed.

    Raises RunError with the last line that the process wrote, if it fails; a traceback is passed on.
    """
    with tempfile.TemporaryDirectory(prefix="talltree-bench-") as name:
        folder = Path(name)
        (folder / "task.json").write_text(json.dumps({**task, "output": name, "threads": threads}))
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        command = [sys.executable, "-m", "bench.worker", kind, f"{name}/task.json", f"{name}/result.json"]
        with (folder / "log").open("w+") as log:
            done = subprocess.run(
                command, cwd=name, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False
            )
        if done.returncode != 0:
            text = (folder / "log").read_text(errors="replace").strip()
            if "Traceback" in text:
                print(text, file=sys.stderr)
            said = text.splitlines()[-1] if text else "it wrote nothing"
            raise RunError(f"the measurement {kind} ended with status {done.returncode}: {said}")
        return json.loads((folder / "result.json").read_text())


def main(kind: str, task_file: str, result_file: str) -> None:
    """Runs one measurement; what it prints goes where the parent sends it."""
    task = json.loads(Path(task_file).read_text())
    import torch

    if task.get("device") == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; use --device cpu")
    if task["threads"] is not None:
        torch.set_num_threads(task["threads"])
    try:
        result = importlib.import_module(KINDS[kind]).work(task)
    except TallTreeError as error:
        sys.exit(str(error))
    Path(result_file).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
