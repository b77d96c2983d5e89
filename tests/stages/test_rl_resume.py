"""Exact resume: whatever ends a run of the rl stage, the continued run equals the uninterrupted one."""

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

from talltree import checkpoint, rewards
from talltree.errors import ConfigError, RunError
from talltree.run import Run
from talltree.stages import rl
from talltree.stages.rl.config import KL

from . import toy

STEPS = 12
COMMON = {"steps": STEPS, "kl": KL(coef=0.1, target=0.05, horizon=40.0, gain=1.0), "max_grad_norm": 0.5}
GRID = [
    pytest.param(
        COMMON
        | {
            "algorithm": "grpo",
            "num_iterations": iterations,
            "gradient_accumulation_steps": accumulation,
            "num_mini_batches": 2 if iterations == 2 else 1,
            "lora_r": lora_r,
            "learning_rate": 0.02,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 3,
        },
        id=f"{iterations} passes, {accumulation} parts, {'lora' if lora_r else 'full'}",
    )
    for iterations in (1, 2, 3)
    for accumulation in (1, 3)
    for lora_r in (None, 2)
]
REINFORCE = COMMON | {"algorithm": "reinforce", "baseline": "moving", "optim": "sgd", "learning_rate": 0.05}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch):
    """Here no power fails; what fsync is for is tested with the checkpoints."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def whole(task):
    """An uninterrupted run, with prompts of unequal length, a moving baseline and an adaptive coefficient."""
    return task.run("whole", **REINFORCE, prompts=str(task.prompts))


def resume(folder, **options):
    rl.run(rl.Config(resume=str(folder), **options))


def copied(whole, folder):
    shutil.copytree(whole, folder)
    return folder


def killed_after(whole, step, folder):
    """A copy of an ended run as if it had been killed while it worked on the step after `step`.

    Rows and samples of later steps are left: resume must not trust them.
    """
    copied(whole, folder)
    reopen(folder)
    for number in range(step + 1, STEPS + 1):
        shutil.rmtree(folder / "checkpoints" / f"step-{number}")
    return folder


def reopen(folder):
    """Takes the end away from an ended run."""
    shutil.rmtree(folder / "final")
    for side in ("before", "after"):
        (folder / f"{side}.jsonl").unlink()
    kept = Run.open(folder).summary()
    for key in ("before", "after", "steps", "best_step", "final_step"):
        del kept[key]
    (folder / "summary.json").write_text(json.dumps(kept | {"stop_reason": None}))


def run_in_pieces(task, name, monkeypatch, steps=STEPS, **options):
    """A run that is interrupted in every step, step 0 included, and continued each time."""
    options = options | {"steps": steps}
    folder = task.folder / name
    due = []

    def interrupting(called):
        def call(*arguments):
            if due and folder.exists():
                due.clear()
                os.kill(os.getpid(), signal.SIGINT)
            return called(*arguments)

        return call

    # The first thing that a new run does is to save step 0, and a resumed one to score its next step.
    monkeypatch.setattr(checkpoint, "save_state", interrupting(checkpoint.save_state))
    monkeypatch.setattr(rewards, "score", interrupting(rewards.score))
    for step in range(steps):
        due.append(step)
        with pytest.raises(SystemExit) as stopped:
            resume(folder) if step else task.run(name, **options)
        assert stopped.value.code == 130
        assert [row["step"] for row in Run.open(folder).metrics()] == list(range(1, step + 1))
    resume(folder)
    return folder


# Every step


@pytest.mark.usefixtures("no_waiting_for_the_disk")
@pytest.mark.parametrize("options", GRID)
def test_a_run_continued_after_every_step_is_the_uninterrupted_one(task, options, monkeypatch, request):
    name = request.node.callspec.id.replace(" ", "-").replace(",", "")
    options = options | {"prompts": str(task.prompts)}
    whole = task.run(f"whole-{name}", **options)
    assert toy.rows(whole)[0]["kl/coef"] != toy.rows(whole)[-1]["kl/coef"]
    pieces = run_in_pieces(task, f"pieces-{name}", monkeypatch, **options)
    toy.assert_same(whole, pieces)


@pytest.mark.usefixtures("no_waiting_for_the_disk")
@pytest.mark.parametrize("step", range(STEPS + 1))
def test_a_run_killed_after_any_step_is_continued_exactly(whole, step, tmp_path):
    folder = killed_after(whole, step, tmp_path / "run")
    resume(folder)
    toy.assert_same(whole, folder)
    late = folder / "discarded" / "metrics.jsonl"
    discarded = [json.loads(line)["step"] for line in late.read_text().splitlines()] if late.exists() else []
    assert discarded == list(range(step + 1, STEPS + 1))


def test_the_states_that_resume_must_keep_do_change(whole):
    """Otherwise equality would prove little."""
    from talltree.checkpoint import load_state

    states = [load_state(whole / "checkpoints" / f"step-{step}") for step in range(STEPS + 1)]
    for key in ("controller", "baseline", "best_reward"):
        assert len({str(state[key]) for state in states}) > 3, key
    assert len({bytes(state["generator"].numpy()) for state in states}) == STEPS + 1
    models = [toy.weights(whole / "checkpoints" / f"step-{step}") for step in (0, 1, STEPS)]
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(models[0][name], models[1][name])
    assert not torch.equal(models[1][name], models[2][name])


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_a_checkpoint_between_the_planned_ones_does_not_change_what_is_best(task, monkeypatch):
    options = REINFORCE | {"checkpoint_every": 5}
    whole = task.run("rare", **options)
    pieces = run_in_pieces(task, "rare-pieces", monkeypatch, **options)
    toy.assert_same(whole, pieces, checkpoints=False)
    for step in (0, 5, 10, 12):
        left, right = (toy.contents(run / "checkpoints" / f"step-{step}") for run in (whole, pieces))
        assert left == right


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_a_run_killed_while_it_closes_keeps_its_stop_reason(task, tmp_path):
    """Its steps are over, though fewer than asked for: none may follow."""
    whole = task.run("ceiling", **REINFORCE, stop=rl.config.Stop(kl_ceiling=1e-9))
    steps = len(toy.rows(whole))
    assert steps < STEPS
    folder = copied(whole, tmp_path / "run")
    reopen(folder)
    resume(folder)
    toy.assert_same(whole, folder)
    assert Run.open(folder).summary()["stop_reason"].startswith("KL ceiling")


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_a_run_killed_between_final_and_summary_is_closed(whole, tmp_path):
    folder = copied(whole, tmp_path / "run")
    kept = Run.open(folder).summary()
    del kept["after"]
    (folder / "summary.json").write_text(json.dumps(kept | {"stop_reason": None}))
    resume(folder)
    toy.assert_same(whole, folder)


# Real processes


PLAIN = {"steps": STEPS, "algorithm": "reinforce", "baseline": "moving", "learning_rate": 0.01}


def straight(task, name, **changed):
    return task.run(name, **PLAIN | changed)


def start(task, name, **changed):
    arguments = task.arguments(output_dir=task.folder / name, **PLAIN | changed)
    return subprocess.Popen(
        [sys.executable, "-m", "talltree", "rl", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=toy.ENVIRONMENT,
    )


def wait_for_rows(folder, count, process):
    limit = time.monotonic() + 120
    path = folder / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.002)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(task, number, status):
    name = number.name
    folder = task.folder / name
    process = start(task, name, steps=40, checkpoint_every=100)
    wait_for_rows(folder, 2, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert err == ""
    steps = len(toy.rows(folder))
    assert steps < 40
    last = out.strip().splitlines()[-1]
    assert last == f"{name}: saved step {steps}; continue with talltree rl --resume {folder}"
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step-0", f"step-{steps}"}
    assert Run.open(folder).summary()["stop_reason"] is None
    assert Run.open(folder).summary()["wall_time_seconds"] > 0
    resume(folder)
    toy.assert_same(
        straight(task, f"straight-{name}", steps=40, checkpoint_every=100), folder, checkpoints=False
    )


def test_kill_minus_9_at_a_random_moment_loses_nothing(task):
    folder = task.folder / "killed"
    process = start(task, "killed")
    wait_for_rows(folder, random.Random(os.getpid()).randint(1, 8), process)
    time.sleep(random.Random(time.time()).uniform(0.0, 0.1))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resume(folder)
    straight = task.run(
        "not-killed", steps=STEPS, algorithm="reinforce", baseline="moving", learning_rate=0.01
    )
    toy.assert_same(straight, folder)


@pytest.mark.usefixtures("no_waiting_for_the_disk")
@pytest.mark.parametrize("what", ["add_samples", "log"])
def test_a_full_disk_after_an_update_never_saves_weights_under_the_wrong_step(task, whole, what, monkeypatch):
    """The weights are already those of the next step, whose row and samples could not be written."""
    write = getattr(Run, what)

    def full(run, *content):
        if len(run.metrics()) == 4:
            raise RunError("no space left")
        return write(run, *content)

    monkeypatch.setattr(Run, what, full)
    with pytest.raises(RunError, match="no space left"):
        task.run(f"full-{what}", **REINFORCE, prompts=str(task.prompts))
    monkeypatch.setattr(Run, what, write)
    folder = task.folder / f"full-{what}"
    assert max(int(path.name[5:]) for path in (folder / "checkpoints").iterdir()) == 4
    resume(folder)
    toy.assert_same(whole, folder)


# What cannot be continued


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(whole, tmp_path, capsys):
    folder = killed_after(whole, 7, tmp_path / "run")
    state = folder / "checkpoints" / "step-7" / "state.safetensors"
    damaged = bytearray(state.read_bytes())
    damaged[-3] ^= 1
    state.write_bytes(damaged)
    resume(folder)
    said = capsys.readouterr().out
    assert f"{state.parent} is damaged: state.safetensors does not have the SHA-256" in said
    assert f"using {folder / 'checkpoints' / 'step-6'}, the newest good checkpoint" in said
    assert f"resuming {folder} after step 6 of 12" in said
    assert (folder / "discarded" / "step-7").is_dir()
    toy.assert_same(whole, folder)


def test_without_any_good_checkpoint_nothing_is_touched(whole, tmp_path):
    folder = killed_after(whole, 0, tmp_path / "run")
    (folder / "checkpoints" / "step-0" / "model.safetensors").unlink()
    before = toy.contents(folder)
    with pytest.raises(RunError, match="all 1 checkpoints in .* are damaged; start again"):
        resume(folder)
    after = toy.contents(folder)
    assert {name: after[name] for name in before if name != ".lock"} == {
        name: content for name, content in before.items() if name != ".lock"
    }


def test_an_ended_run_is_not_continued(whole):
    with pytest.raises(RunError, match="has ended .all 12 steps made.; nothing is left to resume"):
        resume(whole)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        resume(tmp_path / "none")
    with pytest.raises(RunError, match="is not a run folder"):
        resume(tmp_path)


def test_a_changed_base_model_is_refused(task, tmp_path):
    from ..tiny import llama, save

    model = save(tmp_path / "model", llama())
    run = task.run("other-base", steps=2, model_name_or_path=str(model))
    reopen(run)
    save(model, llama(seed=1))
    with pytest.raises(RunError, match="is not the model that .* started from: its weights have changed"):
        resume(run)


def test_changed_prompts_are_refused(task, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("w1 w2\nw3\n")
    run = task.run("other-prompts", steps=2, prompts=str(prompts))
    reopen(run)
    prompts.write_text("w1 w2\nw4\n")
    with pytest.raises(RunError, match=r"prompts .*prompts.txt have changed since"):
        resume(run)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"steps": 20}, "where steps is 12, but 20 is asked for"),
        ({"kl": KL(coef=0.2)}, "where kl.coef is 0.1, but 0.2 is asked for"),
        ({"algorithm": "grpo"}, "where algorithm is reinforce, but grpo is asked for"),
        ({"output_dir": "elsewhere"}, "but elsewhere is asked for"),
    ],
)
def test_another_option_than_the_run_has_is_refused(whole, tmp_path, asked, said):
    folder = killed_after(whole, 3, tmp_path / "run")
    with pytest.raises(ConfigError, match=said):
        resume(folder, **asked)


def test_the_same_option_again_is_no_conflict(whole, tmp_path):
    folder = killed_after(whole, 11, tmp_path / "run")
    resume(folder, steps=STEPS, kl=KL(target=0.05), optim="sgd", output_dir=str(folder))
    toy.assert_same(whole, folder)
