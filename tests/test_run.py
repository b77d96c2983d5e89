"""The run folder: refusals, lock, metrics, samples, checkpoints, rewinding."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pyarrow import parquet

from talltree import run as run_module
from talltree.errors import RunError
from talltree.run import Run

from .run_toy import CONFIG, ENVIRONMENT, columns, expected_rows, names


@pytest.fixture
def run(tmp_path):
    with Run.create(tmp_path / "runs" / "one", CONFIG, {"python": "3"}) as run:
        yield run


# Creating, opening, locking


def test_a_new_run_holds_its_config_and_environment(run):
    assert names(run.folder) == [".lock", "config.yaml", "environment.json"]
    assert yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8")) == CONFIG
    assert "æøå: 🌲" in (run.folder / "config.yaml").read_text(encoding="utf-8")
    reader = Run.open(run.folder)
    assert reader.config == CONFIG and list(reader.config) == list(CONFIG)
    assert reader.environment == {"python": "3"}


def test_an_existing_folder_is_refused_and_untouched(run, tmp_path):
    run.close()
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    with pytest.raises(RunError, match=f"--resume {run.folder}, or choose another output_dir"):
        Run.create(run.folder, {}, {})
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_bytes(b"1")
    with pytest.raises(RunError, match="not empty"):
        Run.create(foreign, {}, {})
    assert names(foreign) == ["cat.jpg"]
    with pytest.raises(RunError, match="is a file"):
        Run.create(foreign / "cat.jpg", {}, {})


def test_an_empty_folder_and_one_with_a_dead_lock_are_accepted(tmp_path):
    (tmp_path / "a").mkdir()
    Run.create(tmp_path / "a", {}, {}).close()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".lock").write_text("1\n")
    Run.create(tmp_path / "b", {}, {}).close()


def test_what_is_no_run_folder_is_named(tmp_path):
    with pytest.raises(RunError, match="gone does not exist"):
        Run.open(tmp_path / "gone")
    with pytest.raises(RunError, match=r"not a run folder, it has no config\.yaml"):
        Run.resume(tmp_path, print)
    assert names(tmp_path) == []


def test_a_second_writer_is_refused_and_a_reader_is_not(run):
    run.log({"step": 1, "reward/mean": 1.0})
    with pytest.raises(RunError, match=f"being written by process {os.getpid()}"):
        Run.resume(run.folder, print)
    assert Run.open(run.folder).metrics() == [{"step": 1, "reward/mean": 1.0}]
    run.close()
    Run.resume(run.folder, print).close()


HOLD = """
import sys, time
from talltree.run import Run, metrics_so_far
run = Run.resume(sys.argv[1], print)
print(1, flush=True)
time.sleep(60)
"""


def test_a_kill_gives_the_lock_back(run):
    run.close()
    command = [sys.executable, "-c", HOLD, str(run.folder)]
    holder = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "1\n"
    with pytest.raises(RunError, match=f"process {holder.pid}"):
        Run.resume(run.folder, print)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    Run.resume(run.folder, print).close()


def test_a_reader_cannot_write(run):
    reader = Run.open(run.folder)
    calls = [
        lambda: reader.log({"step": 1}),
        lambda: reader.add_samples(1, columns(1)),
        lambda: reader.merge_samples(),
        lambda: reader.save_checkpoint(1, lambda folder: None, keep=None),
        lambda: reader.rewind(0),
        lambda: reader.write_summary({}),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="open for reading"):
            call()
    assert names(run.folder) == [".lock", "config.yaml", "environment.json"]


def test_the_environment_names_versions_and_nobody():
    found = run_module.environment({"prompts.jsonl": "ab12"})
    assert found["versions"]["torch"] and found["python"].startswith("3.")
    assert found["data_sha256"] == {"prompts.jsonl": "ab12"}
    assert found["cpu_count"] >= 1 and found["torch_threads"] >= 1
    text = json.dumps(found)
    assert str(Path.home()) not in text and str(Path.cwd()) not in text
    assert socket.gethostname() not in text


def test_the_git_commit_is_found_and_its_absence_is_null(tmp_path, monkeypatch):
    file = tmp_path / "tracked.py"
    file.write_text("x = 1\n")
    assert run_module._commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "tracked.py"], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert len(head) == 40
    assert run_module._commit(tmp_path) == head
    assert run_module._commit(file) == head
    (tmp_path / "untracked.py").write_text("")
    assert run_module._commit(tmp_path / "untracked.py") is None
    file.write_text("x = 2\n")
    assert run_module._commit(file) == head + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert run_module._commit(tmp_path) is None


# Checkpoints, rewinding, summary


def write_model(folder: Path) -> None:
    (folder / "model").write_bytes(b"1")


def test_old_checkpoints_go_and_protected_ones_stay(run):
    for step in (2, 4, 6):
        assert (
            run.save_checkpoint(step, write_model, keep=None) == run.folder / "checkpoints" / f"step-{step}"
        )
    assert names(run.checkpoints) == ["step-2", "step-4", "step-6"]
    run.save_checkpoint(10, write_model, keep=2, protect={4})
    assert names(run.checkpoints) == ["step-10", "step-4", "step-6"]
    run.save_checkpoint(12, write_model, keep=1)
    assert names(run.checkpoints) == ["step-12"]
    assert run.latest_checkpoint(print) == (12, run.checkpoints / "step-12")
    with pytest.raises(ValueError, match="keep 0"):
        run.save_checkpoint(14, write_model, keep=0)
    assert names(run.checkpoints) == ["step-12"]


def test_a_checkpoint_that_fails_deletes_no_older_one(run):
    run.save_checkpoint(2, write_model, keep=1)

    def fail(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"step-4: No space left on device \(.* MiB free"):
        run.save_checkpoint(4, fail, keep=1)
    assert names(run.checkpoints) == ["step-2"]


def test_rewinding_moves_later_things_aside_and_loses_nothing(run):
    for step in range(1, 7):
        run.log({"step": step, "reward/mean": step})
        run.add_samples(step, columns(step))
        if step % 2 == 0:
            run.save_checkpoint(step, write_model, keep=None)
    (run.checkpoints / "step-6" / "model").write_bytes(b"2")
    lines = (run.folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    said = []
    assert run.latest_checkpoint(said.append)[0] == 4
    assert "step-6 is damaged: model" in said[0]
    assert run.rewind(4) == 2
    assert (run.folder / "metrics.jsonl").read_bytes() == b"".join(lines[:4])
    assert (run.discarded / "metrics.jsonl").read_bytes() == b"".join(lines[4:])
    assert run.samples().to_pylist() == expected_rows(1, 2, 3, 4)
    assert names(run.discarded) == ["00000005.parquet", "00000006.parquet", "metrics.jsonl", "step-6"]
    assert names(run.checkpoints) == ["step-2", "step-4"]
    run.add_samples(5, columns(5))
    assert run.rewind(4) == 0
    assert names(run.discarded) == [
        "00000005-2.parquet",
        "00000005.parquet",
        "00000006.parquet",
        "metrics.jsonl",
        "step-6",
    ]


def test_rewinding_a_finished_run_splits_its_merged_samples(run):
    for step in range(1, 5):
        run.add_samples(step, columns(step))
    run.merge_samples()
    run.rewind(4)
    assert not run.discarded.exists()
    run.rewind(1)
    assert run.samples().to_pylist() == expected_rows(1)
    assert parquet.read_table(run.discarded / "samples.parquet").to_pylist() == expected_rows(2, 3, 4)
    run.rewind(0)
    assert run.samples().num_rows == 0
    run.add_samples(1, columns(1))
    assert run.samples().to_pylist() == expected_rows(1)


def test_the_summary_is_replaced_whole(run):
    with pytest.raises(RunError, match=r"no summary\.json: it has not ended; finish it with --resume"):
        run.summary()
    run.write_summary({"stop_reason": "steps æ", "before": {"kl": {"mean": math.nan}}, "rows": (1, 2.5)})
    assert run.summary() == {"stop_reason": "steps æ", "before": {"kl": {"mean": None}}, "rows": [1, 2.5]}
    run.write_summary({"steps": 2})
    assert Run.open(run.folder).summary() == {"steps": 2}
    assert names(run.folder) == [".lock", "config.yaml", "environment.json", "summary.json"]


def test_what_a_killed_process_left_is_cleared_by_resume(run):
    run.add_samples(1, columns(1))
    run.save_checkpoint(2, write_model, keep=None)
    run.close()
    (run.checkpoints / ".step-4.partial").mkdir()
    (run.folder / ".final.partial").mkdir()
    (run.folder / ".summary.json.partial").write_bytes(b"{")
    (run.folder / "samples" / ".00000002.parquet.partial").write_bytes(b"PAR1")
    reader = Run.open(run.folder)
    assert reader.samples().to_pylist() == expected_rows(1)
    assert reader.latest_checkpoint(print)[0] == 2
    Run.resume(run.folder, print).close()
    assert names(run.folder) == [".lock", "checkpoints", "config.yaml", "environment.json", "samples"]
    assert names(run.checkpoints) == ["step-2"]
    assert names(run.folder / "samples") == ["00000001.parquet"]


FULL = """
import resource, sys
from talltree.errors import RunError
from talltree.run import Run, metrics_so_far
run = Run.resume(sys.argv[1], print)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))
words = [[str(i) for i in range(5000)]]
calls = [
    lambda: run.log({"step": 2, **{f"reward/{i}": 1 / 3 for i in range(100)}}),
    lambda: run.write_summary({"a": words}),
    lambda: run.add_samples(2, {"prompt": words[0]}),
]
for call in calls:
    try:
        call()
    except RunError as error:
        print(error)
"""


def test_a_full_disk_is_one_line_wherever_it_is_met_and_the_run_resumes(run):
    run.log({"step": 1, "reward/mean": 1.0})
    run.close()
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(run.folder)], env=ENVIRONMENT, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 3, done.stderr
    for line, name in zip(lines, ["metrics.jsonl", "summary.json", "00000002.parquet"], strict=True):
        assert line.startswith("cannot write ") and f"{name}: File too large" in line
    with Run.resume(run.folder, print) as resumed:
        assert resumed.metrics() == [{"step": 1, "reward/mean": 1.0}]
        assert resumed.samples().num_rows == 0
    assert not (run.folder / "summary.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot write .*Permission denied"):
        Run.create(tmp_path / "run", {}, {})
