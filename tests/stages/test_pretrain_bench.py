"""`python -m bench pretrain`: both sides are asked for the same job, and a tiny one runs to its end."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench import pretrain
from bench.__main__ import main
from bench.shapes import Shape
from talltree.config import from_dict
from talltree.run import Run
from talltree.stages.pretrain import Config

TINY = Shape("tiny", "llama", 64, 32, 2, 2, 48, 16)


@pytest.fixture
def task(tmp_path):
    return {
        "shape": dataclasses.asdict(TINY), "rows": 8, "steps": 2, "data": str(tmp_path / "data"),
        "output": str(tmp_path / "out"), "device": "cpu", "ours": {"compile": False},
        "trainer": {"torch_compile": False, "use_cpu": True},
    }  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stage would take the GPU")
def test_both_sides_run_the_same_rows_from_the_same_weights(task, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "transformers.Trainer.training_step",
        _noting(seen, __import__("transformers").Trainer.training_step),
    )
    pretrain.work({**task, "side": "data"})
    found = {side: pretrain.work({**task, "side": side}) for side in ("ours", "trainer")}
    for result in found.values():
        assert len(result["steps"]) == 2
        assert all(step["tokens"] == 8 * 16 and step["seconds"] > 0 for step in result["steps"])
        assert result["peak_bytes"] > 0
    losses = [row["loss/train"] for row in Run.open(f"{task['output']}/run").metrics()]
    assert len(losses) == len(seen) == 4
    # The Trainer shuffles the rows and predicts one token a row less: equal at the start, near later.
    assert seen == pytest.approx(losses, rel=0.05)


def _noting(seen, step):
    def noted(self, *arguments, **named):
        loss = step(self, *arguments, **named)
        seen.append(float(loss))
        return loss

    return noted


def test_both_sides_are_asked_for_the_same_job(task):
    config = from_dict(Config, pretrain.settings(task))
    theirs = pretrain.trainer_settings(task)
    assert config.steps == theirs["max_steps"] == 4
    assert config.learning_rate == theirs["learning_rate"]
    assert config.weight_decay == theirs["weight_decay"]
    assert config.max_grad_norm == theirs["max_grad_norm"]
    assert config.adam_beta2 == theirs["adam_beta2"]
    assert config.schedule.name == theirs["lr_scheduler_type"]
    assert config.batch_size == theirs["per_device_train_batch_size"] * theirs["gradient_accumulation_steps"]
    assert (config.optimizer, theirs["optim"]) == ("adamw", "adamw_torch_fused")
    assert (config.dtype, theirs["bf16"]) == ("float32", False)


def test_settings_that_are_no_object_are_one_line(capsys):
    assert main(["pretrain", "--trainer", "[1]"]) == 2
    said = capsys.readouterr().err
    assert "--trainer: '[1]' is not a JSON object" in said and said.count("\n") == 1


def test_the_table_shows_both_sides(capsys):
    from bench.table import show

    figures = {"low": 1.0, "median": 2.0, "high": 3.0}
    side = {"seconds": figures, "tokens_per_second": figures, "peak_bytes": 1e9, "peak_gpu_bytes": None}
    machine = {
        "device": "cpu", "threads": 1, "torch": "2", "matrix_rate": 1e9, "copy": 1e9, "stream_layers": 1e9,
        "stream_head": 1e9,
    }  # fmt: skip
    row = {"name": "15m-16", "floor_seconds": 0.5, "ours": side, "trainer": side, "ratio": figures}
    show({"bench": "pretrain", "machine": machine, "rows": [row | {"memory_ratio": figures}]})
    said = capsys.readouterr().out
    assert "15m-16" in said and "trainer" in said and "4.00" in said
