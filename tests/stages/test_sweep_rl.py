"""The real rl stage in a study: a driver killed in the middle of a trial changes no bit of it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from talltree import yaml_text
from talltree.run import Run
from talltree.stages.rl.config import KL

from . import toy


def sweep(folder: Path, made: toy.Toy, output: str) -> subprocess.Popen[str]:
    file = folder / "study.yaml"
    options = made.options(steps=6)
    content = {"chain": [{"stage": "rl", "set": options}], "grid": {"kl.coef": [0.5]}}
    file.write_text(yaml_text.dump(content))
    words = ["sweep", str(file), "--output_dir", str(folder / output), "--threads", "1", "--report", "false"]
    return subprocess.Popen(
        [sys.executable, "-m", "talltree", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_an_rl_trial_killed_and_continued_equals_the_run_alone(tmp_path: Path) -> None:
    made = toy.make(tmp_path)
    driver = sweep(tmp_path, made, "out")
    run = tmp_path / "out/trials/kl.coef=0.5,seed=0/rl"
    deadline = time.monotonic() + 240
    while not (run / "checkpoints/step-2").exists():
        assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()[0]
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    again = sweep(tmp_path, made, "out")
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0, out
    assert "goes on  kl.coef=0.5,seed=0" in out

    alone = made.run("alone", steps=6, kl=KL(coef=0.5), seed=0)
    assert Run.open(run).summary()["stop_reason"] == "all 6 steps made"
    toy.assert_same(run, alone)
