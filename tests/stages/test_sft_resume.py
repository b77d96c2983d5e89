"""Exact resume: whatever ends a run of the sft stage, the continued run equals the uninterrupted one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from talltree import checkpoint
from talltree.data.corpus_options import CorpusOptions
from talltree.errors import ConfigError, RunError
from talltree.run import Run
from talltree.stages import sft
from talltree.stages.sft import loop

from ..tiny import llama, save
from . import toy

STEPS = 8
COMMON = {
    "steps": STEPS,
    "corpus": CorpusOptions(validation_share=0.2, overlaps="keep_held_out"),
    "batch_size": 8,
    "validation_every": 3,
    "checkpoint_every": 2,
    "keep_checkpoints": 100,
    "samples": 3,
    "max_completion_length": 5,
    "learning_rate": 0.02,
    "warmup_steps": 2,
}
KINDS = [
    pytest.param({"lora_r": None, "gradient_accumulation_steps": 3}, id="full"),
    pytest.param({"lora_r": 2, "weight_decay": 0.1}, id="lora"),
]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    save(folder / "model", llama())
    # 36 training examples in 5 batches: the 8 updates reach into a second epoch.
    texts = [(f"w{1 + n % 9} w{1 + n // 9}", " w8" * (1 + n % 4)) for n in range(45)]
    rows = [json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in texts]
    (folder / "pairs.jsonl").write_text("".join(rows))
    return folder


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch):
    """Here no power fails; what fsync is for is tested with the checkpoints."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def options(task, name, **changed):
    return COMMON | {
        "model_name_or_path": str(task / "model"),
        "dataset_name": str(task / "pairs.jsonl"),
        "output_dir": str(task / name),
    } | changed  # fmt: skip


def train(task, name, **changed):
    sft.run(sft.Config(**options(task, name, **changed)))
    return task / name


def resume(folder, **changed):
    sft.run(sft.Config(resume=str(folder), **changed))


def assert_same(left, right, **how):
    toy.assert_same(left, right, **how)


@pytest.fixture(scope="module", params=KINDS)
def whole(task, request):
    """An uninterrupted run, with all weights and with LoRA."""
    name = "whole-lora" if request.param["lora_r"] else "whole-full"
    return train(task, name, **request.param), request.param


def killed_after(whole, step, folder):
    """A copy of an ended run as if killed after the checkpoint of `step`, with later rows left over."""
    shutil.copytree(whole, folder)
    reopen(folder)
    for number, path in checkpoint.step_folders(folder / "checkpoints"):
        if number > step:
            shutil.rmtree(path)
    return folder


def reopen(folder):
    """Takes the end away from an ended run."""
    shutil.rmtree(folder / "final")
    (folder / "after.jsonl").unlink()
    kept = Run.open(folder).summary()
    for key in ("after", "change", "steps", "epochs", "learned_tokens", "best_step", "final_step"):
        del kept[key]
    (folder / "summary.json").write_text(json.dumps(kept | {"stop_reason": None}))


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_a_run_killed_after_any_checkpoint_is_continued_exactly(whole, tmp_path):
    folder, _ = whole
    saved = [step for step, _ in checkpoint.step_folders(folder / "checkpoints")]
    assert {0, 2, 4, 6, 8} <= set(saved)
    for step in saved:
        copy = killed_after(folder, step, tmp_path / f"from-{step}")
        resume(copy)
        assert_same(folder, copy)


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_a_run_interrupted_in_every_update_is_the_uninterrupted_one(task, whole, monkeypatch):
    expected, kind = whole
    update = loop._update
    name = f"pieces-{expected.name}"

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return update(*arguments)

    monkeypatch.setattr(loop, "_update", interrupted)
    for step in range(1, STEPS):
        with pytest.raises(SystemExit) as stopped:
            resume(task / name) if step > 1 else train(task, name, **kind)
        assert stopped.value.code == 143
        assert Run.open(task / name).metrics()[-1]["step"] == step
    resume(task / name)
    assert_same(expected, task / name, checkpoints=False)
    for step in range(0, STEPS + 1, 2):
        left, right = (toy.contents(run / "checkpoints" / f"step-{step}") for run in (expected, task / name))
        assert left == right


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_what_resume_must_keep_does_change(whole):
    """Otherwise equality would prove little."""
    folder, kind = whole
    states = [checkpoint.load_state(folder / "checkpoints" / f"step-{step}") for step in (0, 2, 8)]
    assert len({str(state["optimizer"]["state"]) for state in states}) == 3
    if kind["lora_r"]:
        name = next(name for name in states[0]["adapters"] if "lora_B" in name)
        tensors = [state["adapters"][name] for state in states]
    else:
        name = "model.layers.0.mlp.up_proj.weight"
        tensors = [toy.weights(folder / "checkpoints" / f"step-{step}")[name] for step in (0, 2, 8)]
    assert not torch.equal(tensors[0], tensors[1]) and not torch.equal(tensors[1], tensors[2])


@pytest.mark.usefixtures("no_waiting_for_the_disk")
@pytest.mark.parametrize("lacking", ["samples and metrics", "metrics", "nothing"])
def test_a_run_killed_while_it_measured_before_is_continued(whole, tmp_path, lacking):
    folder = killed_after(whole[0], 0, tmp_path / "run")
    kept = Run.open(folder).summary()
    del kept["before"]
    (folder / "summary.json").write_text(json.dumps(kept))
    (folder / "before.jsonl").unlink()
    if lacking != "nothing":
        (folder / "metrics.jsonl").unlink()
    if lacking == "samples and metrics":
        (folder / "samples.parquet").unlink()
    resume(folder)
    assert_same(whole[0], folder)


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_a_run_killed_between_final_and_summary_is_closed(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    final = shutil.copytree(folder / "final", tmp_path / "final")
    reopen(folder)
    shutil.copytree(final, folder / "final")
    resume(folder)
    assert_same(whole[0], folder)


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_patience_ends_a_resumed_run_where_it_ended_the_other(task, tmp_path):
    whole = train(task, "patient", steps=40, learning_rate=0.5, validation_every=1, patience=4)
    steps = Run.open(whole).summary()["steps"]
    assert 4 <= steps < 40
    copy = killed_after(whole, steps - 2, tmp_path / "run")
    resume(copy)
    assert_same(whole, copy)


# Real processes


def start(task, name, **changed):
    every = options(task, name, **changed) | {"corpus.validation_share": COMMON["corpus"].validation_share}
    words = [str(w) for key, value in every.items() if key != "corpus" for w in (f"--{key}", value)]
    return subprocess.Popen(
        [sys.executable, "-m", "talltree", "sft", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=toy.ENVIRONMENT,
    )


def wait_for_rows(folder, count, process):
    limit, path = time.monotonic() + 120, folder / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.002)


def test_a_signal_saves_and_says_how_to_go_on(task):
    process = start(task, "signalled", steps=16, checkpoint_every=100)
    wait_for_rows(task / "signalled", 3, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "")
    step = Run.open(task / "signalled").metrics()[-1]["step"]
    assert step < 16
    last = out.strip().splitlines()[-1]
    assert last == f"SIGINT: saved step {step}; continue with talltree sft --resume {task / 'signalled'}"
    resume(task / "signalled")
    assert_same(
        train(task, "straight", steps=16, checkpoint_every=100), task / "signalled", checkpoints=False
    )


def test_kill_minus_9_at_a_random_moment_loses_nothing(task):
    process = start(task, "killed")
    wait_for_rows(task / "killed", random.Random(os.getpid()).randint(1, 6), process)
    time.sleep(random.Random(time.time()).uniform(0.0, 0.05))
    process.kill()
    process.communicate()
    resume(task / "killed")
    assert_same(train(task, "not-killed"), task / "killed")


# What cannot be continued


def test_a_damaged_checkpoint_is_named_and_an_earlier_one_used(whole, tmp_path, capsys):
    folder = killed_after(whole[0], 4, tmp_path / "run")
    state = folder / "checkpoints" / "step-4" / "state.safetensors"
    damaged = bytearray(state.read_bytes())
    damaged[-3] ^= 1
    state.write_bytes(damaged)
    resume(folder)
    assert f"{state.parent} is damaged" in capsys.readouterr().out
    assert_same(whole[0], folder)


def test_other_data_another_model_and_an_ended_run_are_refused(task, tmp_path):
    model, data = save(tmp_path / "model", llama()), tmp_path / "pairs.jsonl"
    data.write_text((task / "pairs.jsonl").read_text())
    changed = {"model_name_or_path": str(model), "dataset_name": str(data), "steps": 2}
    folder = train(task, "changing", **changed)
    with pytest.raises(RunError, match="has ended .all 2 steps made."):
        resume(folder)
    reopen(folder)
    with pytest.raises(ConfigError, match="where steps is 2, but 9 is asked for"):
        resume(folder, steps=9)
    save(model, llama(seed=1))
    with pytest.raises(RunError, match="is not the model that .* started from"):
        resume(folder)
    data.write_text(data.read_text() + '{"prompt": "w9", "completion": " w1"}\n')
    with pytest.raises(RunError, match="pairs.jsonl has changed since"):
        resume(folder)
