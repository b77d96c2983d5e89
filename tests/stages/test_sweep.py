"""A study runs: in turn and at once, killed and continued, with failures, refusals and early stops."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from talltree import cli, yaml_text
from talltree.run import LOCK
from talltree.stages.sweep import engines, state, trials
from talltree.stages.sweep.study import read
from talltree.stages.sweep.view import Line, panel
from talltree.stages.sweep.work import Place, _with_port, begin

from .fakes import install, is_alive

LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
CHAIN = [
    {"stage": "fake", "name": "base"},
    {"stage": "fake", "name": "tuned", "set": {"start": "{base}/final"}},
]


@pytest.fixture(autouse=True)
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch)


class Made:
    """A study of fake stages in a folder."""

    def __init__(self, folder: Path, **content: object) -> None:
        self.file, self.out = folder / "study.yaml", folder / "out"
        self.write(**content)

    def write(self, **content: object) -> None:
        self.file.write_text(yaml_text.dump({"chain": [{"stage": "fake"}]} | content))

    def run(self, *options: str) -> int:
        words = ["sweep", str(self.file), "--output_dir", str(self.out)]
        return cli.main([*words, *([] if "--report" in options else ["--report", "false"]), *options])

    def start(self, *options: str) -> subprocess.Popen[str]:
        words = ["sweep", str(self.file), "--output_dir", str(self.out), "--report", "false", *options]
        command = [sys.executable, "-m", "talltree", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def results(self) -> dict[str, dict[str, object]]:
        found = json.loads((self.out / "results.json").read_text())
        return {row["name"]: row for row in found["trials"]}

    def states(self) -> dict[str, object]:
        return {name: row["state"] for name, row in self.results().items()}

    def folder(self, trial: str, link: str = "fake") -> Path:
        return self.out / "trials" / trial / link

    def wait_for_step(self, trial: str, step: int, link: str = "fake") -> None:
        deadline = time.monotonic() + 60
        while not (self.folder(trial, link) / "checkpoints" / f"step-{step}").exists():
            assert time.monotonic() < deadline, "the trial does not get on"
            time.sleep(0.02)


def test_every_trial_runs_and_none_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Made(tmp_path, grid={"level": [1, 2]}, seeds=2)
    assert study.run("--report", "true") == 0
    assert list(study.states().values()) == ["finished"] * 4
    out = capsys.readouterr().out
    assert out.count("\nstarted  ") + out.startswith("started  ") == 4
    assert "4 trials: 4 finished" in out and f"page: {study.out / 'report.html'}" in out
    row = study.results()["level=2,seed=1"]
    assert row["outcomes"]["fake"]["after.reward"] == 7  # 2 * 3 steps + seed 1
    assert study.run() == 0
    assert f"{study.out}: 4 of 4 trials are finished already" in capsys.readouterr().out
    assert [(study.folder(name) / "started").read_text() for name in study.states()] == ["x"] * 4
    study.write(grid={"level": [1, 2, 3]}, seeds=2)
    assert study.run() == 0
    assert len(study.states()) == 6
    assert (study.folder("level=1,seed=0") / "started").read_text() == "x"


def test_settings_are_averaged_over_their_seeds(tmp_path: Path) -> None:
    study = Made(tmp_path, grid={"level": [1]}, seeds=3)
    assert study.run("--jobs", "2") == 0
    found = json.loads((study.out / "results.json").read_text())["settings"]
    assert [each["finished"] for each in found] == [3]
    reward = found[0]["outcomes"]["fake"]["after.reward"]
    assert (reward["mean"], reward["n"], reward["kind"]) == (4, 3, "t")
    # Rewards 3, 4, 5: deviation 1, half width t(0.975, 2) / sqrt(3) = 4.302653 / 1.732051
    assert reward["high"] - 4 == pytest.approx(2.484138, abs=1e-5)
    first, *lines = (study.out / "results.csv").read_text().splitlines()
    assert first.startswith("trial,level,seed,state,reason,seconds,fake.before.reward,")
    assert [line.split(",")[:4] for line in lines] == [
        ['"level=1', f'seed={seed}"', "1", str(seed)] for seed in (0, 1, 2)
    ]


def test_a_trial_that_cannot_even_start_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(state, "PATIENCE", 0.0)
    study = Made(tmp_path, grid={"level": [1, 2]})
    folder = study.folder("level=1,seed=0")
    folder.mkdir(parents=True)
    (study.out / "study.yaml").write_text("")
    with (folder / LOCK).open("w") as held:
        held.write("4711")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        assert study.run() == 2
    assert study.states() == {"level=1,seed=0": "failed", "level=2,seed=0": "finished"}
    assert "is being written by process 4711" in str(study.results()["level=1,seed=0"]["reason"])
    assert "1 of 2 trials failed, the first level=1,seed=0" in capsys.readouterr().err


def test_a_chain_hands_over_by_folders_and_shares_what_is_the_same(tmp_path: Path) -> None:
    study = Made(tmp_path, chain=CHAIN, grid={"tuned.level": [1, 2]})
    assert study.run("--jobs", "2") == 0
    (base,) = (path for path in (study.out / "links").iterdir() if path.is_dir())
    assert (base / "started").read_text() == "x"
    assert (study.out / "trials/tuned.level=2,seed=0/tuned/final/weights").is_file()
    # The grid grows: the earlier link is still there.
    study.write(chain=CHAIN, grid={"tuned.level": [1, 2, 3]})
    assert study.run() == 0
    assert (base / "started").read_text() == "x"


def test_a_failed_trial_is_reported_and_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Made(tmp_path, grid={"fail": ["error", "kill", ""]})
    assert study.run() == 2
    captured = capsys.readouterr()
    assert list(study.states().values()) == ["failed", "failed", "finished"]
    assert study.results()["fail=error,seed=0"]["reason"] == "the tree fell; plant another"
    log = study.folder("fail=error,seed=0").with_name("fake.log")
    assert f": the tree fell; plant another (log: {log})   [1 of 3]" in captured.out
    assert "killed (signal 9), probably out of memory: run fewer at once" in captured.out
    assert captured.err == (
        "talltree sweep: error: 2 of 3 trials failed, the first fail=error,seed=0: the tree fell; plant "
        "another; the same command tries them again\n"
    )
    # Tried again, from the checkpoint it had.
    assert study.run() == 0
    assert log.read_text().count("the tree fell") == 1
    assert study.states()["fail=error,seed=0"] == "finished"


def test_a_worker_that_dies_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory runs out on a machine of a cluster, Ray ends workers and starts their tasks for ever."""
    study = Made(tmp_path, grid={"level": [1]})
    (job,) = trials.make(read(str(study.file)), study.out, {"level": "1"}, {"level": 1})[0].jobs
    job.folder.parent.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    state.write_state(job, state.State("running", starts=4))
    found = engines._on_worker(job, str(tmp_path), str(study.out), 1, 4)
    assert (found.status, found.starts) == ("failed", 4)
    assert found.reason.startswith(
        "its Ray worker died 4 times, out of memory perhaps: run fewer at once, or"
    )
    assert not job.folder.exists()
    # One start is left: the job runs; and what has finished stays finished, however often it was started.
    for _ in range(2):
        assert engines._on_worker(job, str(tmp_path), str(study.out), 1, 5).status == "finished"
    assert (job.folder / "started").read_text() == "x"


def test_a_run_that_ends_while_its_folder_is_another_process_s_is_finished(tmp_path: Path) -> None:
    study = Made(tmp_path)
    (job,) = trials.make(read(str(study.file)), study.out, {}, {})[0].jobs
    (job.folder / "checkpoints" / "step-2").mkdir(parents=True)
    state.write_state(job, state.State("running", starts=1))
    held = (job.folder / LOCK).open("w")
    fcntl.flock(held, fcntl.LOCK_EX)

    def end() -> None:
        (job.folder / "summary.json").write_text('{"stop_reason": "done"}')
        held.close()

    ending = threading.Timer(0.3, end)
    ending.start()
    found = begin(job, Place(1, {})).poll()
    ending.join()
    assert found is not None and (found.status, found.starts) == ("finished", 1)


def test_a_failed_link_fails_its_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain = [CHAIN[0] | {"set": {"fail": "defect"}}, CHAIN[1]]
    study = Made(tmp_path, chain=chain, grid={"tuned.level": [1, 2]})
    assert study.run() == 2
    assert "2 of 2 trials failed, the first tuned.level=1,seed=0: base: KeyError: 'a defect'" in (
        capsys.readouterr().err
    )
    assert not (study.out / "trials/tuned.level=1,seed=0/tuned").exists()


def test_a_changed_config_of_a_trial_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Made(tmp_path, grid={"level": [1]})
    assert study.run() == 0
    before = (study.folder("level=1,seed=0") / "summary.json").read_bytes()
    study.write(chain=[{"stage": "fake", "set": {"kl": {"coef": 0.5}}}], grid={"level": [1]})
    assert study.run() == 2
    error = capsys.readouterr().err
    assert (
        "level=1,seed=0 was made with fake.kl.coef 0.0, and the study now says 0.5; nothing is over" in error
    )
    assert error.count("\n") == 1
    assert (study.folder("level=1,seed=0") / "summary.json").read_bytes() == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Made(tmp_path)
    study.out.mkdir()
    (study.out / "thesis.txt").write_text("mine")
    assert study.run() == 2
    assert "out is not empty and holds no study; choose another output_dir" in capsys.readouterr().err


@LINUX
def test_a_killed_study_continues_where_it_was(tmp_path: Path) -> None:
    """SIGKILL in the middle of the second trial: its stage ends too, and is resumed from its checkpoint."""
    study = Made(
        tmp_path,
        chain=[{"stage": "fake", "set": {"pause": 0.1}}],
        points=[{"name": "one", "steps": 1}, {"name": "two", "steps": 30}, {"name": "three", "steps": 1}],
    )
    driver = study.start()
    study.wait_for_step("two,seed=0", 5)
    log = study.folder("two,seed=0").with_name("fake.log")
    pid = int(log.read_text().split()[1])
    driver.kill()
    driver.wait()
    again = study.start()
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0, out
    assert not is_alive(pid)
    assert "1 of 3 trials are finished already" in out
    assert "goes on  two,seed=0" in out
    assert set(study.states().values()) == {"finished"}
    assert (study.folder("one,seed=0") / "started").read_text() == "x"
    assert (study.folder("two,seed=0") / "started").read_text() == "xx"
    assert len((study.folder("two,seed=0") / "metrics.jsonl").read_text().splitlines()) == 30
    assert json.loads(study.folder("two,seed=0").with_name("fake.json").read_text())["starts"] == 2


def test_a_signal_saves_every_running_trial(tmp_path: Path) -> None:
    chain = [{"stage": "fake", "set": {"steps": 200, "pause": 0.05}}]
    study = Made(tmp_path, chain=chain, grid={"level": [1, 2, 3]})
    driver = study.start("--jobs", "2")
    study.wait_for_step("level=2,seed=0", 3)
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, out
    assert "SIGINT: 2 running save their last step" in out
    assert "SIGINT: 3 trials: 2 interrupted, 1 waiting; the same command goes on" in out
    assert list(study.states().values()) == ["interrupted", "interrupted", "waiting"]
    assert "SIGTERM: saved step" in study.folder("level=1,seed=0").with_name("fake.log").read_text()


def test_a_second_driver_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Made(tmp_path, chain=[{"stage": "fake", "set": {"steps": 200, "pause": 0.05}}])
    driver = study.start()
    study.wait_for_step("seed=0", 2)
    assert study.run() == 2
    assert f"out is being run by process {driver.pid}; wait until it ends" in capsys.readouterr().err
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=60)
    assert driver.returncode == 143


def test_hopeless_trials_are_given_up_for_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop = {"metric": "reward/mean", "steps": [3], "least": 3, "keep": 0.5, "window": 1}
    study = Made(
        tmp_path,
        chain=[{"stage": "fake", "set": {"steps": 40, "pause": 0.1}}],
        points=[{"level": 3, "steps": 4}, {"level": 2, "steps": 4}, {"level": 1}],
        stop=stop,
    )
    assert study.run() == 0
    states = study.states()
    assert list(states.values()) == ["finished", "finished", "stopped"]
    reason = study.results()["level=1,seed=0"]["reason"]
    assert reason == "given up at step 3: reward/mean 3 is 3 of 3 trials there, and the best 50% go on"
    capsys.readouterr()
    assert study.run() == 0  # and stays so
    assert (study.folder("level=1,seed=0") / "started").read_text() == "x"
    assert "3 trials: 1 stopped, 2 finished" in capsys.readouterr().out


def test_a_run_without_a_checkpoint_is_set_aside_and_started_anew(tmp_path: Path) -> None:
    study = Made(tmp_path)
    half = study.folder("seed=0")
    half.mkdir(parents=True)
    (half / "half").write_text("written")
    assert not (study.out / "study.yaml").exists()
    (study.out / "study.yaml").write_text("")
    assert study.run() == 0
    assert (study.out / "trials/seed=0/fake.aside/half").read_text() == "written"


def test_jobs_share_cores_and_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    study = Made(tmp_path, grid={"level": [1, 2]})
    assert study.run("--jobs", "2", "--gpus", "[4, 6]") == 0
    for name in study.states():
        assert "threads 4" in study.folder(name).with_name("fake.log").read_text()


def test_processes_of_one_launch_meet_at_a_port_of_their_own() -> None:
    launch = ("accelerate", "launch", "--num_processes", "2")
    ports = {_with_port(launch)[-1] for _ in range(3)}
    assert all(int(port) > 1023 for port in ports)
    assert _with_port(launch)[:-1] == (*launch, "--main_process_port")
    asked = (*launch, "--main_process_port", "29501")
    assert _with_port(asked) == asked and _with_port(()) == ()


def test_the_table_shows_running_trials_first_and_counts_the_rest() -> None:
    lines = [
        Line(f"done{at}", "finished", "rl", {"step": 9, "reward/mean": 1.0}, 9, 65.0) for at in range(30)
    ]
    lines += [Line("now", "running", "rl", {"step": 3, "reward/mean": 2.5, "kl/sequence": -0.001}, 9, 0.0)]
    lines += [Line("later", "waiting", "sft", {}, 9, 0.0)]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(panel(lines))
    head, first, *rest = (line.split() for line in console.export_text().splitlines()[1:])
    assert head == ["trial", "state", "step", "reward", "KL,", "nats", "time"]
    assert first == ["now", "running", "rl", "3", "of", "9", "2.50", "0.00"]
    assert rest[0] == ["done0", "finished", "rl", "9", "of", "9", "1.00", "1:05"]
    assert " ".join(rest[-1]) == "32 trials: 1 running, 30 finished, 1 waiting"
    assert len(rest) == 24  # of 32 trials, one above, and the counts
