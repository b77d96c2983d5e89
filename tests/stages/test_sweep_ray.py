"""The same study through Ray: a real local cluster, two workers, one of them killed; a head that dies."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from talltree import cli, yaml_text

from .fakes import install, is_alive

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or not Path("/proc/self/stat").exists(),
    reason="needs the extra `ray` and a Linux /proc",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes() -> dict[int, tuple[int, str]]:
    """Every process as pid -> (parent, command line)."""
    found = {}
    for path in Path("/proc").iterdir():
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(path.name)] = parent, (path / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            continue
    return found


def ancestors(pid: int) -> list[tuple[int, str]]:
    """The parents of a process, nearest first, with their command lines."""
    table, found = processes(), []
    while pid in table and table[pid][0] > 1:
        pid = table[pid][0]
        found.append((pid, table.get(pid, (0, ""))[1]))
    return found


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray head of our own, with a token that nobody else has."""
    install(tmp_path / "site", monkeypatch)
    for key, value in (
        ("RAY_AUTH_MODE", "token"),
        ("RAY_AUTH_TOKEN", secrets.token_hex(32)),
        ("RAY_USAGE_STATS_ENABLED", "0"),
    ):
        monkeypatch.setenv(key, value)
    # Short: Ray's sockets lie below it, and their paths have room for about a hundred characters.
    folder, port = Path("/tmp") / f"tr{secrets.token_hex(4)}", free_port()
    started = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "2"),
            *("--node-ip-address", "127.0.0.1", "--port", str(port), "--include-dashboard", "false"),
            *("--object-store-memory", str(80 * 2**20), "--temp-dir", str(folder)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 90
    while not any("raylet/raylet" in line and str(folder) in line for _, line in processes().values()):
        assert started.poll() is None and time.monotonic() < deadline, "ray start did not come up"
        time.sleep(0.2)
    yield f"127.0.0.1:{port}"
    for pid, (_, line) in processes().items():
        if str(folder) in line:
            os.kill(pid, signal.SIGKILL)
    started.kill()
    started.wait()
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def study(folder: Path, steps: int) -> list[str]:
    path = folder / "study.yaml"
    chain = [{"stage": "fake", "set": {"steps": steps, "pause": 0.2}}]
    path.write_text(yaml_text.dump({"chain": chain, "grid": {"level": [1, 2]}}))
    words = ["sweep", str(path), "--output_dir", str(folder / "out"), "--report", "false"]
    return [*words, "--engine", "ray", "--jobs", "2"]


def start(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "talltree", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(folder: Path, level: int, step: int) -> int:
    """The process of that trial, once it has made so many steps."""
    trial = folder / "out/trials" / f"level={level},seed=0"
    deadline = time.monotonic() + 60
    while not (trial / "fake" / "checkpoints" / f"step-{step}").exists():
        assert time.monotonic() < deadline, "the trial does not get on"
        time.sleep(0.05)
    return int((trial / "fake.log").read_text().split()[1])


def test_a_killed_worker_loses_nothing_and_a_dead_head_is_one_line(tmp_path: Path, head: str) -> None:
    driver = start([*study(tmp_path, 40), "--address", head])
    stages = [wait_for_step(tmp_path, level, 3) for level in (1, 2)]
    workers = [next(pid for pid, line in ancestors(stage) if line.startswith("ray::")) for stage in stages]
    assert len(set(workers)) == 2
    os.kill(workers[0], signal.SIGKILL)
    out, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, out
    assert f"ray: head {head}, machines 1, cores 2" in out and "2 trials: 2 finished" in out
    assert not is_alive(stages[0])
    for level, starts in ((1, 2), (2, 1)):
        trial = tmp_path / "out/trials" / f"level={level},seed=0"
        assert json.loads((trial / "fake.json").read_text())["starts"] == starts
        steps = [json.loads(line)["step"] for line in (trial / "fake/metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, 41))

    # The same cluster, a longer study, and the head dies under it.
    (tmp_path / "second").mkdir()
    driver = start([*study(tmp_path / "second", 500), "--address", head])
    stage = wait_for_step(tmp_path / "second", 1, 2)
    port = head.rpartition(":")[2]
    for pid, (_, line) in processes().items():
        if "gcs_server" in line and f"--gcs_server_port={port}" in line:
            os.kill(pid, signal.SIGKILL)
    out, _ = driver.communicate(timeout=60)
    assert driver.returncode == 2
    said = f"talltree sweep: error: the Ray head at {head} no longer answers; start it again, then the same"
    assert out.splitlines()[-1].startswith(said)
    assert "Traceback" not in out
    state = json.loads((tmp_path / "second/out/trials/level=1,seed=0/fake.json").read_text())
    assert state["status"] == "running" and stage > 0  # to be gone on with


def test_no_head_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path / "site", monkeypatch)
    address = f"127.0.0.1:{free_port()}"
    assert cli.main([*study(tmp_path, 1), "--address", address]) == 2
    expected = f"no Ray head answers at {address}; start one with `ray start --head`, or leave out --address"
    assert capsys.readouterr().err == f"talltree sweep: error: {expected} for a Ray of its own\n"
    assert cli.main([*study(tmp_path, 1), "--address", "nowhere"]) == 2
    assert "address 'nowhere' is not HOST:PORT, such as 10.0.0.1:6379, nor auto" in capsys.readouterr().err


def test_a_missing_ray_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path / "site", monkeypatch)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(study(tmp_path, 1)) == 2
    error = capsys.readouterr().err
    assert error == "talltree sweep: error: --engine ray needs Ray: pip install 'talltree[ray]'\n"
