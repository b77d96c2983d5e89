"""Exact resume of the reward stage: the continued run equals the uninterrupted one, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from talltree import checkpoint
from talltree.config import to_dict
from talltree.errors import ConfigError, RunError
from talltree.run import Run
from talltree.stages import reward
from talltree.stages.reward import curve, loop
from talltree.stages.reward.config import EnsembleOptions

from ..tiny import llama, save
from . import reward_toy, toy

COMMON = {"keep_checkpoints": 100, "learning_curve": [0.3], "warmup_steps": 2}
KINDS = [
    pytest.param({"gradient_accumulation_steps": 3, "epochs": 1.2}, id="full"),
    pytest.param({"lora_r": 2, "ensemble": EnsembleOptions(size=2)}, id="lora, two bodies"),
    pytest.param({"ensemble": EnsembleOptions(size=3, body="shared"), "eos": "append"}, id="three heads"),
]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return reward_toy.make(tmp_path_factory.mktemp("resume"), 34)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Here no power fails; what fsync is for is tested with the checkpoints."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module", params=KINDS)
def whole(task, request):
    name = f"whole-{KINDS.index(next(k for k in KINDS if k.values[0] is request.param))}"
    reward.run(reward_toy.config(task, name, **COMMON, **request.param))
    return task / name, request.param


def resume(folder, **changed):
    reward.run(reward.Config(resume=str(folder), **changed))


def assert_same(left, right, *, checkpoints=True):
    assert toy.rows(left) == toy.rows(right)
    assert toy.summary(left) == toy.summary(right)
    names = ("before.jsonl", "after.jsonl", "reference.jsonl", "learning_curve.jsonl")
    for name in names:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name
    for name in ("final", "figures", *(("checkpoints",) if checkpoints else ())):
        assert toy.contents(left / name) == toy.contents(right / name), name


def reopen(folder):
    """Takes the end away from an ended run."""
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "figures")
    (folder / "after.jsonl").unlink()
    (folder / "learning_curve.jsonl").unlink()
    kept = Run.open(folder).summary()
    for key in (
        *("after", "probes", "learning_curve", "gain_and_bias", "warnings"),
        *("steps", "epochs", "final_step"),
    ):
        del kept[key]
    (folder / "summary.json").write_text(json.dumps(kept | {"stop_reason": None}))


def killed_after(whole, step, folder):
    """A copy of an ended run as if killed after the checkpoint of `step`, with later rows left over."""
    shutil.copytree(whole, folder)
    reopen(folder)
    for number, path in checkpoint.step_folders(folder / "checkpoints"):
        if number > step:
            shutil.rmtree(path)
    return folder


def test_a_run_killed_after_any_checkpoint_is_continued_exactly(whole, tmp_path):
    folder, _ = whole
    saved = [step for step, _ in checkpoint.step_folders(folder / "checkpoints")]
    assert {0, 2, 4} <= set(saved)
    for step in saved:
        copy = killed_after(folder, step, tmp_path / f"from-{step}")
        if step == 0:  # killed before the measurement at step 0 was on disk
            kept = Run.open(copy).summary()
            del kept["before"]
            (copy / "summary.json").write_text(json.dumps(kept))
            (copy / "metrics.jsonl").unlink()
        resume(copy)
        assert_same(folder, copy)


def test_a_run_interrupted_in_every_update_and_in_the_curve_is_the_uninterrupted_one(
    task, whole, monkeypatch, capsys
):
    expected, kind = whole
    update, curve_update = loop.update, curve.update
    name = f"pieces-{expected.name}"

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return update(*arguments)

    monkeypatch.setattr(loop, "update", interrupted)
    steps = Run.open(expected).summary()["steps"]
    for step in range(1, steps + 1):
        with pytest.raises(SystemExit) as stopped:
            if step == 1:
                reward.run(reward_toy.config(task, name, **COMMON, **kind))
            else:
                resume(task / name)
        assert stopped.value.code == 143
        assert Run.open(task / name).metrics()[-1]["step"] == step
    monkeypatch.setattr(curve, "update", interrupted)
    with pytest.raises(SystemExit):
        resume(task / name)
    assert f"SIGTERM: saved step {steps}; continue with talltree reward --resume" in capsys.readouterr().out
    monkeypatch.setattr(curve, "update", curve_update)
    resume(task / name)
    assert_same(expected, task / name, checkpoints=False)


def test_what_resume_must_keep_does_change(whole):
    """Otherwise equality would prove little."""
    folder, _ = whole
    states = [checkpoint.load_state(folder / "checkpoints" / f"step-{step}") for step in (0, 2, 4)]
    assert len({str(state["optimizers"][0]["state"]) for state in states}) == 3


def test_other_data_another_model_another_wish_and_an_ended_run_are_refused(task, tmp_path):
    model = save(tmp_path / "model", llama())
    data = tmp_path / "judgements.jsonl"
    data.write_text((task / "judgements.jsonl").read_text())
    changed = {"model_name_or_path": str(model), "dataset_name": str(data), "comparisons": 8}
    folder = tmp_path / "run"
    reward.run(reward_toy.config(tmp_path, **changed))
    with pytest.raises(RunError, match="has ended .all 1 steps made."):
        resume(folder)
    kept = Run.open(folder).summary()
    (folder / "summary.json").write_text(json.dumps(kept | {"stop_reason": None}))
    with pytest.raises(ConfigError, match="where batch_size is 8, but 9 is asked for"):
        resume(folder, batch_size=9, dataset_name=str(data))
    save(model, llama(seed=1))
    with pytest.raises(RunError, match="is not the model that .* started from"):
        resume(folder)
    data.write_text(data.read_text() + json.dumps(reward_toy.tuples(1, seed=5)[0]) + "\n")
    with pytest.raises(RunError, match="judgements.jsonl has changed since"):
        resume(folder)


def test_kill_minus_9_at_a_random_moment_loses_nothing(task, tmp_path):
    kind = {"epochs": 3.0, "checkpoint_every": 1}
    config = tmp_path / "reward.json"
    config.write_text(json.dumps(to_dict(reward_toy.config(task, "killed", **COMMON | kind))))
    process = subprocess.Popen(
        [sys.executable, "-m", "talltree", "reward", "--config", str(config)],
        env=toy.ENVIRONMENT,
        stdout=subprocess.DEVNULL,
    )
    rows, deadline = task / "killed" / "metrics.jsonl", time.monotonic() + 120
    wanted = random.Random(os.getpid()).randint(2, 8)
    while not rows.is_file() or len(rows.read_bytes().split(b"\n")) <= wanted:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    resume(task / "killed")
    reward.run(reward_toy.config(task, "not-killed", **COMMON | kind))
    assert_same(task / "not-killed", task / "killed")
