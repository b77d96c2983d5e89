"""The benchmarks: their arithmetic by hand, what they refuse, and a tiny shape from end to end; no timing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import commands, machine, ours, peer, sampling, weights
from bench.__main__ import main
from bench.ratios import Spread, fastest, median_phases, paired, spread
from bench.roofline import roofline
from bench.shapes import ROWS, SHAPES, Row, Shape, find_rows, from_json, to_json
from bench.table import show
from bench.worker import measure
from talltree.config import from_dict
from talltree.errors import ConfigError, RunError
from talltree.stages import rl

HAS_TRL = importlib.util.find_spec("trl") is not None
TINY = Shape("tiny", "llama", 64, 32, 2, 2, 48, 64)
SMALL = {
    "llama": TINY,
    "gpt_neo": Shape("tiny", "gpt_neo", 64, 32, 2, 2, 128, 64, window=8),
    "gpt2": Shape("tiny", "gpt2", 64, 32, 2, 2, 128, 64),
}
ROW = Row(TINY, sequences=4, group=2, tokens=5)


def test_matrix_parameters_by_hand() -> None:
    assert TINY.matrix_parameters == 2 * (4 * 32 * 32 + 3 * 32 * 48) + 64 * 32
    assert SMALL["gpt2"].matrix_parameters == 2 * (4 * 32 * 32 + 2 * 32 * 128) + 64 * 32
    assert SHAPES["15m"].matrix_parameters == 15_187_968
    assert SHAPES["33m"].matrix_parameters == 66_908_928
    assert SHAPES["124m"].matrix_parameters == 123_532_032


@pytest.mark.parametrize("family", SMALL)
def test_matrix_parameters_are_those_of_the_model(family: str) -> None:
    model = weights.build(SMALL[family])
    matrices = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and "wpe" not in name
    )
    assert SMALL[family].matrix_parameters == matrices


def test_roofline_by_hand() -> None:
    """P = 15,187,968: 10 P tokens / rate at 64 sequences; at 10, decoding is bound by 4 P bytes a token."""
    wide = roofline(ROWS["15m-64"], flops=150e9, bandwidth=25e9)
    assert wide.step == pytest.approx(10 * 15_187_968 * 6400 / 150e9)
    assert wide.step == pytest.approx(6.48, abs=0.01)
    assert wide.sample == wide.reference == wide.forward == pytest.approx(wide.backward / 2)
    narrow = roofline(ROWS["15m-10"], flops=150e9, bandwidth=25e9)
    assert narrow.sample == pytest.approx(100 * 4 * 15_187_968 / 25e9)
    assert narrow.step == pytest.approx(0.2430 + 8 * 15_187_968 * 1000 / 150e9, abs=1e-3)
    assert roofline(ROWS["33m-64"], 150e9, 25e9).step == pytest.approx(28.5, abs=0.1)
    assert roofline(ROWS["33m-10"], 150e9, 25e9).step == pytest.approx(4.6, abs=0.1)


def test_ratios_by_hand() -> None:
    """Pairs 6/2, 4/4 and 10/5: 3, 1 and 2."""
    assert paired([[2.0, 4.0], [5.0]], [[6.0, 4.0], [10.0]]) == Spread(1.0, 2.0, 3.0)
    assert spread([4.0, 1.0, 2.0, 3.0]) == Spread(1.0, 2.5, 4.0)
    steps = [{"phases": {"sample": value, "train": 2 * value}} for value in (1.0, 5.0, 3.0)]
    assert median_phases(steps) == {"sample": 3.0, "train": 6.0}
    with pytest.raises(ValueError):
        paired([[1.0, 2.0]], [[1.0]])


def test_summary_and_comparison_by_hand() -> None:
    def round_of(seconds: list[float], peak: int) -> dict[str, object]:
        steps = [{"seconds": s, "phases": {"all": s}, "tokens": 100} for s in seconds]
        return {"steps": steps, "peak_bytes": peak, "peak_gpu_bytes": None}

    mine = [round_of([1.0, 2.0], 50), round_of([1.0, 4.0], 40)]
    theirs = [round_of([3.0, 8.0], 100), round_of([5.0, 4.0], 120)]
    result = commands.summary(mine)
    assert result["seconds"] == {"low": 1.0, "median": 1.5, "high": 4.0}
    assert result["tokens_per_second"] == {"low": 25.0, "median": 75.0, "high": 100.0}
    assert result["peak_bytes"] == 50
    compared = commands.compare(mine, theirs)
    assert compared["ratio"] == {"low": 1.0, "median": 3.5, "high": 5.0}
    assert compared["memory_ratio"] == {"low": 2.0, "median": 2.5, "high": 3.0}


def test_fastest_takes_the_best_of_each_figure() -> None:
    def measured(rate: float, copy: float) -> dict[str, object]:
        figures = {"matrix_rate": rate, "copy": copy, "stream_layers": 1.0, "stream_head": 1.0}
        return {**figures, "bandwidth": copy, "squares": {"512": rate}, "threads": 1}

    best = fastest([measured(10.0, 5.0), measured(8.0, 7.0)])
    assert best["matrix_rate"] == 10.0 and best["copy"] == 7.0 and best["squares"] == {"512": 10.0}


@pytest.mark.parametrize("arguments", [["rl"], ["sample"]])
def test_an_unknown_row_is_refused_in_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--rows", "15m-10,15m-11"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "bench: error: --rows: no row '15m-11'; nearest: 15m-10; "
        "rows: 15m-10, 15m-64, 33m-10, 33m-64, 124m-8\n"
    )


def test_other_mistakes_are_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["rm"], ["rl", "--trl", "3"], ["scale", "--output", str(tmp_path / "no" / "x.json")]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ConfigError, match="names no row"):
        find_rows(" , ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "--device", "cuda", "--threads", "1"]) == 2
    assert capsys.readouterr().err.endswith("torch sees no GPU here; use --device cpu\n")


def test_rows_survive_json() -> None:
    for row in ROWS.values():
        assert from_json(json.loads(json.dumps(to_json(row)))) == row


@pytest.mark.parametrize("family", SMALL)
def test_the_stop_token_is_closed_but_not_impossible(family: str) -> None:
    """After any token, and far from it: below 1e-8 even among 64 tokens, where chance alone gives 1/64."""
    model = weights.build(SMALL[family])
    tokens = torch.arange(2, 62).unsqueeze(0)
    with torch.no_grad():
        probability_S = model(input_ids=tokens).logits[0].softmax(-1)[:, weights.STOP]
    assert float(probability_S.min()) > 0 and float(probability_S.max()) < 1e-8


def test_the_prompt_has_its_tokens_and_words_spread_over_letters() -> None:
    tokenizer = weights.tokenizer(64)
    assert tokenizer(weights.prompt())["input_ids"] == weights.prompt_ids() == [2, 3, 4, 5]
    assert len({word[0] for word in tokenizer.get_vocab() if word[0] != "<"}) == 26
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_peak_memory_of_a_child_is_its_own(tmp_path: Path) -> None:
    """ru_maxrss would not pass: it survives exec, so a child of a large parent looks as large."""
    ballast = torch.ones(512 * 2**20 // 4)
    before = machine.peak_memory()
    result = measure("weights", {"row": to_json(ROW), "model": str(tmp_path / "model")}, threads=1)
    assert result["peak_bytes"] < before - ballast.numel() * 2
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_failing_measurement_is_one_line() -> None:
    with pytest.raises(RunError, match="measurement weights ended with status 1: KeyError: 'row'") as error:
        measure("weights", {}, threads=1)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def tiny_row() -> dict[str, Any]:
    """Both sides of a tiny row, in processes of their own; ours alone where there is no TRL."""
    options = commands.Rl(threads=1, steps=2, rounds=1)
    return commands.rl_row(ROW, options, {}, HAS_TRL)


def test_a_tiny_step_of_ours_end_to_end(tiny_row: dict[str, Any]) -> None:
    (only,) = tiny_row["ours"]["rounds"]
    assert [step["tokens"] for step in only["steps"]] == [20, 20]
    for step in only["steps"]:
        assert list(step["phases"]) == ["sample", "score", "train", "rest"]
        assert sum(step["phases"].values()) == pytest.approx(step["seconds"])
        assert all(seconds > 0 for seconds in step["phases"].values())


@pytest.mark.skipif(not HAS_TRL, reason="trl is not installed; pip install -e '.[bench]'")
def test_a_tiny_step_of_trl_end_to_end(tiny_row: dict[str, Any]) -> None:
    (only,) = tiny_row["trl"]["rounds"]
    assert [step["tokens"] for step in only["steps"]] == [20, 20]
    for step in only["steps"]:
        assert list(step["phases"]) == list(peer.PHASES)
        assert sum(step["phases"].values()) == pytest.approx(step["seconds"])
        assert all(seconds > 0 for seconds in step["phases"].values())
    assert set(tiny_row["ratio"]) == set(tiny_row["memory_ratio"]) == {"low", "median", "high"}


def test_both_sides_are_asked_for_the_same_job() -> None:
    row = ROWS["15m-64"]
    task = {"row": to_json(row), "model": "m", "output": "o", "steps": 3, "device": "cpu"}
    mine = ours.settings(task)
    theirs = peer.settings(row, "cpu", mine["steps"], "o")
    assert theirs["beta"] == mine["kl"]["coef"] == 0.05
    assert theirs["max_steps"] == mine["steps"] == 5
    for name in ("num_generations", "max_completion_length", "learning_rate", "max_grad_norm", "seed"):
        assert theirs[name] == mine[name], name
    assert theirs["per_device_train_batch_size"] * theirs["gradient_accumulation_steps"] == 64
    assert mine["batch_size"] == 64
    config = from_dict(rl.Config, mine)
    assert (config.temperature, config.dtype, config.optim, config.weight_decay) == (
        1.0,
        "float32",
        "adamw",
        0.0,
    )
    assert config.iterations == config.num_mini_batches == 1


def test_a_tiny_sampling_end_to_end(tmp_path: Path) -> None:
    task = {"row": to_json(ROW), "model": str(tmp_path / "model"), "device": "cpu", "repetitions": 2}
    weights.work(task)
    result = sampling.work({**task, "generate": {}})
    assert result["tokens"] == {name: [20, 20] for name in sampling.CONTESTANTS}
    assert all(len(seconds) == 2 for seconds in result["seconds"].values())


def test_the_tables_show_every_row(tiny_row: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"matrix_rate": 1e11, "copy": 2e10, "stream_layers": 1e10, "stream_head": 1e10}
    about = {"device": "cpu", "threads": 1, "torch": "2", "squares": {"512": 1e11}, "bandwidth": 2e10}
    row = commands.with_roofline(tiny_row, {**figures, **about})
    for bench, shown in (("rl", "tiny-4"), ("scale", "5")):
        show({"bench": bench, "machine": {**figures, **about}, "rows": [row]})
        text = capsys.readouterr().out
        assert "100 GFLOP/s" in text and shown in text
