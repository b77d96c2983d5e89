"""One run, one folder: config, environment, metrics, samples, checkpoints, summary (docs/run-folder.md)."""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from talltree import checkpoint, metrics, samples, yaml_text
from talltree.errors import RunError

if TYPE_CHECKING:
    import pyarrow as pa
    from tensorboard.summary.writer.record_writer import RecordWriter

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
TENSORBOARD = "tensorboard"
LOCK = ".lock"
PACKAGES = ["talltree", "torch", "transformers", "tokenizers", "safetensors", "accelerate", "peft", "pyarrow"]


class Run:
    """A run folder: `create` and `resume` hold its lock and may write, `open` only reads.

    Use it as a context manager or call `close`; the lock ends with the process at the latest. Every write
    raises RunError, one line, for a full or read-only disk.
    """

    def __init__(self, folder: Path, lock: IO[str] | None) -> None:
        self.folder = folder
        self._lock = lock
        self._events: RecordWriter | None = None
        self._purge_step: int | None = None

    @classmethod
    def create(cls, output_dir: str | Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> Run:
        """Starts a run in a new or empty folder. Raises RunError if the folder holds anything."""
        folder = Path(output_dir)
        refuse_used(folder)
        with checkpoint.disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            run = cls(folder, _lock(folder))
        refuse_used(folder)
        checkpoint.write_file(folder / ENVIRONMENT, _json_bytes(environment))
        # Last, because config.yaml is what makes the folder a run.
        checkpoint.write_file(folder / CONFIG, yaml_text.dump(dict(config)).encode())
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Opens a run for reading, a live one too. Raises RunError if it is no run folder."""
        path = Path(folder)
        if not path.is_dir():
            raise RunError(f"run folder {path} does not exist; name the output_dir that a stage wrote")
        if not (path / CONFIG).is_file():
            raise RunError(
                f"{path} is not a run folder, it has no {CONFIG}; name the output_dir that a stage wrote"
            )
        return cls(path, None)

    @classmethod
    def resume(cls, folder: str | Path, say: Callable[[str], None]) -> Run:
        """Opens a run to continue it and clears away what a killed process left half written.

        A torn last line of metrics.jsonl is dropped and named through `say`. Raises RunError if it is no run
        folder or another process is writing to it.
        """
        path = cls.open(folder).folder
        with checkpoint.disk_errors(path):
            run = cls(path, _lock(path))
            for parent in (path, path / samples.SHARDS, run.checkpoints):
                checkpoint.clean_leftovers(parent)
        _mend_metrics(path / METRICS, say)
        return run

    def close(self) -> None:
        """Closes the event file and gives the lock back."""
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def discarded(self) -> Path:
        return self.folder / "discarded"

    @property
    def final(self) -> Path:
        return self.folder / "final"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config that the run was created with."""
        return yaml_text.Loader((self.folder / CONFIG).read_text(encoding="utf-8")).get_single_data() or {}

    @property
    def environment(self) -> dict[str, Any]:
        """What `environment` found when the run was created."""
        return json.loads((self.folder / ENVIRONMENT).read_text(encoding="utf-8"))

    def log(self, row: Mapping[str, float | int | None]) -> None:
        """Appends one row to metrics.jsonl, on disk before this returns, and its scalars to tensorboard/.

        The row needs "step". JSON has no NaN or infinity, so they are written as null, like None. Raises
        KeyError for a key that `metrics.describe` does not know.
        """
        self._require_lock()
        step = row["step"]
        if not isinstance(step, int):
            raise TypeError(f"step {step!r} of a metrics row is not an int")
        tags = {key: metrics.describe(key).tag for key in row}
        line = json.dumps({key: _finite(value) for key, value in row.items()}, allow_nan=False)
        scalars = {
            tag: float(x) for key, x in row.items() if x is not None and (tag := tags[key]) is not None
        }
        with checkpoint.disk_errors(self.folder / METRICS):
            _append(self.folder / METRICS, line.encode() + b"\n")
        with checkpoint.disk_errors(self.folder / TENSORBOARD):
            if self._events is None:
                self._events = _open_events(self.folder / TENSORBOARD, self._purge_step)
            _write_scalars(self._events, step, scalars)

    def metrics(self) -> list[dict[str, Any]]:
        """Every row of metrics.jsonl; a last line that is still being written is left out."""
        return [row for _, row in _read_metrics(self.folder / METRICS)]

    def add_samples(self, step: int, columns: Mapping[str, Sequence[Any]]) -> None:
        """Writes the rollouts of one step as one shard; see `samples.write_shard` for columns and errors."""
        self._require_lock()
        samples.write_shard(self.folder, step, columns)

    def samples(self) -> pa.Table:
        """Every sample in the order of its steps, merged or not."""
        return samples.read(self.folder)

    def merge_samples(self) -> None:
        """Puts all shards into samples.parquet, one step in memory at a time."""
        self._require_lock()
        samples.merge(self.folder)

    def save_checkpoint(
        self, step: int, write: Callable[[Path], None], keep: int | None, protect: Collection[int] = ()
    ) -> Path:
        """Saves checkpoints/step-N, then deletes all but the newest `keep` and those of `protect`.

        keep None deletes nothing. Raises ValueError if keep < 1, and what `checkpoint.save_folder` raises;
        then nothing is deleted.
        """
        self._require_lock()
        if keep is not None and keep < 1:
            raise ValueError(f"keep {keep} would delete the checkpoint just written; use 1 or more, or None")
        folder = self.checkpoints / f"step-{step}"
        checkpoint.save_folder(folder, write)
        surplus = [] if keep is None else checkpoint.step_folders(self.checkpoints)[:-keep]
        for old, path in surplus:
            if old not in protect:
                checkpoint.remove_folder(path)
        return folder

    def latest_checkpoint(self, say: Callable[[str], None]) -> tuple[int, Path]:
        """(step, folder) of the newest good checkpoint, damaged ones named. Raises RunError without one."""
        return checkpoint.latest_good(self.checkpoints, say)

    def rewind(self, step: int) -> int:
        """Moves metrics rows, samples and checkpoints of later steps into discarded/; returns how many rows.

        TensorBoard is told to forget the later steps when the next row is logged.
        """
        self._require_lock()
        lines = _read_metrics(self.folder / METRICS)
        late = [line for line, row in lines if row["step"] > step]
        with checkpoint.disk_errors(self.discarded):
            self.discarded.mkdir(exist_ok=True)
            if late:
                _append(self.discarded / METRICS, b"".join(late))
            samples.set_aside_after(self.folder, step, self.discarded)
            for number, path in checkpoint.step_folders(self.checkpoints):
                if number > step:
                    path.rename(checkpoint.free_name(self.discarded / path.name))
            if not any(self.discarded.iterdir()):
                self.discarded.rmdir()
        if late:
            kept = (line for line, row in lines if row["step"] <= step)
            checkpoint.write_file(self.folder / METRICS, b"".join(kept))
        if self._events is not None:
            self._events.close()
            self._events = None
        self._purge_step = step + 1
        return len(late)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replaces summary.json; NaN and infinities are written as null."""
        self._require_lock()
        checkpoint.write_file(self.folder / SUMMARY, _json_bytes(summary))

    def summary(self) -> dict[str, Any]:
        """What summary.json holds. Raises RunError if the run has not ended."""
        path = self.folder / SUMMARY
        if not path.is_file():
            raise RunError(
                f"{self.folder} has no {SUMMARY}: it has not ended; finish it with --resume {self.folder}"
            )
        return json.loads(path.read_text(encoding="utf-8"))

    def require_unended(self) -> None:
        """Raises RunError if the run has ended, so that there is nothing to resume."""
        if (self.folder / SUMMARY).is_file() and (reason := self.summary()["stop_reason"]) is not None:
            raise RunError(f"{self.folder} has ended ({reason}); nothing is left to resume; start a new run")

    def _require_lock(self) -> None:
        if self._lock is None:
            raise RuntimeError(f"{self.folder} is open for reading; Run.create and Run.resume may write")


# Folder and lock


def refuse_used(folder: Path) -> None:
    """Raises RunError unless a run can start in `folder`: it is new, or an empty folder."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"output_dir {folder} is a file; choose another output_dir")
    if folder.is_dir() and any(entry.name != LOCK for entry in folder.iterdir()):
        raise RunError(
            f"output_dir {folder} exists and is not empty, and nothing is overwritten: continue that run "
            f"with --resume {folder}, or choose another output_dir"
        )


def _lock(folder: Path) -> IO[str]:
    """The open lock file; the kernel gives the lock back when it is closed or its process ends."""
    file = (folder / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise RunError(
            f"{folder} is being written by process {holder}; wait until it ends, or stop it"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


# Files


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def metrics_so_far(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl that others may be writing: none without the file, none of a torn line."""
    return [row for line in _lines(path) if (row := _row(line)) is not None]


def _read_metrics(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """(line, row) of every line, a torn last one left out. Raises RunError for damage before the end."""
    lines = _lines(path)
    rows = [(line, _row(line)) for line in lines]
    if rows and rows[-1][1] is None:
        rows.pop()
    for number, (_, row) in enumerate(rows, 1):
        if row is None:
            raise RunError(f"{path} line {number} is not a metrics row; mend or remove that line")
    return [(line, row) for line, row in rows if row is not None]


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _mend_metrics(path: Path, say: Callable[[str], None]) -> None:
    whole = b"".join(line for line, _ in _read_metrics(path))
    torn = (path.stat().st_size if path.exists() else 0) - len(whole)
    if torn:
        say(f"dropped the last {torn} bytes of {path}: the row was being written when the run was killed")
    if torn or (whole and not whole.endswith(b"\n")):
        checkpoint.write_file(path, whole.rstrip(b"\n") + b"\n" if whole else b"")


# TensorBoard. Its own SummaryWriter would put the machine's name into the file name.


def _open_events(folder: Path, purge_step: int | None) -> RecordWriter:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(exist_ok=True)
    number = sum(1 for _ in folder.glob("events.out.tfevents.*"))
    file = (folder / f"events.out.tfevents.{number:010d}.talltree").open("xb")
    writer = RecordWriter(file)
    writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
    if purge_step is not None:
        start = SessionLog(status=SessionLog.START)
        writer.write(Event(wall_time=time.time(), step=purge_step, session_log=start).SerializeToString())
    return writer


def _write_scalars(events: RecordWriter, step: int, scalars: Mapping[str, float]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    events.write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)).SerializeToString())
    events.flush()


# Environment


def environment(data_sha256: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a repeat of the run needs to know: versions, git commits, machine, threads, hashes of the data.

    Nothing that names a person or a machine. A package or a git repository that is not there gives null.
    """
    import torch

    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git": {"talltree": _commit(Path(__file__)), "working_directory": _commit(Path.cwd())},
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "data_sha256": dict(data_sha256 or {}),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(path: Path) -> str | None:
    """Commit that `path` lies in (-dirty with uncommitted changes); for a file only if git tracks it."""
    folder = path if path.is_dir() else path.parent
    if path.is_file() and _git(folder, "ls-files", "--error-unmatch", path.name) is None:
        return None
    return _git(folder, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=2
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
