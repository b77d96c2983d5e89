"""A stage as a process: its log, its status, signals on their way to it, and its end with its starter."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from talltree.errors import ConfigError, RunError
from talltree.stages import process, table
from talltree.yaml_text import dump

from .fakes import install, is_alive

LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")


@pytest.fixture(autouse=True)
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch)


def config(folder: Path, **settings: object) -> Path:
    path = folder / "fake.yaml"
    path.write_text(dump({"output_dir": str(folder / "run"), **settings}))
    return path


def pid_in(log: Path, seconds: float = 20) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if log.is_file() and (found := re.findall(r"^pid (\d+)", log.read_text(), re.MULTILINE)):
            return int(found[-1])
        time.sleep(0.02)
    raise AssertionError(f"{log} names no process")


def wait_until_gone(pid: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while is_alive(pid):
        assert time.monotonic() < end, f"process {pid} lives on"
        time.sleep(0.02)


def test_a_stage_runs_and_its_output_is_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "fake.log"
    ended = process.run_stage("fake", config(tmp_path), log, threads=3)
    assert (ended.status, ended.error, ended.signal) == (0, "", None)
    assert 0 < ended.seconds < 60
    assert "threads 3" in log.read_text()
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.parametrize(
    ("fail", "status", "error"),
    [
        ("error", 2, "the tree fell; plant another"),
        ("defect", 1, "KeyError: 'a defect'"),
        ("memory", 1, "out of memory: run fewer at once, or use a smaller batch_size or more gradient"),
        ("silent", 3, "pid "),
        ("kill", -9, "killed (signal 9), probably out of memory: run fewer at once, or use"),
        ("abort", -6, "killed by signal 6 (Aborted)"),
    ],
)
def test_how_it_failed_is_one_line(tmp_path: Path, fail: str, status: int, error: str) -> None:
    ended = process.run_stage("fake", config(tmp_path, fail=fail), tmp_path / "log")
    assert ended.status == status
    assert ended.error.startswith(error)
    assert "\n" not in ended.error


# What accelerate and torch write when one of two processes has died: first that process, then their report.
REPORT = """W1122 00:57:11.8 27418 torch/distributed/elastic/multiprocessing/api.py:1028] closing 27484
E1122 00:57:11.880 27418 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: {code})
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
=======================================================
Failures:
[1]:
  traceback : Signal 9 (SIGKILL) received by PID 27484
-------------------------------------------------------
Root Cause (first observed failure):
[0]:
  exitcode  : {code} (pid: 27485)
  traceback : {traceback}
=======================================================
"""
NO_TRACE = "To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html"


@pytest.mark.parametrize(
    ("written", "code", "traceback", "error"),
    [
        (
            "rank 1 2\n",
            -9,
            "Signal 9 (SIGKILL) received by PID 27485",
            "killed (signal 9), probably out of m",
        ),
        ("KeyError: 'a defect'\n", 1, NO_TRACE, "KeyError: 'a defect'"),
        ("talltree rl: error: step 2: bad\n", 2, NO_TRACE, "step 2: bad"),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. " + 200 * "x" + "\n",
            1,
            NO_TRACE,
            f"out of memory: {process.SMALLER} (torch.OutOfMemoryError: CUDA out of memory. Tried to al",
        ),
    ],
)
def test_of_several_processes_the_one_that_failed_is_told_and_not_the_report(
    tmp_path: Path, written: str, code: int, traceback: str, error: str
) -> None:
    log = tmp_path / "log"
    log.write_text(written + REPORT.format(code=code, traceback=traceback))
    found = process.error_line(1, log)
    assert found.startswith(error) and len(found) < 300 and "=" not in found


def test_the_error_of_an_earlier_run_in_the_same_log_is_not_taken(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("talltree fake: error: an old one\n")
    ended = process.run_stage("fake", config(tmp_path, fail="silent"), log)
    assert log.read_text().startswith("talltree fake: error: an old one\n")
    assert ended.error.startswith("pid ")


def test_the_first_signal_goes_to_the_stage_which_saves(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def interrupt() -> None:
        pid_in(log)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=interrupt)
    sender.start()
    ended = process.run_stage("fake", config(tmp_path, steps=1000, pause=0.05), log)
    sender.join()
    assert (ended.status, ended.signal) == (143, "SIGTERM")
    assert log.read_text().count("SIGTERM: saved step") == 1


def test_a_stage_is_resumed(tmp_path: Path) -> None:
    settings = config(tmp_path, steps=4, fail="error")
    assert process.run_stage("fake", settings, tmp_path / "log").status == 2
    ended = process.run_stage("fake", config(tmp_path, steps=4), tmp_path / "log", resume=tmp_path / "run")
    assert ended.status == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4


@LINUX
@pytest.mark.parametrize("how", ["listens", "deaf", "launched"])
def test_a_stage_does_not_outlive_a_killed_starter(tmp_path: Path, how: str) -> None:
    """SIGKILL leaves the starter no word; a stage deaf to SIGTERM goes too, and one behind a shell."""
    deaf = how == "deaf"
    launch = ["sh", "-c", '"$0" "$@"; exit $?', sys.executable] if how == "launched" else []
    pause = 1000 if deaf else 0.05
    path, log = config(tmp_path, steps=1000, pause=pause), tmp_path / "log"
    code = (
        "from pathlib import Path; from talltree.stages import process; "
        f"process.run_stage('fake', Path({str(path)!r}), Path({str(log)!r}), launch={launch!r})"
    )
    starter = subprocess.Popen([sys.executable, "-c", code])
    pid = pid_in(log)
    time.sleep(0.3)
    assert is_alive(pid)
    starter.kill()
    starter.wait()
    wait_until_gone(pid, process.guard.GRACE + 5)
    assert ("SIGTERM: saved step" in log.read_text()) is (how == "listens")


@LINUX
def test_a_stage_whose_guard_is_killed_goes_with_it(tmp_path: Path) -> None:
    started = process.start("fake", config(tmp_path, steps=1000, pause=0.05), tmp_path / "log")
    pid = pid_in(tmp_path / "log")
    guard = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(guard, signal.SIGKILL)
    ended = started.wait(20)
    assert ended is not None and ended.status == -9
    wait_until_gone(pid, 5)


@LINUX
@pytest.mark.parametrize("is_deaf", [False, True])
def test_a_stage_does_not_outlive_its_guard_and_its_starter(tmp_path: Path, is_deaf: bool) -> None:
    """As Ray ends a worker: its children first, by SIGKILL, so that nobody is there to see the rest."""
    path, log = config(tmp_path, steps=1000, pause=1000 if is_deaf else 0.05), tmp_path / "log"
    code = (
        "from pathlib import Path; from talltree.stages import process; "
        f"process.run_stage('fake', Path({str(path)!r}), Path({str(log)!r}))"
    )
    starter = subprocess.Popen([sys.executable, "-c", code])
    pid = pid_in(log)
    guard = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    starter.send_signal(signal.SIGSTOP)
    os.kill(guard, signal.SIGKILL)
    starter.kill()
    starter.wait()
    wait_until_gone(pid, process.guard.GRACE + 5)
    assert ("SIGTERM: saved step" in log.read_text()) is not is_deaf
    group = [each for each in Path("/proc").glob("[0-9]*/stat") if _group(each) == guard]
    deadline = time.monotonic() + process.guard.GRACE + 5
    while any(_group(each) == guard for each in group):
        assert time.monotonic() < deadline, "something of its group lives on"
        time.sleep(0.05)


def _group(stat: Path) -> int | None:
    try:
        state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
    except FileNotFoundError:
        return None
    return None if state == "Z" else int(group)


@LINUX
def test_kill_ends_the_stage_at_once(tmp_path: Path) -> None:
    started = process.start("fake", config(tmp_path, steps=1000, pause=1000), tmp_path / "log")
    pid = pid_in(tmp_path / "log")
    started.kill()
    wait_until_gone(pid, 5)


def test_a_launcher_that_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="launch: acelerate is not on the PATH; install it"):
        process.start("fake", None, tmp_path / "log", launch=["acelerate", "launch"])


def test_a_launcher_runs_the_module(tmp_path: Path) -> None:
    launch = ["env", "MARK=1", sys.executable]
    assert process.run_stage("fake", config(tmp_path), tmp_path / "log", launch=launch).status == 0


def test_a_stage_is_found_by_name() -> None:
    made = table.config_of("fake", {"level": 2.0, "kl.coef": 0.5}, "trial 1")
    assert (made.level, made.kl.coef, made.steps) == (2.0, 0.5, 3)


@pytest.mark.parametrize(
    ("stage", "mapping", "message"),
    [
        ("fke", {}, "^trial 1: no stage 'fke'; nearest: fake; stages: tokenizer, "),
        ("fake", {"levl": 1}, r"^trial 1: levl: unknown option \(value 1\); nearest known: level$"),
        ("fake", {"kl": {"coef": -1}}, "^trial 1: kl.coef: -1 is not allowed; allowed: float, at least 0$"),
        ("fake", {"level": 13}, "^trial 1: level 13 brings bad luck; use 12 or 14$"),
    ],
)
def test_what_is_refused_says_where(stage: str, mapping: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        table.config_of(stage, mapping, "trial 1")
