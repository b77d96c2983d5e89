"""Stage `pretrain`: schedule, optimisers, losses, exact resume, what is written."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from talltree.config import flaws, from_dict, to_dict
from talltree.errors import ConfigError, ContractError, TallTreeError
from talltree.maths.muon import orthogonalise
from talltree.models.build import build
from talltree.models.optim import Muon
from talltree.stages.pretrain import loop, measure
from talltree.stages.pretrain import update as updates
from talltree.stages.pretrain.config import Config, Schedule
from talltree.stages.pretrain.objective import Objective
from tests import tiny

from .pretrain_toy import ALONE, TINY, exact, make_config, make_corpus, make_tokens


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def tokens(corpus, tmp_path_factory):
    return make_tokens(corpus, tmp_path_factory.mktemp("runs") / "tok")


@pytest.fixture
def config(corpus, tokens, tmp_path):
    return make_config(corpus, tokens, tmp_path / "run")


def test_config_is_whole_and_repeats_itself(config):
    assert flaws(Config) == []
    assert from_dict(Config, to_dict(config)) == config


def test_schedules_by_hand(config):
    def factor(plan, step, steps):
        return updates.learning_rate_factor(replace(config, schedule=plan, steps=steps), step)

    cosine = Schedule(name="cosine", warmup_steps=4, final_factor=0.1)
    assert [factor(cosine, step, 12) for step in (1, 2, 4, 5)] == [0.25, 0.5, 1.0, 1.0]
    assert factor(cosine, 9, 12) == pytest.approx(0.55)  # half of the 8 steps after warm-up
    assert factor(cosine, 13, 12) == pytest.approx(0.1)
    linear = replace(cosine, name="linear", final_factor=0.0)
    assert [factor(linear, step, 12) for step in (5, 6, 12)] == pytest.approx([1, 7 / 8, 1 / 8])
    wsd = replace(linear, name="wsd", decay_share=0.25)
    assert [factor(wsd, step, 12) for step in (4, 9, 10, 11, 12)] == pytest.approx([1, 1, 1, 2 / 3, 1 / 3])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_in_one_group_and_vectors_do_not_decay(config, tokens, architecture, optimizer):
    model = build(replace(TINY, architecture=architecture), AutoTokenizer.from_pretrained(tokens), seed=0)
    optimizers = updates.make_optimizers(model, replace(config, optimizer=optimizer))
    groups = [(each, group) for each in optimizers for group in each.param_groups]
    seen = [id(p) for _, group in groups for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in model.parameters())
    transformer = model.model if architecture == "llama" else model.transformer
    tables = [transformer.embed_tokens] if architecture == "llama" else [transformer.wte, transformer.wpe]
    embeddings = {id(table.weight) for table in tables}
    for each, group in groups:
        for parameter in group["params"]:
            is_matrix = parameter.dim() >= 2 and id(parameter) not in embeddings
            assert isinstance(each, Muon) == (is_matrix and optimizer == "muon")
            decays = parameter.dim() >= 2 if optimizer == "adamw" else is_matrix
            assert (group["weight_decay"] > 0) == decays


def test_orthogonalise_moves_singular_values_to_about_one():
    generator = torch.Generator().manual_seed(0)
    for shape in [(12, 12), (8, 20), (20, 8)]:
        matrix = torch.randn(shape, generator=generator)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        found = orthogonalise(matrix)
        singular = torch.diagonal(u.T @ found @ v.T)
        assert found.shape == matrix.shape
        assert ((singular > 0.6) & (singular < 1.3))[s > 0.02 * s.norm()].all()
    assert torch.equal(orthogonalise(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_muon_steps_by_hand_on_an_orthogonal_gradient():
    # For g = I the result is c I: Newton-Schulz keeps it a multiple of I. 0.2 sqrt(4) c lr, then decay first.
    weight = torch.nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.eye(4)
    c = 0.5  # 1 / ||I||
    for _ in range(5):
        c = 3.4445 * c - 4.7750 * c**3 + 2.0315 * c**5
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    expected = torch.full((4, 4), 0.95) - 0.1 * 0.4 * c * torch.eye(4)
    torch.testing.assert_close(weight.data, expected)
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.ones(3))], lr=0.1)


def test_model_sizes_by_hand_and_weights_by_seed(tokens):
    loaded = AutoTokenizer.from_pretrained(tokens)
    model = build(TINY, loaded, seed=1)
    block = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24 + 2 * 16  # q and o, k and v, feed-forward, two norms
    assert sum(p.numel() for p in model.parameters()) == 300 * 16 + 2 * block + 16
    same, other = build(TINY, loaded, seed=1), build(TINY, loaded, seed=2)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(model.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(model.state_dict()[name], other.state_dict()[name])
    assert (model.config.eos_token_id, model.config.pad_token_id) == (0, 1)
    gpt2 = build(replace(TINY, architecture="gpt2"), loaded, seed=1)
    assert torch.nn.GELU in {type(module) for module in gpt2.modules()}  # as `load_model` has it
    assert gpt2.config.n_positions == 32
    assert not any(m.p for m in gpt2.modules() if isinstance(m, torch.nn.Dropout))


def test_held_out_loss_equals_one_document_at_a_time(tokens):
    model = build(TINY, AutoTokenizer.from_pretrained(tokens), seed=0)
    documents = [
        [5, 6, 7],
        list(range(20, 60)),
        [9],
        list(range(2, 33)),
    ]  # 40 and 31 tokens beside a context of 32
    expected, count = 0.0, 0
    for document in documents:
        ids = [0, *document, 0]
        for at in range(0, len(ids) - 1, 32):
            window = torch.tensor(ids[at : at + 33])
            logp = F.log_softmax(model(input_ids=window[None, :-1]).logits[0].double(), -1)
            expected -= logp[range(len(window) - 1), window[1:]].sum().item()
            count += len(window) - 1
    assert count == sum(len(document) + 1 for document in documents)
    objective = Objective(model, separated=None, bfloat16=False, chunked=True)
    assert measure.held_out_nats(objective, documents, 32, 0, ALONE) == (
        pytest.approx(expected, rel=1e-5),
        count,
    )


def test_micro_batches_change_nothing(config, tokens):
    batch = torch.randint(2, 300, (6, 33), generator=torch.Generator().manual_seed(0))
    results = []
    for micro in (6, 2, 1):
        model = build(TINY, AutoTokenizer.from_pretrained(tokens), seed=0)
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)]
        objective = Objective(model, separated=None, bfloat16=False, chunked=True)
        found = updates.update(objective, optimizers, batch, micro, 1.0, ALONE)
        results.append((found, model.model.layers[0].mlp.up_proj.weight.detach()))
    for (loss, norm), weight in results[1:]:
        assert (loss, norm) == (
            pytest.approx(results[0][0][0], rel=1e-5),
            pytest.approx(results[0][0][1], rel=1e-4),
        )
        torch.testing.assert_close(weight, results[0][1], rtol=1e-5, atol=1e-7)


def test_a_gradient_that_is_not_finite_leaves_the_weights(tokens):
    model = build(TINY, AutoTokenizer.from_pretrained(tokens), seed=0)
    with torch.no_grad():
        model.model.norm.weight[0] = math.inf
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1.0)]
    with pytest.raises(ContractError, match="not finite"):
        objective = Objective(model, separated=None, bfloat16=False, chunked=True)
        updates.update(objective, optimizers, torch.randint(2, 300, (2, 33)), 2, 1.0, ALONE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_learns_and_writes_what_others_load(config, tmp_path):
    config = replace(
        config, steps=60, learning_rate=1e-2, optimizer="muon", validation_every=30, sample_every=60,
        checkpoint_every=60, final_dtype="bfloat16", data_note="Toy sentences.",
    )  # fmt: skip
    loop.run(config)
    folder = tmp_path / "run"
    rows = exact(folder)
    assert rows[0]["loss/train"] == pytest.approx(math.log(300), abs=0.5)
    assert rows[-1]["loss/validation"] < 2.5
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stop_reason"] == "steps"
    documents = [json.loads(line)["text"] for line in Path(config.dataset_name).read_text().splitlines()]
    counted = summary["corpus"]["train_documents"] + summary["corpus"]["validation_documents"]
    assert counted == len(set(documents))
    bits = rows[-1]["loss/validation"] * summary["validation"]["tokens"] / math.log(2)
    assert rows[-1]["bits_per_byte"] == pytest.approx(bits / summary["corpus"]["validation_bytes"])
    stored = load_file(folder / "final" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(folder / "final", dtype=torch.float32)
    loaded = AutoTokenizer.from_pretrained(folder / "final")
    assert loaded.model_max_length == 32
    stored = json.loads((folder / "final" / "tokenizer_config.json").read_text())
    assert stored["tokenizer_class"] == "PreTrainedTokenizerFast"
    written = model.generate(**loaded("Once upon", return_tensors="pt"), max_new_tokens=20, do_sample=False)
    assert written.shape[1] > len(loaded("Once upon")["input_ids"])
    card = (folder / "final" / "README.md").read_text()
    for part in (
        "Toy sentences.",
        "bits per byte",
        "SHA-256",
        "transformers",
        str(summary["parameters"] // 1000),
    ):
        assert part in card


def test_milestones_stay_beside_the_newest(config, tmp_path):
    loop.run(replace(config, milestones=[1, 3], checkpoint_every=2, keep_checkpoints=1))
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-1", "step-3", "step-6"]


def test_a_tokenizer_for_other_text_is_refused(config, tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path / "words")
    with pytest.raises(TallTreeError, match="does not know|unknown|tokens"):
        loop.run(replace(config, tokenizer_name_or_path=str(tmp_path / "words"), sample_prompts=[]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4096}, "fewer than the 4096 of one batch"),
        ({"sample_prompts": ["x " * 40]}, "fewer than model.context 32"),
        ({"model": replace(TINY, context=4096)}, "fewer than two windows"),
    ],
)
def test_what_cannot_train_is_refused_before_there_is_a_folder(config, tmp_path, changes, message):
    with pytest.raises(TallTreeError, match=message):
        loop.run(replace(config, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "gpt2-smal"}}, "'gpt2-smal' is not known; nearest: gpt2-small"),
        ({"milestones": [2000]}, "step 2000 is after the last of steps 1000"),
        ({"batch_size": 6, "micro_batch_size": 4}, "micro_batch_size 4; try micro_batch_size 2"),
        ({"schedule": {"warmup_steps": 50}, "steps": 50}, "warmup_steps 50 is not below steps 50"),
        ({"model": {"hidden_size": 100, "heads": 6}}, "hidden_size 100"),
        ({"model": {"heads": 6, "kv_heads": 4}}, "kv_heads 4"),
        ({"optimizer": "sgd"}, "adamw"),
        ({"dataset_name": ""}, "--dataset_name is required"),
    ],
)
def test_bad_configs_are_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(Config, {"dataset_name": "a.txt", "tokenizer_name_or_path": "t", **changes})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
