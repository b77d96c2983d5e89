"""Stage `reward`: the loss and its gradient, what a run learns and writes."""

import json
import math
from hashlib import sha256

import pytest
import torch

from talltree import rewards
from talltree.cli import run_stage
from talltree.config import flaws, from_dict, to_dict
from talltree.errors import DataError, RunError
from talltree.models.reward_format import Scale
from talltree.run import Run
from talltree.stages import reward
from talltree.stages.reward import loop
from talltree.stages.reward import parts as reward_parts
from talltree.stages.reward.accuracy import accuracy
from talltree.stages.reward.config import EnsembleOptions, ReferenceOptions
from talltree.stages.reward.measure import pairs_of, scores
from talltree.stages.reward.parts import load_parts
from talltree.stages.reward.update import backward, epoch_batches

from ..tiny import gpt2, gpt_neo, llama, save
from . import reward_toy as toy


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("reward"))


# The loss


def reference_loss(config, parts, batch):
    """The mean loss over some comparisons, one text at a time, by the definitions, in float64."""
    member = parts.learner.members[0]
    total = 0.0
    for each in batch:
        score = []
        for row in each.texts:
            hidden = member.model.base_model(input_ids=torch.tensor([parts.ids[row]])).last_hidden_state
            score.append((hidden[0, -1] @ member.head[0]).double() * 2.0 + 1.0)
        margin = config.margin * each.margin
        if config.loss == "bradley_terry":
            e = config.label_smoothing
            d = [score[i] - score[j] - margin for i, j in each.above]
            terms = [-(1 - e) * torch.log(torch.sigmoid(x)) - e * torch.log(1 - torch.sigmoid(x)) for x in d]
            loss = sum(terms) / len(terms)
        elif config.loss == "softmax":
            shifted = [score[0] - margin, *score[1:]]
            loss = -(shifted[0] - torch.stack(shifted).logsumexp(0))
        else:  # best, two in the middle, worst: both orders of the middle
            s = [score[0] - 2 * margin, score[1] - margin, score[2] - margin, score[3]]
            weight = [x.exp() for x in s]
            first = weight[0] / sum(weight)
            second = sum(
                weight[m] / sum(weight[1:]) * weight[3 - m] / (weight[3 - m] + weight[3]) for m in (1, 2)
            )
            loss = -(first * second).log()
        total = total + loss + config.centring * (sum(score) / len(score)) ** 2
    return total / len(batch)


@pytest.mark.parametrize(
    "changed",
    [
        {"loss": "plackett_luce", "margin": 0.3},
        {"loss": "bradley_terry", "label_smoothing": 0.1, "margin": 0.2},
        {"loss": "softmax", "centring": 0.05},
    ],
    ids=lambda changed: changed["loss"],
)
def test_loss_and_gradient_are_the_definition_however_the_batch_is_split(task, changed):
    parts = load_parts(toy.config(task, **changed))
    member, batch = parts.learner.members[0], parts.train[:7]
    weight = member.model.model.layers[0].mlp.up_proj.weight
    config = toy.config(task, **changed)
    expected = reference_loss(config, parts, batch)
    gradients = torch.autograd.grad(expected, [weight, member.head])
    for count in (None, 1, 3, 7):
        config = toy.config(task, gradient_accumulation_steps=count, **changed)
        judged = backward(config, member, [Scale(2.0, 1.0)], parts.ids, batch)
        assert judged.loss / 7 == pytest.approx(expected.item(), rel=1e-5)
        assert judged.pairs == 35
        for parameter, gradient in zip((weight, member.head), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
        member.model.zero_grad()


def test_candidates_pass_apart_without_changing_the_loss(task, monkeypatch):
    """A device that takes one text at a time splits a tuple over several passes."""
    parts = load_parts(toy.config(task))
    member, batch = parts.learner.members[0], parts.train[:5]
    found = []
    for tokens in (2048, 1):
        monkeypatch.setitem(reward_score().TOKENS_AT_A_TIME, "cpu", tokens)
        judged = backward(toy.config(task), member, [Scale(1.0, 0.0)], parts.ids, batch)
        found.append((judged.loss, member.head.grad.clone()))
        member.model.zero_grad()
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def reward_score():
    from talltree.models import score

    return score


def test_every_judgement_comes_once_an_epoch():
    batches = epoch_batches(30, 8, 1, 0)
    assert sorted(row for batch in batches for row in batch) == list(range(30))
    assert sorted(map(len, batches)) == [7, 7, 8, 8]
    assert epoch_batches(30, 8, 0, 0) != batches == epoch_batches(30, 8, 1, 0)


# A whole run


@pytest.mark.parametrize(
    ("family", "lora_r"),
    [(llama, None), (gpt2, 2), (gpt_neo, None)],
    ids=["llama", "gpt2 with lora", "gpt_neo"],
)
def test_it_learns_what_is_liked(tmp_path, family, lora_r):
    toy.make(tmp_path, 120, annotators=2)
    save(tmp_path / "model", family())
    reward.run(
        toy.config(tmp_path, lora_r=lora_r, epochs=3, learning_rate=0.03, validation_every=10, eos="append")
    )
    folder = Run.open(tmp_path / "run")
    summary, rows = folder.summary(), folder.metrics()
    assert summary["after"]["accuracy"]["mean"] > 0.75 > summary["before"]["accuracy"]["mean"]
    assert rows[0]["step"] == 0 and rows[-1]["step"] == summary["steps"] == 3 * math.ceil(108 / 8)
    assert rows[-1]["comparisons"] == 3 * 108 and rows[-1]["epoch"] == 3
    assert rows[-1]["preference/held_out_accuracy"] == pytest.approx(summary["after"]["accuracy"]["mean"])
    scored = rewards.load(str(tmp_path / "run"))
    # What lies in after.jsonl is what the saved model says; LoRA is merged, which rounds otherwise.
    for line in (tmp_path / "run" / "after.jsonl").read_text().splitlines():
        row = json.loads(line)
        found = scored([row["prompt"]] * 4, row["candidates"])
        assert found == pytest.approx(row["rewards"], abs=1e-3)
    references = [json.loads(line) for line in (tmp_path / "run/reference.jsonl").read_text().splitlines()]
    values = torch.tensor(
        scored([r["prompt"] for r in references], [r["completion"] for r in references]), dtype=torch.float64
    )
    assert values.mean().item() == pytest.approx(0, abs=1e-3)
    assert values.std(correction=0).item() == pytest.approx(1, abs=1e-3)


@pytest.fixture(scope="module")
def ran(task):
    """A run with everything that costs little."""
    reward.run(
        toy.config(
            task,
            "everything",
            ensemble=EnsembleOptions(size=2, combine="worst"),
            reference=ReferenceOptions(source="model", samples=12, max_completion_length=5),
            learning_curve=[0.2, 1.0, 0.5],
            loss="bradley_terry",
        )
    )
    return task / "everything"


def test_the_summary_says_what_was_asked_for(ran):
    summary = Run.open(ran).summary()
    after = summary["after"]
    assert summary["stop_reason"] == "all 7 steps made"
    assert [p["share"] for p in summary["learning_curve"]] == [0.2, 0.5, 1.0]
    assert [p["comparisons"] for p in summary["learning_curve"]] == [11, 27, 54]
    assert summary["learning_curve"][-1]["accuracy"] == after["accuracy"]
    assert after["accuracy"]["n"] == 5 * summary["data"]["held_out"]["comparisons"] == 30
    assert sum(r["n"] for r in after["by_margin"]) == sum(r["n"] for r in after["by_difference"]) == 30
    assert after["best"]["chance"] == 0.25
    assert len(summary["gain_and_bias"]["after"]) == 2
    assert "54 training comparisons are fewer than 2,000" in summary["warnings"][0]
    for name in ("calibration", "accuracy_by_margin", "accuracy_by_difference", "learning_curve"):
        assert (ran / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len((ran / "reference.jsonl").read_text().splitlines()) == 12
    assert (ran / "final/member-1/model.safetensors").is_file()
    card = (ran / "final/README.md").read_text()
    assert str(ran.parent) not in card
    for fact in (
        "2 heads (own body), combined by worst",
        "Split by: prompt",
        "Warning: 54 training",
        "text-class",
    ):
        assert fact in card, fact


def test_what_a_run_in_bfloat16_reports_is_what_its_model_gives(task, monkeypatch):
    """The saved model scores in float32, so gain, bias and figures are measured in float32, too."""
    monkeypatch.setattr(reward_parts, "compute_device", lambda *_: torch.device("cpu"))
    reward.run(toy.config(task, "halves", dtype="bfloat16"))
    scored = rewards.load(str(task / "halves"))
    for line in (task / "halves" / "after.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert scored([row["prompt"]] * 4, row["candidates"]) == pytest.approx(row["rewards"], abs=1e-5)


def test_a_run_folder_is_never_overwritten(ran, task):
    with pytest.raises(RunError, match="exists and is not empty"):
        reward.run(toy.config(task, "everything"))


def test_the_command_line_takes_the_file_bare_and_shows_every_option(task, capsys, monkeypatch):
    assert flaws(reward.Config) == []
    monkeypatch.setitem(stage_table(), "reward", ("talltree.stages.reward", ""))
    words = [
        str(task / "judgements.jsonl"),
        "--model_name_or_path",
        str(task / "model"),
        "--comparisons",
        "16",
    ]
    run_stage("reward", [*words, "--batch_size", "8", "--output_dir", str(task / "cli"), "--probes", "0"])
    assert Run.open(task / "cli").summary()["data"]["train"]["comparisons"] == 16
    assert "held-out accuracy" in capsys.readouterr().out
    assert from_dict(reward.Config, to_dict(toy.config(task))) == toy.config(task)


def stage_table():
    from talltree.cli import STAGES

    return STAGES


def test_fewer_comparisons_are_a_subset_of_more(task):
    some, more = (load_parts(toy.config(task, comparisons=n)) for n in (10, 30))
    assert [c.judgement for c in some.train] == [c.judgement for c in more.train[:10]]
    assert [c.judgement for c in some.held_out] == [c.judgement for c in more.held_out]


def test_held_out_judgements_of_their_own(task, capsys):
    rows = toy.tuples(5, seed=9)
    held = toy.write(task / "held.jsonl", rows)
    prompts = {row["prompt"] for row in rows}
    known = sum(row["prompt"] in prompts for row in toy.tuples(60))
    parts = load_parts(toy.config(task, validation_name=str(held)))
    assert len(parts.held_out) == 5 and parts.counts["split"]["rule"] == "given, by prompt"
    assert 0 < parts.counts["split"]["shared_prompt"] <= known
    assert prompts.isdisjoint(each.judgement.prompt for each in parts.train)
    assert len(parts.train) >= 60 - known - parts.counts["split"]["shared_candidates"]
    loop._say_data(toy.config(task), parts, 1)
    assert (
        f"split: {parts.counts['split']['shared_prompt']} training judgements with a held-out prompt were"
        in (capsys.readouterr().out)
    )
    with pytest.raises(DataError, match="besides .* with a held-out prompt, which --split_by items keeps"):
        load_parts(toy.config(task, validation_name=str(held), batch_size=60))
    kept = load_parts(toy.config(task, validation_name=str(held), split_by="items"))
    assert len(kept.train) == 60 - kept.counts["split"]["shared_candidates"]


def test_single_items_give_intervals_over_items(task):
    """One prompt, and every item meets every other: 30 items, pairs by how often w7 stands in them."""
    items = [" w7" * (n % 6) + f" w{1 + n % 11} w{1 + n // 11} w{1 + n % 7}" for n in range(30)]
    rows = [
        {"prompt": "w1 w2", "candidates": [items[i], items[j]], "best": int(i % 6 < j % 6)}
        for i in range(30) for j in range(i) if i % 6 != j % 6
    ]  # fmt: skip
    config = toy.config(task, dataset_name=toy.judged(task, "one_prompt", rows), validation_share=0.3)
    parts = load_parts(config)
    parts = parts._replace(learner=parts.learner._replace(scales=(Scale(1.0, 0.0),)))
    assert parts.by_texts and parts.counts["split"]["rule"] == "single items"
    found = scores(config, parts)
    pairs = pairs_of(parts, found.logit_TH[:, 0], found)
    assert all(pair.units == pair.texts for pair in pairs)
    by_items = accuracy(pairs)
    one_by_one = accuracy([pair._replace(units=(n,)) for n, pair in enumerate(pairs)])
    assert by_items["clusters"] == len({text for pair in pairs for text in pair.texts}) < len(pairs)
    assert by_items["high"] - by_items["low"] > 1.5 * (one_by_one["high"] - one_by_one["low"])


def test_two_files_of_one_name_are_both_watched(task, tmp_path):
    held = toy.write(tmp_path / "judgements.jsonl", toy.tuples(5, seed=9))
    parts = load_parts(toy.config(task, validation_name=str(held)))
    files = (task / "judgements.jsonl", held)
    assert list(parts.data_sha256.values()) == [sha256(path.read_bytes()).hexdigest() for path in files]
