"""Stage `rl`: it learns, what it computes is what the table of algorithms says, and what it writes."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from talltree import cli
from talltree.config import flaws
from talltree.errors import ConfigError, ContractError
from talltree.run import Run
from talltree.stages import rl
from talltree.stages.rl.config import KL, Best

from . import toy


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy"))


def test_every_option_has_help_and_a_default_that_its_own_rules_accept():
    assert flaws(rl.Config) == []


# Learning


@pytest.mark.parametrize("lora_r", [None, 4], ids=["full", "lora"])
@pytest.mark.parametrize(
    "options",
    [
        {"algorithm": "reinforce", "baseline": "batch"},
        {"algorithm": "reinforce", "baseline": "moving"},
        {"algorithm": "rloo"},
        {"algorithm": "grpo"},
        {"algorithm": "grpo", "scale_rewards": False, "constant_length": True, "num_iterations": 2},
    ],
    ids=["reinforce batch", "reinforce moving", "rloo", "grpo", "Dr. GRPO"],
)
def test_a_tiny_model_earns_more_within_a_bounded_kl(task, options, lora_r, request):
    name = request.node.callspec.id.replace(" ", "-")
    run = task.run(
        f"learn-{name}", **options, lora_r=lora_r, learning_rate=0.03 if lora_r else 0.01, batch_size=32,
        num_generations=8, steps=30, checkpoint_every=30, eval_samples=128, kl=KL(coef=0.5),
    )  # fmt: skip
    summary = Run.open(run).summary()
    before, after = summary["before"], summary["after"]
    assert after["reward"]["low"] > 2 * before["reward"]["high"]
    assert 0 < after["kl"]["mean"] < 10
    assert abs(before["kl"]["mean"]) < 1e-4
    assert summary["steps"] == 30


def test_the_kl_coefficient_holds_the_policy_back(task):
    kl = [
        Run.open(
            task.run(f"price-{coef:g}", kl=KL(coef=coef), batch_size=32, num_generations=8, steps=20,
                     learning_rate=0.01, checkpoint_every=20, eval_samples=64)
        ).summary()["after"]["kl"]["mean"]
        for coef in (0.0, 1.0)
    ]  # fmt: skip
    assert kl[1] < 0.5 * kl[0]


def test_the_adaptive_coefficient_follows_its_rule(task):
    run = task.run("adaptive", steps=6, learning_rate=0.02, kl=KL(coef=0.1, target=0.5, horizon=60))
    rows = toy.rows(run)
    coef = 0.1
    for row in rows:
        assert row["kl/coef"] == pytest.approx(coef, rel=1e-12)
        error = min(max(row["kl/sequence"] / 0.5 - 1, -0.2), 0.2)
        coef *= 1 + error * 6 / 60
    assert rows[-1]["kl/coef"] != 0.1


# What one step computes


def test_the_same_seed_gives_the_same_bits_and_another_does_not(task):
    options = {"algorithm": "grpo", "num_mini_batches": 2, "prompts": str(task.prompts)}
    first, second, other = (
        task.run(name, seed=seed, **options) for name, seed in (("one", 5), ("two", 5), ("three", 6))
    )
    toy.assert_same(first, second)
    assert toy.rows(first) != toy.rows(other)


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_the_number_of_parts_does_not_change_the_loss(task, algorithm):
    runs = [
        task.run(f"{algorithm}-parts-{parts}", algorithm=algorithm, gradient_accumulation_steps=parts,
                 steps=2, optim="sgd", learning_rate=0.1, prompts=str(task.prompts), batch_size=9)
        for parts in (1, 3, 4)
    ]  # fmt: skip
    whole, *split = (toy.rows(run) for run in runs)
    for rows in split:
        for row, expected in zip(rows, whole, strict=True):
            for key in ("policy/loss", "policy/grad_norm", "policy/entropy", "policy/ratio_mean"):
                assert row[key] == pytest.approx(expected[key], rel=1e-6, abs=1e-6), key
    for run in runs[1:]:
        for name, tensor in toy.checkpoint(run, 2).items():
            torch.testing.assert_close(tensor, toy.checkpoint(runs[0], 2)[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("algorithm", ["reinforce", "rloo", "grpo"])
@pytest.mark.parametrize("lora_r", [None, 2])
def test_at_the_first_update_the_ratio_is_1_and_the_kl_0(task, algorithm, lora_r):
    run = task.run(f"first-{algorithm}-{lora_r}", algorithm=algorithm, lora_r=lora_r, steps=1)
    row = toy.rows(run)[0]
    assert row["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    assert row["policy/clip_share"] == 0
    for key in ("kl/sequence", "kl/token", "kl/k3"):
        assert row[key] == pytest.approx(0.0, abs=1e-4), key


def test_an_sgd_step_is_the_gradient_of_the_stored_samples(task):
    """Over the second step: -sum(A * logp) / N, A = R - mean of the others' R, R = r - coef * KL."""
    coef, rate, temperature = 0.3, 0.5, 1.3
    run = task.run(
        "by-hand", optim="sgd", learning_rate=rate, max_grad_norm=None, steps=2, kl=KL(coef=coef),
        temperature=temperature, prompts=str(task.prompts),
    )  # fmt: skip
    samples = [row for row in Run.open(run).samples().to_pylist() if row["step"] == 2]
    policy = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / "step-1", dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)

    def logp(model, row):
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        logits = model(input_ids=ids).logits[0, len(row["prompt_ids"]) - 1 : -1] / temperature
        return torch.log_softmax(logits, -1).gather(1, ids[0, len(row["prompt_ids"]) :, None]).sum()

    loss = torch.zeros(())
    for group in (samples[:3], samples[3:]):
        kl = [float(logp(policy, row) - logp(reference, row)) for row in group]
        assert any(abs(value) > 1e-3 for value in kl)
        returns = [row["reward"] - coef * value for row, value in zip(group, kl, strict=True)]
        for i, row in enumerate(group):
            advantage = returns[i] - sum(returns[:i] + returns[i + 1 :]) / 2
            assert row["advantage"] == pytest.approx(advantage, abs=1e-4)
            assert row["kl"] == pytest.approx(kl[i], abs=1e-4)
            assert row["ref_logp"] == pytest.approx(float(logp(reference, row)), abs=1e-4)
            loss = loss - advantage * logp(policy, row) / 6
    loss.backward()
    assert toy.rows(run)[1]["policy/loss"] == pytest.approx(loss.item(), abs=1e-4)
    after = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / "step-2", dtype=torch.float32)
    moved = 0.0
    for (name, start), end in zip(policy.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(end.data, start.data - rate * start.grad, atol=1e-5, rtol=1e-4, msg=name)
        moved += float((end - start).abs().sum())
    assert moved > 0.1


def test_the_learning_rate_rises_and_falls_per_update(task):
    run = task.run(
        "schedule", algorithm="grpo", num_iterations=2, steps=3, warmup_steps=2, learning_rate=0.01,
        lr_scheduler_type="linear",
    )  # fmt: skip
    # Updates 0 and 1 rise to 1/2 and 1; the other four fall from 1 by quarters: 1, 3/4, 1/2, 1/4.
    assert [row["policy/learning_rate"] for row in toy.rows(run)] == pytest.approx([0.01, 0.0075, 0.0025])


def test_several_passes_move_the_ratio_and_clip(task):
    run = task.run("passes", algorithm="grpo", num_iterations=4, steps=2, learning_rate=0.05, epsilon=0.1)
    for row in toy.rows(run):
        assert row["policy/clip_share"] > 0
        assert row["policy/ratio_mean"] != pytest.approx(1.0, abs=1e-4)


# Rewards


def test_a_completion_that_is_not_scored_teaches_nothing(task):
    reward = toy.scripted(
        task, "some", "return [None if i % 2 else float(len(t.split()) + i) for i, t in enumerate(texts)]"
    )
    run = task.run("unscored", reward=reward, num_generations=3, batch_size=6)
    samples = Run.open(run).samples().to_pylist()
    for row, i in zip(samples, list(range(6)) * 3, strict=True):
        if i % 2:
            assert row["reward"] is None
            assert row["advantage"] == 0
        else:
            assert row["reward"] is not None
    for row in toy.rows(run):
        scored = [s["reward"] for s in samples if s["step"] == row["step"] and s["reward"] is not None]
        assert row["reward/mean"] == pytest.approx(sum(scored) / 3)
        assert row["reward/max"] == max(scored)


def test_a_group_counts_as_equal_by_its_scored_rewards_alone(task):
    """None is not 0: a group of (None, 1, 1) has nothing to learn from; one of (0, 1, None) has."""
    reward = toy.scripted(task, "equal", "return ([None, 1.0, 1.0, 0.0, 1.0, None] * 2)[: len(texts)]")
    run = task.run("zero-variance", reward=reward, steps=1)
    assert toy.rows(run)[0]["groups/zero_variance"] == 0.5


def test_several_rewards_are_logged_one_by_one(task):
    file = task.folder / "both.py"
    file.write_text(
        "def tens_of(prompts, completions, tens):\n    return [float(ten) for ten in tens]\n"
        "def words(prompts, completions):\n    return [float(len(text.split())) for text in completions]\n"
    )
    run = task.run("both", reward=f"{file}:words - 0.5*{file}:tens_of", prompts=str(task.prompts))
    samples = Run.open(run).samples().to_pylist()
    for row in samples:
        assert row["reward/words"] == len(row["completion"].split())
        assert row["reward"] == pytest.approx(row["reward/words"] - 0.5 * row["reward/tens_of"])
    assert len({row["reward/tens_of"] for row in samples}) > 1
    for row in toy.rows(run):
        mine = [sample for sample in samples if sample["step"] == row["step"]]
        for name in ("words", "tens_of"):
            assert row[f"reward/{name}"] == pytest.approx(sum(s[f"reward/{name}"] for s in mine) / 6)


def test_a_component_may_not_be_called_like_a_metric(task, capsys):
    file = task.folder / "mean.py"
    file.write_text("def mean(prompts, completions):\n    return [float(len(t)) for t in completions]\n")
    arguments = task.arguments(output_dir=task.folder / "clash", reward=f"{file}:mean + {task.reward}:count")
    assert cli.main(["rl", *arguments]) == 2
    error = capsys.readouterr().err
    assert "a reward component cannot be called 'mean'" in error
    assert not (task.folder / "clash").exists()


# What is written


def test_the_run_folder_has_what_scripts_rely_on(task):
    run = task.run("folder", steps=4, prompts=str(task.prompts), eval_samples=8)
    summary = Run.open(run).summary()
    assert summary.keys() == {
        "stage", "model", "algorithm", "reward", "kl_coef", "evaluated_on", "preflight", "before", "after",
        "steps", "kl_coef_end", "best_step", "final_step", "stop_reason", "wall_time_seconds",
    }  # fmt: skip
    for side in ("before", "after"):
        for key in ("reward", "kl", "length"):
            low, mean, high = (summary[side][key][part] for part in ("low", "mean", "high"))
            assert low <= mean <= high
        for key in ("distinct_1", "distinct_2", "unique"):
            assert 0 < summary[side][key] <= 1
        assert summary[side]["samples"] == 8
    assert summary["stop_reason"] == "all 4 steps made"
    assert {check["status"] for check in summary["preflight"]} <= {"ok", "note"}
    assert len(Run.open(run).metrics()) == 4
    assert not (run / "samples").exists()

    samples = Run.open(run).samples()
    assert set(samples.column_names) == {
        "step", "prompt", "completion", "prompt_ids", "completion_ids", "reward", "kl", "logp", "ref_logp",
        "advantage", "ended", "spans",
    }  # fmt: skip
    rows = samples.to_pylist()
    assert [row["step"] for row in rows] == [step for step in (1, 2, 3, 4) for _ in range(6)]
    assert any(row["ended"] for row in rows) and not all(row["ended"] for row in rows)
    for row in rows:
        assert row["ended"] == (row["completion_ids"][-1] == 0)
        assert 0 not in row["completion_ids"][:-1]
        assert row["completion"].split() == [f"w{i}" for i in row["completion_ids"] if i]
        assert row["kl"] == pytest.approx(row["logp"] - row["ref_logp"], abs=1e-9)

    model = AutoModelForCausalLM.from_pretrained(run / "final")
    AutoTokenizer.from_pretrained(run / "final")
    best = load_file(run / "checkpoints" / f"step-{summary['final_step']}" / "model.safetensors")
    for name, tensor in model.state_dict().items():
        if name in best:
            assert torch.equal(tensor, best[name])


def test_final_of_a_lora_run_is_a_whole_model(task):
    run = task.run("merged", lora_r=2, learning_rate=0.05, best=Best(min_unique=0.0, min_distinct_2=0.0))
    final = AutoModelForCausalLM.from_pretrained(run / "final")
    base = AutoModelForCausalLM.from_pretrained(task.model)
    assert [name for name, _ in final.named_parameters()] == [name for name, _ in base.named_parameters()]
    ids = torch.tensor([[1, 2, 3]])
    assert not torch.allclose(final(ids).logits, base(ids).logits, atol=1e-3)


def test_both_units_of_the_coefficient_are_printed(task, capsys):
    for name, option in (("nat", {"kl.coef": 0.5}), ("study", {"beta": 49.5})):
        arguments = task.arguments(output_dir=task.folder / name, steps=1, **option)
        assert cli.main(["rl", *arguments]) == 0
        assert "KL coefficient 0.5 per nat (beta 49.5 in the study's unit)" in capsys.readouterr().out
    # One unit or the other: the same run.
    assert toy.rows(task.folder / "nat") == toy.rows(task.folder / "study")


# Options that contradict each other


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kl": KL(loss="k1")}, "kl.loss k1 as a loss has zero expected gradient; use k3 or k2"),
        ({"kl": KL(coef=0.1), "beta": 10.0}, "kl.coef 0.1 and beta 10 state the same thing"),
        ({"kl": KL(coef=0.0, target=6.0)}, "kl.target 6 cannot be reached from a coefficient of 0"),
        ({"kl": KL(coef=0.1, gain=1.0)}, "kl.gain 1 has no target to follow; set kl.target"),
        ({"kl": KL(target=6.0, horizon=1.0)}, "kl.horizon 1 is too short for batch_size 64; use 640 or more"),
        ({"num_generations": 1}, "num_generations 1 is too few for rloo; use 2 or more"),
        ({"batch_size": 30}, "batch_size 30 is not divisible by num_generations 8; try 24 or 32"),
        ({"num_mini_batches": 3}, "batch_size 64 is not divisible by num_mini_batches 3; try 2 or 4"),
        ({"num_iterations": 2}, "rloo is exact for one update a step, and this makes 2; set epsilon 0.2"),
        (
            {"gradient_accumulation_steps": 65},
            "gradient_accumulation_steps 65 is more than the 64 completions",
        ),
        ({"scale_rewards": False}, "scale_rewards belongs to grpo and would change nothing in rloo"),
        ({"constant_length": True}, "constant_length belongs to grpo"),
        ({"kl": KL(loss="k2")}, "kl.loss belongs to grpo"),
        ({"baseline": "batch"}, "baseline 'batch' does not belong to algorithm 'rloo'"),
        ({"epsilon_high": 0.3}, "epsilon_high 0.3 needs epsilon as well"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, said):
    with pytest.raises(ConfigError) as refused:
        rl.Config(**options).check()
    assert said in str(refused.value)


def test_a_model_that_breaks_the_contract_does_not_start(task, monkeypatch):
    """Dropout that stays on: the sampler and the trainer then disagree."""
    from talltree.stages.rl import parts

    load = parts.load_model

    def with_dropout(name):
        model = load(name)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        return model.train()

    monkeypatch.setattr(parts, "load_model", with_dropout)
    with pytest.raises(ContractError, match="preflight stopped the run"):
        task.run("dropout")
    table = Run.open(task.folder / "dropout").summary()["preflight"]
    assert "breach" in {check["status"] for check in table}
    assert json.loads((task.folder / "dropout" / "summary.json").read_text())["stop_reason"] is None
