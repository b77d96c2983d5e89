"""What the training stages share when they are stopped and resumed: memory, signals, threads, data."""

import json
import shlex

import pytest
import torch

from talltree.cli import run_stage
from talltree.config import parse
from talltree.errors import ConfigError, RunError
from talltree.interrupt import leave
from talltree.run import Run
from talltree.stages import pretrain, resuming, reward, sample, sft
from talltree.stages.pretrain import loop as pretrain_loop
from talltree.stages.reward import loop as reward_loop
from talltree.stages.sft import loop as sft_loop

from ..tiny import llama, save
from . import reward_toy
from .pretrain_toy import make_config, make_corpus, make_tokens

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
    MemoryError(),
]


def fails(error):
    def raising(*_, **__):
        raise error

    return raising


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Stage -> its module, its loop, the name of its update, a config, and the options that halve a part."""
    folder = tmp_path_factory.mktemp("memory")
    save(folder / "model", llama())
    rows = [{"prompt": f"w{1 + n % 9}", "completion": f" w{1 + n // 9} w2 w3"} for n in range(45)]
    reward_toy.write(folder / "pairs.jsonl", rows)
    reward_toy.write(folder / "judgements.jsonl", reward_toy.tuples(30))
    corpus = make_corpus(folder)
    tuned = sft.Config(
        model_name_or_path=str(folder / "model"), dataset_name=str(folder / "pairs.jsonl"), steps=2,
        batch_size=8, samples=0, output_dir=str(folder / "sft"), gradient_accumulation_steps=2,
    )  # fmt: skip
    return {
        "sft": (sft, sft_loop, "_update", tuned, "--gradient_accumulation_steps 4"),
        "reward": (
            reward, reward_loop, "update", reward_toy.config(folder, "reward"),
            "--gradient_accumulation_steps 8",
        ),
        "pretrain": (
            pretrain, pretrain_loop, "update",
            make_config(corpus, make_tokens(corpus, folder / "tokenizer"), folder / "pretrain"),
            "--micro_batch_size 2",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("stage", ["sft", "reward", "pretrain"])
def test_memory_that_runs_out_in_an_update_is_one_line_which_can_be_followed(configs, stage, monkeypatch):
    module, loop, update, config, smaller = configs[stage]
    with monkeypatch.context() as patch, pytest.raises(RunError) as caught:
        patch.setattr(loop, update, fails(FULL[0]))
        module.run(config)
    command = f"talltree {stage} --resume {config.output_dir} {smaller}"
    saved = "nothing is lost, as no step is saved yet" if stage == "pretrain" else "step 0 is saved"
    assert str(caught.value) == f"out of memory; {saved}: continue with {command}"
    run_stage(stage, shlex.split(command)[2:])
    assert Run.open(config.output_dir).summary()["stop_reason"] is not None


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_memory_that_runs_out_elsewhere_is_one_line_too(configs, error, monkeypatch, tmp_path):
    _, loop, _, config, _ = configs["sft"]
    config = type(config)(**{**vars(config), "output_dir": str(tmp_path / "run")})
    with monkeypatch.context() as patch:
        patch.setattr(loop, "load_parts", fails(error))
        with pytest.raises(RunError, match="out of memory while model and data were loaded; free memory"):
            sft.run(config)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(loop, "held_out_loss", fails(error))
    resume = f"talltree sft --resume {tmp_path / 'run'}"
    with pytest.raises(RunError, match=f"step 0 is saved: free memory and continue with {resume}$"):
        sft.run(config)


def test_an_error_that_is_not_of_memory_keeps_its_traceback(configs, monkeypatch, tmp_path):
    _, loop, _, config, _ = configs["sft"]
    monkeypatch.setattr(loop, "load_parts", fails(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        sft.run(type(config)(**{**vars(config), "output_dir": str(tmp_path / "run")}))


@pytest.mark.parametrize(("texts", "fix"), [(3, "--batch_size 1"), (1, "--max_completion_length 2")])
def test_sample_says_what_to_lower(configs, texts, fix, monkeypatch):
    monkeypatch.setattr("talltree.rollout.collect", fails(FULL[1]))
    config = sample.Config(
        model_name_or_path=configs["sft"][3].model_name_or_path, prompt="w1", batch_size=texts,
        max_completion_length=5,
    )  # fmt: skip
    with pytest.raises(RunError, match=f"memory with {texts} texts at a time of up to 5 tokens; try {fix}$"):
        sample.run(config)


def test_parts_double_until_each_is_one_row():
    assert resuming.more_parts(None, 32) == " --gradient_accumulation_steps 32"
    assert resuming.more_parts(3, 8) == " --gradient_accumulation_steps 6"
    assert resuming.more_parts(6, 8) == " --gradient_accumulation_steps 8"
    assert resuming.more_parts(8, 8) == resuming.more_parts(None, 1) == ""


def test_what_a_resume_changes_is_checked_with_the_rest_of_the_run(configs, tmp_path):
    config = configs["sft"][3]
    config = type(config)(**{**vars(config), "output_dir": str(tmp_path / "run")})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError):
        patch.setattr(sft_loop, "_update", fails(MemoryError()))
        sft.run(config)
    asked = parse(sft.Config, ["--resume", config.output_dir, "--gradient_accumulation_steps", "9"], "sft")
    with pytest.raises(ConfigError, match="gradient_accumulation_steps 9 is more than the 8 examples"):
        sft.run(asked)


def test_other_threads_and_other_data_are_said_and_refused(tmp_path):
    machine = {"torch_threads": torch.get_num_threads() + 1, "data_sha256": {"a.jsonl": "1", "b.jsonl": "2"}}
    with Run.create(tmp_path / "run", {}, machine) as folder:
        said: list[str] = []
        resuming.say_threads(folder, said.append)
        threads = torch.get_num_threads()
        (line,) = said
        assert line.startswith(
            f"this run was started with {threads + 1} threads and goes on with {threads}: "
        )
        assert line.endswith(f"OMP_NUM_THREADS={threads + 1} keeps them")
        resuming.require_same_data(folder, {"a.jsonl": "1", "b.jsonl": "2", "new.jsonl": "3"})
        for now in ({"a.jsonl": "1", "b.jsonl": "3"}, {"a.jsonl": "1"}):
            with pytest.raises(RunError, match="b.jsonl has changed since .*run was started"):
                resuming.require_same_data(folder, now)
        machine["torch_threads"] = threads
        (tmp_path / "run" / "environment.json").write_text(json.dumps(machine))
        resuming.say_threads(folder, said.append)
        assert len(said) == 1


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_says_what_is_saved_and_has_its_status(name, status, tmp_path):
    said: list[str] = []
    with pytest.raises(SystemExit) as caught:
        leave(name, 7, "sft", tmp_path, said.append)
    assert caught.value.code == status
    assert said == [f"{name}: saved step 7; continue with talltree sft --resume {tmp_path}"]
