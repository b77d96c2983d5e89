"""A process killed at any moment of saving, replacing or removing leaves a good checkpoint."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from talltree import checkpoint

from .checkpoint_files import ENVIRONMENT, write_files

# Kills

WRITER = """
import sys
from pathlib import Path
from talltree import checkpoint
folder = Path(sys.argv[1])
def write(step):
    def files(aside):
        for name in "abcdefgh":
            (aside / name).write_bytes(b"%d " % step * 20_000)
    return files
step = checkpoint.latest_good(folder, print)[0]
print("ready", flush=True)
while True:
    step += 1
    checkpoint.save_folder(folder / f"step-{step}", write(step))
    checkpoint.save_folder(folder / "step-0", write(0))
    for old, path in checkpoint.step_folders(folder)[:-2]:
        checkpoint.remove_folder(path)
"""


def check_good(folder: Path) -> int:
    said = []
    step, path = checkpoint.latest_good(folder, said.append)
    assert said == []
    for name in "abcdefgh":
        assert (path / name).read_bytes() == b"%d " % step * 20_000
    return step


def test_a_good_checkpoint_survives_every_kill(tmp_path):
    generator = random.Random(1)
    checkpoint.save_folder(tmp_path / "step-1", write_files(dict.fromkeys("abcdefgh", b"1 " * 20_000)))
    in_the_middle, steps = 0, [1]
    for _ in range(15):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(generator.uniform(0.0, 0.1))
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        writer.stdout.close()
        in_the_middle += any(path.name.startswith(".") for path in tmp_path.iterdir())
        steps.append(check_good(tmp_path))
        if len(steps) % 2:
            checkpoint.clean_leftovers(tmp_path)
            assert not any(path.name.startswith(".") for path in tmp_path.iterdir())
            assert check_good(tmp_path) == steps[-1]
    assert steps == sorted(steps) and steps[-1] > steps[0]
    assert in_the_middle > 0


KILL_AT = """
import os, signal, sys
from pathlib import Path
from talltree import checkpoint
folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
count = 0
def killing(function):
    def call(*arguments, **keywords):
        global count
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        return function(*arguments, **keywords)
    return call
# shutil.rmtree deletes through os.unlink and os.rmdir, so a kill in the middle of a deletion is among them.
for name in ("fsync", "rename", "mkdir", "unlink", "rmdir"):
    setattr(os, name, killing(getattr(os, name)))
def files(aside):
    for name in "abc":
        killing((aside / name).write_bytes)(b"2")
checkpoint.save_folder(folder / "step-4", files)
checkpoint.remove_folder(folder / "step-2")
"""


def test_a_kill_at_each_point_of_replacing_and_removing(tmp_path):
    """The old or the new content stands whole after each step of the writer; later steps give the new."""
    outcomes = []
    for kill_at in range(100):
        folder = tmp_path / str(kill_at)
        for name in ("step-2", "step-4"):
            checkpoint.save_folder(folder / name, write_files(dict.fromkeys("abc", b"1")))
        done = subprocess.run([sys.executable, "-c", KILL_AT, str(folder), str(kill_at)], env=ENVIRONMENT)
        checkpoint.latest_good(folder, lambda line: pytest.fail(line))
        checkpoint.clean_leftovers(folder)
        assert {path.name for path in folder.iterdir()} <= {"step-2", "step-4"}
        for _, path in checkpoint.step_folders(folder):
            checkpoint.verify(path)
        outcomes.append((folder / "step-4" / "a").read_bytes())
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert not (folder / "step-2").exists()
    assert outcomes == sorted(outcomes) and set(outcomes) == {b"1", b"2"}
    assert len(outcomes) > 20
