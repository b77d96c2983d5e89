"""Stage `rl` ends by itself: ceilings, collapse, the best checkpoint, and numbers that are not finite."""

import math

import pytest
from safetensors.torch import load_file

from talltree import cli
from talltree.maths import losses
from talltree.run import Run
from talltree.stages.rl.config import KL, Best

from . import toy


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy"))


# Stops and the best checkpoint


def summary_of(task, name, **options):
    """Through the command line, which must exit with 0: an automatic stop is no error."""
    assert cli.main(["rl", *task.arguments(output_dir=task.folder / name, **options)]) == 0
    assert (task.folder / name / "final" / "config.json").is_file()
    return Run.open(task.folder / name).summary()


def test_a_kl_above_the_ceiling_ends_the_run(task):
    summary = summary_of(
        task, "ceiling", steps=40, learning_rate=0.05, **{"kl.coef": 0, "stop.kl_ceiling": 2}
    )
    rows = toy.rows(task.folder / "ceiling")
    assert summary["steps"] == len(rows) < 40
    assert [row["kl/sequence"] > 2 for row in rows] == [False] * (len(rows) - 1) + [True]
    kl = rows[-1]["kl/sequence"]
    assert summary["stop_reason"] == f"KL ceiling: {kl:.1f} nats a sequence at step {len(rows)}, above 2"


def test_a_collapse_ends_the_run(task):
    summary = summary_of(
        task, "collapse", steps=80, batch_size=24, learning_rate=0.05, optim="adamw", checkpoint_every=80,
        **{"kl.coef": 0, "stop.patience": 3, "stop.min_unique": 0.5, "stop.min_distinct_2": 0},
    )  # fmt: skip
    rows = toy.rows(task.folder / "collapse")
    assert summary["stop_reason"].startswith("collapse: ")
    assert len(rows) < 80
    assert all(row["diversity/unique"] < 0.5 for row in rows[-3:])


def test_a_constant_reward_ends_the_run(task):
    reward = toy.scripted(task, "constant", "return [2.5] * len(texts)")
    summary = summary_of(task, "constant", reward=reward, steps=40, **{"stop.constant_steps": 4})
    assert summary["stop_reason"] == "constant reward: 2.5 for every completion of 4 steps, nothing to learn"
    assert summary["steps"] == 4


def test_final_is_the_best_checkpoint_within_the_bounds(task):
    """Steps earn 1, 7, 3, 9, 2; step 4 earns most, but says the same thing six times: bound on `unique`."""
    reward = toy.scripted(
        task, "best", "return [[0, 1, 7, 3, 9, 2, 0, 0][call] + i / 100 for i in range(len(texts))]"
    )
    options = {"reward": reward, "steps": 5, "keep_checkpoints": 1, "learning_rate": 0.02}
    run = task.run("best", **options, best=Best(window=1, min_distinct_2=0.0))
    assert Run.open(run).summary()["best_step"] == 4
    (task.folder / "best.py").write_text((task.folder / "best.py").read_text().replace("7, 3, 9", "9, 3, 7"))
    run = task.run("best-2", **options, best=Best(window=1, min_distinct_2=0.0))
    summary = Run.open(run).summary()
    assert (summary["best_step"], summary["final_step"], summary["steps"]) == (2, 2, 5)
    # Long before the newest one that keep_checkpoints asks for, yet not deleted.
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-2", "step-5"}
    toy.assert_equal_weights(load_file(run / "final" / "model.safetensors"), toy.checkpoint(run, 2))
    run = task.run("best-3", **options, best=Best(window=3, min_distinct_2=0.0))
    # Means of up to three steps: 1, 5, 13/3, 19/3, 4.
    assert Run.open(run).summary()["best_step"] == 4


def test_without_a_checkpoint_within_the_bounds_final_is_the_last_one(task, capsys):
    best = Best(max_kl=1e-6, window=1)
    run = task.run("none-best", best=best, learning_rate=0.05, kl=KL(coef=0.0), checkpoint_every=3)
    assert toy.rows(run)[-1]["kl/sequence"] > 1e-6
    summary = Run.open(run).summary()
    assert (summary["best_step"], summary["final_step"]) == (None, 3)
    assert "so final/ is step 3" in capsys.readouterr().err
    toy.assert_equal_weights(load_file(run / "final" / "model.safetensors"), toy.checkpoint(run, 3))


# Numbers that are not finite


def fails(task, capsys, name, **options):
    assert cli.main(["rl", *task.arguments(output_dir=task.folder / name, **options)]) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if "error" in line]
    return line, Run.open(task.folder / name).summary()


@pytest.fixture(scope="module")
def sound(task):
    """The run that the broken ones equal until they break."""
    return task.run("sound", **BROKEN | {"reward": toy.scripted(task, "plain", SOUND), "checkpoint_every": 1})


SOUND = "return [float(text.count('w7')) for text in texts]"
BROKEN = {"steps": 4, "optim": "sgd", "learning_rate": 0.05, "checkpoint_every": 4}


def test_a_reward_beyond_float32_leaves_the_weights_alone(task, capsys, sound):
    reward = toy.scripted(
        task, "huge",
        SOUND + " if call != 3 else [1e39] * 6",
    )  # fmt: skip
    line, summary = fails(task, capsys, "huge", reward=reward, **BROKEN)
    assert "stopped at step 3: non-finite advantage, from rewards of" in line
    assert "to 1e+39; scale the reward down" in line
    assert summary["stop_reason"] in line
    toy.assert_equal_weights(toy.checkpoint(task.folder / "huge", 2), toy.checkpoint(sound, 2))
    toy.assert_equal_weights(
        load_file(task.folder / "huge" / "final" / "model.safetensors"), toy.checkpoint(sound, 2)
    )


def nan_loss(logp, old_logp, advantage):
    return -logp * advantage * math.nan


def nan_gradient(logp, old_logp, advantage):
    # sqrt has an infinite slope at 0, and 0 * inf is not a number.
    return -logp * advantage + (logp - logp.detach()).abs().sqrt()


@pytest.mark.parametrize(
    ("surrogate", "said"),
    [
        (nan_loss, "stopped at step 3: non-finite loss (nan)"),
        (nan_gradient, "stopped at step 3: non-finite gradient (norm nan)"),
    ],
)
def test_a_bad_update_leaves_the_weights_alone(task, capsys, sound, monkeypatch, surrogate, said):
    name = surrogate.__name__
    honest = losses.policy_gradient
    calls = iter(range(100))

    def failing(*tensors):
        return (surrogate if next(calls) == 2 else honest)(*tensors)

    monkeypatch.setattr(losses, "policy_gradient", failing)
    line, summary = fails(task, capsys, name, reward=toy.scripted(task, "plain", SOUND), **BROKEN)
    assert said in line
    assert summary["stop_reason"] == said
    assert summary["steps"] == 2
    toy.assert_equal_weights(toy.checkpoint(task.folder / name, 2), toy.checkpoint(sound, 2))
    toy.assert_equal_weights(
        load_file(task.folder / name / "final" / "model.safetensors"), toy.checkpoint(sound, 2)
    )


def test_a_step_that_breaks_between_its_updates_is_undone(task, capsys, monkeypatch):
    options = {"algorithm": "grpo", "num_iterations": 2, "steps": 4, "learning_rate": 0.01}
    sound = task.run("sound-2", **options)
    calls = iter(range(100))
    honest = losses.clipped

    def clipped(*bounds):
        surrogate = honest(*bounds)
        return lambda *tensors: surrogate(*tensors) * (math.nan if next(calls) == 5 else 1.0)

    monkeypatch.setattr(losses, "clipped", clipped)
    line, summary = fails(task, capsys, "between", **options)
    assert "stopped at step 3: non-finite loss (nan) in update 2 of the step" in line
    last = summary["final_step"]
    assert last <= 2
    toy.assert_equal_weights(
        load_file(task.folder / "between" / "final" / "model.safetensors"), toy.checkpoint(sound, last)
    )


def test_weights_that_overflow_never_reach_final(task, capsys):
    """A learning rate of 1e38 breaks the first update; final/ is the model that the run began with."""
    line, summary = fails(
        task, capsys, "overflow", optim="sgd", learning_rate=1e38, max_grad_norm="null",
        reward=toy.scripted(
            task, "thousands", "return [1e3 * (t.count('7') + i) for i, t in enumerate(texts)]"
        ),
    )  # fmt: skip
    assert "stopped at step 1: non-finite weights; learning_rate 1e+38 is too high" in line
    assert summary["final_step"] == 0
    toy.assert_equal_weights(
        load_file(task.folder / "overflow" / "final" / "model.safetensors"), toy.weights(task.model)
    )
