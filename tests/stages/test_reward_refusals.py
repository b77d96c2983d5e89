"""Stage `reward`: what it refuses, in one line each."""

import dataclasses
import math

import pytest
import torch

from talltree.errors import ConfigError, ContractError, DataError, ModelError
from talltree.models.reward_format import Scale
from talltree.run import Run
from talltree.stages import reward
from talltree.stages.reward import loop
from talltree.stages.reward.config import EnsembleOptions, ReferenceOptions
from talltree.stages.reward.parts import load_parts

from ..tiny import llama, save
from . import reward_toy as toy


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("reward"))


def test_too_few_judgements_are_refused(task):
    few = toy.judged(task, "few", toy.tuples(6))
    with pytest.raises(
        DataError, match="has 5 training judgements, fewer than batch_size 8; .* batch_size 5"
    ):
        reward.run(toy.config(task, "few", dataset_name=few))
    assert not (task / "few").exists()
    with pytest.raises(DataError, match="comparisons 999 is more than the 54 training judgements"):
        load_parts(toy.config(task, comparisons=999))


def test_ties_alone_are_refused_and_counted_otherwise(task):
    rows = toy.tuples(40, size=2)
    ties = [{"prompt": r["prompt"], "candidates": r["candidates"], "tie": True} for r in rows]
    with pytest.raises(DataError, match="holds 40 judgements and none to learn from: 40 ties"):
        load_parts(toy.config(task, dataset_name=toy.judged(task, "ties", ties)))
    parts = load_parts(toy.config(task, dataset_name=toy.judged(task, "some_ties", [*rows, *ties[:7]])))
    assert parts.counts["left_out"]["ties"] == 7
    assert len(parts.train) + len(parts.held_out) == 40


def test_equal_candidates_and_no_held_out_judgement_are_refused(task):
    row = {"prompt": "w1", "candidates": [" w2", " w2"], "best": 0}
    with pytest.raises(DataError, match="line 1: .* are the same text"):
        load_parts(toy.config(task, dataset_name=toy.judged(task, "equal", [row])))
    ties = [{"prompt": "w1", "candidates": [" w2", " w3"], "tie": True}]
    with pytest.raises(DataError, match="no held-out judgement of .* is left"):
        load_parts(toy.config(task, validation_name=toy.judged(task, "tied", ties)))


def test_texts_longer_than_the_context_are_never_cut_in_silence(task, capsys):
    rows = toy.tuples(30)
    rows[4]["candidates"][rows[4]["best"]] = " w7" * 70
    data = toy.judged(task, "long", rows)
    with pytest.raises(DataError, match="1 of 120 texts, in 1 judgements, are longer than the 64 tokens"):
        load_parts(toy.config(task, dataset_name=data))
    dropped = load_parts(toy.config(task, dataset_name=data, too_long="drop"))
    assert dropped.counts["left_out"]["too_long"] == 1 and dropped.reading.too_long == "refuse"
    assert len(dropped.train) + len(dropped.held_out) == 29
    reward.run(toy.config(task, "cut", dataset_name=data, too_long="truncate", probes=0))
    assert "cut at the beginning to 64 tokens: 1 texts" in capsys.readouterr().out
    assert Run.open(task / "cut").summary()["data"]["truncated_texts"] == 1
    with pytest.raises(ConfigError, match="max_length 99 is more than the model's context of 64"):
        load_parts(toy.config(task, max_length=99))


def test_softmax_needs_a_best(task):
    rows = [{k: v for k, v in row.items() if k != "best"} for row in toy.tuples(30)]
    with pytest.raises(DataError, match="none to learn from: 30 without a single best"):
        load_parts(toy.config(task, dataset_name=toy.judged(task, "worst", rows), loss="softmax"))


def test_an_order_with_too_many_ways_is_refused(task):
    rows = toy.tuples(30)
    many = [f" w7 w{a} w{b}" for a in range(1, 10) for b in range(1, 4)][:18]
    rows.append({"prompt": "w1", "candidates": many, "ratings": [float(n < 14) for n in range(18)]})
    data = toy.judged(task, "many", rows)
    with pytest.raises(DataError, match="18 candidates leaves so many of them open .* --loss bradley_terry"):
        load_parts(toy.config(task, dataset_name=data))
    assert load_parts(toy.config(task, dataset_name=data, loss="bradley_terry")).train


def test_a_loss_that_is_not_finite_leaves_the_weights_and_says_so(task, monkeypatch):
    parts = load_parts(toy.config(task))
    parts = parts._replace(learner=parts.learner._replace(scales=(Scale(1.0, 0.0),)))
    member = parts.learner.members[0]
    with torch.no_grad():
        member.model.model.norm.weight[0] = math.nan
    before = member.head.detach().clone()
    batches = loop._batches(toy.config(task), parts, 0)
    with pytest.raises(ContractError, match="loss nan .* not finite; the weights were left as they were"):
        loop.update(toy.config(task), parts.learner, parts.ids, batches, 0, 10)
    assert torch.equal(member.head, before) and member.head.grad is None

    def broken(*arguments):
        raise ContractError("loss nan")

    monkeypatch.setattr(loop, "update", broken)
    with pytest.raises(ContractError, match="step 1: loss nan; step 0 is saved"):
        reward.run(toy.config(task, "broken"))
    assert Run.open(task / "broken").summary()["stop_reason"] is None


def test_models_that_cannot_serve_are_refused(task, tmp_path):
    with pytest.raises(ModelError, match="no reward head to keep"):
        load_parts(toy.config(task, head="kept"))
    small = save(tmp_path / "small", llama(vocabulary=12))
    with pytest.raises(ModelError, match="has tokens up to 22, but the model has 12 tokens"):
        load_parts(toy.config(task, model_name_or_path=str(small)))
    from transformers import BertConfig, BertForSequenceClassification

    BertForSequenceClassification(
        BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=23
        )
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="has no head that reads the last token of a causal body"):
        load_member_of(tmp_path / "bert")


def load_member_of(folder):
    from talltree.models.reward_model import load_member

    return load_member(str(folder), 1, 0)


def test_reference_samples_that_are_all_alike_are_refused(task):
    same = ReferenceOptions(source="candidates", samples=2)
    parts = load_parts(toy.config(task))
    from talltree.stages.reward.parts import format_of
    from talltree.stages.reward.reference import References

    with pytest.raises(ContractError, match="the 3 reference samples all get the same score"):
        format_of(toy.config(task, reference=same), parts, References(["w1"] * 3, [" w2"] * 3), None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dataset_name": ""}, "dataset_name is required"),
        ({"head": "kept", "ensemble": EnsembleOptions(size=2)}, "head kept is one head"),
        ({"gradient_accumulation_steps": 9}, "gradient_accumulation_steps 9 is more than the 8"),
    ],
)
def test_combinations_that_cannot_run(task, changed, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(toy.config(task), **changed).check()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            ReferenceOptions(model_name_or_path="x"),
            "model_name_or_path 'x' .* set reference.source",
        ),
        (ReferenceOptions(truncate_token="."), "reference.truncate_token '.' .* set reference.source model"),
        (ReferenceOptions("model", truncate_token=""), "reference.truncate_token '' is no token"),
        (ReferenceOptions("model", truncate_token=".", truncate_after=96), "leaves no position .* use 95"),
    ],
)
def test_reference_samples_that_cannot_be(asked, message):
    with pytest.raises(ConfigError, match=message):
        asked.check()
