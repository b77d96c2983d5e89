"""`accelerate launch -m talltree pretrain`: several processes train what one trains, and one alone writes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from talltree.config import to_yaml
from talltree.data.corpus_options import CorpusOptions
from talltree.errors import ConfigError
from talltree.models.shape import Shape
from talltree.stages.pretrain import loop
from talltree.stages.pretrain.config import Config, Schedule
from talltree.stages.tokenizer import train as tokenizer

TINY = Shape(
    architecture="llama", hidden_size=16, layers=2, heads=2, kv_heads=1, intermediate_size=24, context=32
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Six updates of four rows in parts of one row, with everything that happens along the way."""
    folder = tmp_path_factory.mktemp("corpus")
    names, things = ["Tim", "Tom", "Ann", "Sue"], ["tree", "frog", "ball", "cake", "boat"]
    texts = [f"Once {a} saw a {b}. {a} and {c} liked it." for a in names for b in things for c in names]
    path = folder / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = CorpusOptions(validation_share=0.2)
    tokenizer.run(
        tokenizer.Config(
            dataset_name=str(path), output_dir=str(folder / "words"), vocab_size=300, corpus=corpus
        )
    )
    return Config(
        dataset_name=str(path), tokenizer_name_or_path=str(folder / "words" / "final"), model=TINY,
        output_dir=str(folder / "alone"), corpus=corpus, steps=6, batch_size=4, micro_batch_size=1,
        schedule=Schedule(warmup_steps=2), validation_every=3, sample_every=6,
        checkpoint_every=3, log_every=3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(config):
    loop.run(config)
    return loop.Path(config.output_dir)


def launch(arguments, *flags, processes=2):
    """The output of a launch, and its exit status."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", str(port), *flags, "-m", "talltree", "pretrain", *arguments),
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        said, _ = started.communicate(timeout=120)
    finally:
        # The launcher's children outlive it; a group that has ended is no error.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    return said, started.returncode


def written(config, output_dir, path):
    path.write_text(to_yaml(replace(config, output_dir=str(output_dir))))
    return ["--config", str(path)]


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


def assert_same_run(found, expected):
    """Losses and checkpoints within float32's rounding: the sums over a batch are made in another order.

    1e-5 in the loss; weights to 1e-4, since AdamW's first steps divide small gradients by their own size.
    """
    mine, theirs = rows(found), rows(expected)
    assert [row.keys() for row in mine] == [row.keys() for row in theirs]
    for row, other in zip(mine, theirs, strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-5)
    names = sorted(path.name for path in (expected / "checkpoints").iterdir())
    assert sorted(path.name for path in (found / "checkpoints").iterdir()) == names
    for name in names:
        for file in ("model.safetensors", "state.safetensors"):
            new, old = (load_file(folder / "checkpoints" / name / file) for folder in (found, expected))
            assert new.keys() == old.keys()
            for key in old:
                torch.testing.assert_close(new[key], old[key], rtol=1e-4, atol=1e-5)


def test_two_processes_are_one_and_resume_with_another_number(config, alone, tmp_path):
    said, status = launch(written(config, tmp_path / "two", tmp_path / "c.yaml"), "--multi_gpu")
    assert status == 0, said
    assert said.count("step 6/6") == said.count("written to") == said.count("2 processes") == 1
    assert_same_run(tmp_path / "two", alone)
    samples = [loop.Run.open(folder).samples().to_pylist() for folder in (tmp_path / "two", alone)]
    assert [row["prompt"] for row in samples[0]] == [row["prompt"] for row in samples[1]]
    # One process goes on where two stopped: from step 3, with nothing after it.
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["processes"] == 2
    loop.checkpoint.remove_folder(tmp_path / "two" / "checkpoints" / "step-6")
    (tmp_path / "two" / "summary.json").unlink()
    loop.run(Config(resume=str(tmp_path / "two")))
    assert_same_run(tmp_path / "two", alone)
    loop.checkpoint.remove_folder(tmp_path / "two" / "checkpoints" / "step-6")
    (tmp_path / "two" / "summary.json").unlink()
    said, status = launch(["--resume", str(tmp_path / "two")], "--multi_gpu")
    assert status == 0, said
    assert_same_run(tmp_path / "two", alone)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_batch_that_does_not_divide_is_one_line(config, tmp_path, monkeypatch, rank):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    odd = replace(config, batch_size=5, output_dir=str(tmp_path / "two"))
    line = "batch_size 5 is not divisible by the 2 processes of this launch; try 4 or 6"
    # Rank 0 speaks for all.
    with pytest.raises(SystemExit if rank else ConfigError, match="2" if rank else line):
        loop.run(odd)
    assert not (tmp_path / "two").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_sharding_and_bfloat16_on_a_cpu_are_refused(config, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="dtype bfloat16 is for GPUs"):
        loop.run(replace(config, dtype="bfloat16", output_dir=str(tmp_path / "two")))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="FSDP is for GPUs"):
        loop.run(replace(config, output_dir=str(tmp_path / "two")))
