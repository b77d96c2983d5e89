"""PPO as a run: it learns, its critic is saved and taken up again, and its options say what they do."""

import itertools

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from talltree import cli
from talltree.checkpoint import load_state
from talltree.errors import ConfigError, ModelError
from talltree.models.load import load_model
from talltree.run import Run
from talltree.stages import rl
from talltree.stages.rl.groups import KL, Best, Critic

from ..tiny import llama, save
from . import toy

ANY = Best(min_unique=0.0, min_distinct_2=0.0)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def tuned(task):
    """A run with a separate critic, for others to go on from."""
    return task.run("tuned", algorithm="ppo", learning_rate=0.01, prompts=str(task.prompts), best=ANY)


@pytest.mark.parametrize(
    "options",
    [
        {"critic": Critic(body="separate"), "learning_rate": 0.01},
        {"critic": Critic(body="shared"), "learning_rate": 0.01},
        {"critic": Critic(learning_rate=0.03), "lora_r": 4, "learning_rate": 0.02},
    ],
    ids=["separate", "shared", "lora"],
)
def test_a_tiny_model_earns_more_within_a_bounded_kl(task, options, request):
    run = task.run(
        f"learn-{request.node.callspec.id}", algorithm="ppo", **options, batch_size=32, num_generations=1,
        steps=12, checkpoint_every=12, eval_samples=64, kl=KL(coef=0.5, target=4.0, horizon=320.0), best=ANY,
    )  # fmt: skip
    summary, rows = Run.open(run).summary(), toy.rows(run)
    before, after = summary["before"], summary["after"]
    assert after["reward"]["low"] > 2 * before["reward"]["high"]
    assert 0 < after["kl"]["mean"] < 10
    assert abs(before["kl"]["mean"]) < 1e-4
    # The critic has learned to tell good states from bad ones; at first it knew nothing.
    assert rows[0]["value/explained_variance"] == 0
    assert rows[0]["value/mean"] == 0
    assert max(row["value/explained_variance"] for row in rows) > 0.2


def test_the_first_step_is_on_policy_and_later_passes_are_not(task):
    once = toy.rows(task.run("once", algorithm="ppo", num_iterations=1, steps=1))[0]
    assert once["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    assert once["policy/approx_kl"] == pytest.approx(0.0, abs=1e-8)
    assert once["policy/clip_share"] == once["value/clip_share"] == 0
    four = toy.rows(task.run("four", algorithm="ppo", steps=1, learning_rate=0.02))[0]
    assert four["policy/approx_kl"] > 1e-4
    assert four["value/clip_share"] > 0
    # Four passes are the default.
    same = toy.rows(task.run("four-asked", algorithm="ppo", steps=1, num_iterations=4, learning_rate=0.02))[0]
    assert same == four


@pytest.mark.parametrize("body", ["separate", "shared"])
def test_while_the_critic_warms_up_the_policy_keeps_every_bit(task, body):
    run = task.run(
        f"warmup-{body}", algorithm="ppo", steps=3, learning_rate=0.01, weight_decay=0.1, best=ANY,
        critic=Critic(body=body, warmup_steps=2), kl=KL(coef=0.1, target=1.0, horizon=60.0),
    )  # fmt: skip
    policies = [toy.weights(run / "checkpoints" / f"step-{step}") for step in range(4)]
    critics = [load_state(run / "checkpoints" / f"step-{step}")["critic"] for step in range(4)]
    for name, tensor in policies[0].items():
        assert torch.equal(tensor, policies[1][name]) and torch.equal(tensor, policies[2][name]), name
        assert not torch.equal(tensor, policies[3][name]), name
    for left, right in itertools.pairwise(critics):
        for name, tensor in left.items():
            assert not torch.equal(tensor, right[name]), name
    rows = toy.rows(run)
    assert [row["policy/grad_norm"] > 0 for row in rows] == [body == "shared", body == "shared", True]
    # The coefficient waits for the policy as well.
    assert [row["kl/coef"] for row in rows] == [0.1] * 3


def test_only_ppo_logs_values(task):
    rows = toy.rows(task.run("rloo", steps=1))
    assert not [key for key in rows[0] if key.startswith(("value/", "return/", "advantage/raw"))]
    assert rows[0]["policy/approx_kl"] == pytest.approx(0.0, abs=1e-8)


# The critic's folder


def test_the_critic_is_saved_in_the_hubs_layout(task, tuned):
    """score.weight . h + bias, read by the library's own class at any token, is the value."""
    from talltree.stages.rl.measure import seeded
    from talltree.stages.rl.parts import load_parts
    from talltree.stages.rl.state import load_weights

    config = rl.Config(
        output_dir="unused", **task.options(algorithm="ppo", learning_rate=0.01, prompts=str(task.prompts))
    )
    parts = load_parts(config)
    final = Run.open(tuned).summary()["final_step"]
    load_weights(config, parts, tuned / "checkpoints" / f"step-{final}")
    ids = torch.randint(1, 23, (1, 7), generator=seeded(0))
    mask = torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        expected = parts.critic.state_values([ids[0, :3].tolist()], ids[:, 3:], mask)[0]
    saved = AutoModelForSequenceClassification.from_pretrained(tuned / "critic", dtype=torch.float32)
    bias = saved.config.talltree_critic["bias"]
    with torch.no_grad():
        values = [saved.score(saved.model(ids).last_hidden_state)[0, place, 0] for place in range(2, 7)]
    torch.testing.assert_close(torch.stack(values) + bias, expected, atol=1e-6, rtol=0)
    assert expected.abs().max() > 0.01
    AutoTokenizer.from_pretrained(tuned / "critic")
    assert "lm_head.weight" not in load_file(tuned / "critic" / "model.safetensors")


@pytest.mark.parametrize("lora_r", [None, 2])
@pytest.mark.parametrize("body", ["separate", "shared"])
def test_a_later_round_starts_from_policy_and_critic_of_an_earlier_one(task, tuned, body, lora_r):
    """With another reference KL starts above 0, and preflight says what it measured."""
    name = f"later-{body}-{lora_r}"
    run = task.run(
        name, algorithm="ppo", steps=1, learning_rate=1e-3, lora_r=lora_r, prompts=str(task.prompts),
        model_name_or_path=str(tuned / "final"), reference_model_name_or_path=str(task.model),
        eval_samples=64, critic=Critic(body=body, init_from=str(tuned), head="loaded"), best=ANY,
    )  # fmt: skip
    row, summary = toy.rows(run)[0], Run.open(run).summary()
    assert row["kl/k3"] > 1e-3
    assert row["value/mean"] != 0
    checks = {check["name"]: check for check in summary["preflight"]}
    kl = checks["KL before the first update (nats a token)"]
    assert (kl["status"], kl["bound"]) == ("note", "finite: the reference is another model")
    assert float(kl["value"]) > 1e-3
    assert checks["values before the first update"]["bound"] == "any: the value head is a loaded one"
    # Before is the policy that the run started from, at its distance from the reference.
    assert summary["before"]["kl"]["mean"] == pytest.approx(
        Run.open(tuned).summary()["after"]["kl"]["mean"], abs=2.0
    )
    assert summary["before"]["kl"]["mean"] > 0.05


def test_the_start_is_measured_and_not_the_reference(task, tuned):
    """The first run's policy is at most as far from its reference as the second run's start."""
    run = task.run(
        "measured", steps=1, learning_rate=1e-9, model_name_or_path=str(tuned / "final"), eval_samples=64,
        reference_model_name_or_path=str(task.model), best=ANY,
    )  # fmt: skip
    summary = Run.open(run).summary()
    assert summary["before"]["kl"]["mean"] == pytest.approx(summary["after"]["kl"]["mean"], abs=1e-4)
    assert summary["before"]["kl"]["mean"] > 0.05


def test_a_reference_of_other_tokens_is_refused(task, tmp_path):
    other = save(tmp_path / "other", llama(vocabulary=19))
    with pytest.raises(ModelError, match="other has 19 tokens and the policy 23; KL needs a reference"):
        task.run("other-reference", reference_model_name_or_path=str(other))


# The required end


def test_a_completion_without_its_end_gets_the_penalty(task):
    """For every algorithm: reward and advantage are those of the fixed score; components stay as given."""
    for algorithm in ("rloo", "ppo"):
        run = task.run(
            f"penalty-{algorithm}", algorithm=algorithm, missing_eos_penalty=-2.5, steps=2,
            prompts=str(task.prompts), best=ANY,
        )  # fmt: skip
        samples = Run.open(run).samples().to_pylist()
        assert {row["ended"] for row in samples} == {True, False}
        for row in samples:
            assert row["ended"] == (row["completion_ids"][-1] == 0)
            if not row["ended"]:
                assert row["reward"] == -2.5
            else:
                assert row["reward"] >= 0
        assert toy.rows(run)[0]["completion/ended"] == sum(r["ended"] for r in samples[:6]) / 6


@pytest.mark.parametrize("algorithm", ["reinforce", "grpo", "ppo"])
def test_a_completion_ends_with_its_token_from_a_position_on(task, algorithm):
    run = task.run(
        f"truncate-{algorithm}", algorithm=algorithm, truncate_token="w5", truncate_after=2, steps=3,
        max_completion_length=12, batch_size=24, prompts=str(task.prompts), best=ANY,
    )  # fmt: skip
    samples = Run.open(run).samples().to_pylist()
    early = [row for row in samples if 5 in row["completion_ids"][:2]]
    assert early and any(len(row["completion_ids"]) > 2 for row in early)
    for row in samples:
        ids = row["completion_ids"]
        assert 5 not in ids[2:-1]
        assert row["ended"] == (ids[-1] == 5 and len(ids) > 2)
        # A stop token ends a completion as well, but is not the end that was asked for.
        assert row["ended"] or row["reward"] == -1
        assert row["ended"] or ids[-1] == 0 or len(ids) == 12
    assert {row["ended"] for row in samples} == {True, False}
    # The prompt w4 w5 w6 holds the token, and its completions are no shorter for it.
    assert any("w5" in row["prompt"] and not row["ended"] for row in samples)


# Refusals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lam": 0.9}, "lam belongs to ppo and would change nothing in rloo"),
        ({"vf_coef": 0.5}, "vf_coef belongs to ppo"),
        ({"whiten_rewards": False}, "whiten_rewards belongs to ppo"),
        ({"critic": Critic(body="shared")}, "critic belongs to ppo"),
        ({"algorithm": "ppo", "baseline": "batch"}, "baseline 'batch' does not belong to algorithm 'ppo'"),
        ({"algorithm": "ppo", "scale_rewards": True}, "scale_rewards belongs to grpo"),
        (
            {"algorithm": "ppo", "critic": Critic(head="loaded")},
            "critic.head loaded has nothing to load from",
        ),
        (
            {"algorithm": "ppo", "steps": 5, "critic": Critic(warmup_steps=5)},
            "critic.warmup_steps 5 leaves no step of 5 in which the policy learns; use 4 or less",
        ),
        (
            {"algorithm": "ppo", "critic": Critic(body="shared", init_from="x")},
            "critic.init_from x would change nothing: a shared body is the policy's",
        ),
        ({"truncate_after": 3}, "truncate_after 3 needs truncate_token as well, such as '.'"),
        ({"truncate_token": ""}, "truncate_token '' is no token"),
        (
            {"truncate_token": ".", "max_completion_length": 16},
            "truncate_after 16 leaves no position in max_completion_length 16 for truncate_token; use 15",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, said):
    with pytest.raises(ConfigError) as refused:
        rl.Config(**options).check()
    assert said in str(refused.value)


def test_defaults_are_ziegler_s():
    config = rl.Config(algorithm="ppo", truncate_token=".")
    config.check()
    assert (config.iterations, config.clip, config.value_coef, config.value_clip) == (4, (0.2, 0.2), 0.1, 0.2)
    assert (config.truncation_start, config.missing_end) == (16, -1.0)
    assert rl.Config().missing_end is None
    assert rl.Config().iterations == 1


def test_a_truncate_token_that_is_none_is_one_line(task, capsys):
    arguments = task.arguments(output_dir=task.folder / "no-token", truncate_token="w5 w6", truncate_after=2)
    assert cli.main(["rl", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert (
        "truncate_token 'w5 w6' is not the text of one token of this tokenizer, which reads it as [5, 6]"
        in line
    )


# Precision


def test_old_log_probs_are_read_again_where_the_paths_differ(task, capsys, monkeypatch):
    """The sampler on the library's cache, the trainer on the fast head: said and done before the update."""
    from talltree.stages.rl import parts, update

    read = []
    honest = update.likelihoods
    monkeypatch.setattr(update, "likelihoods", lambda *a, **k: read.append(1) or honest(*a, **k))
    task.run("same-path", algorithm="ppo", steps=1)
    assert not read
    assert "read again" not in capsys.readouterr().out
    monkeypatch.setattr(parts, "decode_view", lambda model: None)
    task.run("two-paths", algorithm="ppo", steps=1)
    assert len(read) == 1
    assert "old log-probs are read again in the trainer: sampler and trainer take different paths" in (
        capsys.readouterr().out
    )
    assert parts.recompute_reason(rl.Config(dtype="bfloat16"), load_model(str(task.model))) is not None
    assert parts.recompute_reason(rl.Config(fast=False), load_model(str(task.model))) is None


def test_a_critic_that_overflows_ends_the_run_at_a_sound_checkpoint(task, capsys):
    arguments = task.arguments(
        output_dir=task.folder / "overflow", algorithm="ppo", optim="sgd", max_grad_norm="null", steps=4,
        **{"critic.learning_rate": 1e38},
    )  # fmt: skip
    assert cli.main(["rl", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "stopped at step 1: non-finite" in line
    assert Run.open(task.folder / "overflow").summary()["final_step"] == 0
