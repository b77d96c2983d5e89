"""What `pretrain` minimises: the chunked head against autograd, documents apart, known model sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from talltree.config import from_dict, to_dict
from talltree.errors import ConfigError
from talltree.maths import cross_entropy
from talltree.maths.cross_entropy import head_cross_entropy
from talltree.models.build import architecture, vocabulary_size
from talltree.models.shape import NAMES, Shape, dimensions, resolved
from talltree.stages.pretrain.objective import NO_TARGET, Objective, apart
from tests import tiny

EOS = 0

# Model sizes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2-small", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
    ],
)
def test_gpt2_names_have_the_published_sizes(name, parameters):
    with torch.device("meta"):
        model = architecture(Shape(name=name), {"vocab_size": 50_257})
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # V H + L (2 H H + 2 H H kv / heads + 3 H I + 2 H) + H
        ("stories15M", 32_000 * 288 + 6 * (4 * 288**2 + 3 * 288 * 768 + 2 * 288) + 288),
        ("stories42M", 32_000 * 512 + 8 * (4 * 512**2 + 3 * 512 * 1376 + 2 * 512) + 512),
        ("stories110M", 32_000 * 768 + 12 * (4 * 768**2 + 3 * 768 * 2048 + 2 * 768) + 768),
        ("stories260K", 32_000 * 64 + 5 * (3 * 64**2 + 3 * 64 * 172 + 2 * 64) + 64),
        # V H + T H + L (12 H^2 + 13 H) + 2 H
        ("gpt2-tiny", 32_000 * 256 + 256 * 256 + 4 * (12 * 256**2 + 13 * 256) + 2 * 256),
    ],
)
def test_other_names_by_hand(name, parameters):
    with torch.device("meta"):
        model = architecture(Shape(name=name), {"vocab_size": 32_000})
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_story_models_are_those_of_the_real_ones(stories15M, stories260K):
    import json

    for folder in (stories15M, stories260K):
        config = json.loads((folder / "config.json").read_text())
        found = dimensions(Shape(name=folder.name))
        assert found == (
            "llama",
            config["hidden_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["intermediate_size"],
            config["max_position_embeddings"],
            True,
        )


def test_single_dimensions_override_the_name():
    found = dimensions(Shape(name="stories15M", layers=3, heads=4))
    assert (found.layers, found.heads, found.kv_heads, found.hidden_size) == (3, 4, 4, 288)
    assert dimensions(Shape(name="stories260K", heads=16)).kv_heads == 4
    assert dimensions(Shape(name="gpt2-tiny", hidden_size=64)).intermediate_size == 256
    for name in NAMES:
        whole = resolved(Shape(name=name))
        assert dimensions(whole) == NAMES[name]
        assert from_dict(Shape, to_dict(whole)) == whole


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("gpt2-smal", "gpt2-small"), ("stories15m", "stories15M"), ("llama-15m", "stories15M")],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(ConfigError, match=f"model.name: '{name}' is not known; nearest: {nearest}") as caught:
        from_dict(Shape, {"name": name})
    assert "\n" not in str(caught.value)


def test_holes_in_the_token_ids_get_rows_too():
    class Holed:
        def __len__(self) -> int:
            return 3

        def get_vocab(self):
            return {"a": 0, "b": 1, "c": 7}

    assert vocabulary_size(Holed()) == 8


# The head


@pytest.mark.parametrize("chunk", [1, 7 * 50, 10_000])
def test_the_chunked_head_equals_autograd(monkeypatch, chunk):
    monkeypatch.setitem(cross_entropy.CHUNK_NUMBERS, "cpu", chunk)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(50, 8, generator=generator, dtype=torch.float64) * 3
    tokens = torch.randint(0, 50, (37,), generator=generator)
    found = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    expected = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss = head_cross_entropy(*found, tokens, 0.25)
    plain = 0.25 * F.cross_entropy(expected[0] @ expected[1].T, tokens, reduction="sum")
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)
    (2 * loss).backward()
    (2 * plain).backward()
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-11, atol=1e-12)
    with pytest.raises(RuntimeError):
        loss.backward()


def test_the_head_keeps_the_log_of_a_probability_of_zero():
    # Logits 0 and 200: -log p of the first is 200, though exp(-200) is 0 in float32.
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [200.0]], requires_grad=True)
    loss = head_cross_entropy(hidden, weight, torch.tensor([0]), 1.0)
    assert loss.item() == 200.0
    loss.backward()
    assert hidden.grad.item() == 200.0  # sum of (p - one-hot) w = 1 * 200 - 1 * 0
    assert weight.grad.flatten().tolist() == [-1.0, 1.0]


def test_the_head_in_bfloat16_sums_in_float32():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(40, 16, generator=generator).bfloat16().requires_grad_()
    tokens = torch.randint(0, 40, (64,), generator=generator)
    loss = head_cross_entropy(hidden, weight, tokens, 1 / 64)
    plain = F.cross_entropy((hidden @ weight.T).float(), tokens)
    # The logits are rounded to bfloat16 on both sides, in another order of summation.
    torch.testing.assert_close(loss, plain, rtol=2e-3, atol=0)
    assert loss.dtype == torch.float32
    loss.backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["gpt2", "llama_tied", "llama_untied"])
def test_chunked_and_whole_are_the_same_objective(family):
    ids = torch.randint(1, tiny.VOCABULARY, (3, 13), generator=torch.Generator().manual_seed(0))
    targets = ids[:, 1:].clone()
    targets[1, 5:] = NO_TARGET
    found = []
    for chunked in (True, False):
        model = tiny.MODELS[family]()
        objective = Objective(model, separated=None, bfloat16=False, chunked=chunked)
        loss = objective(ids[:, :-1], targets, 1 / 31)
        loss.backward()
        with torch.no_grad():
            measured = objective(ids[:, :-1], targets, 1 / 31)
        gradients = {name: p.grad for name, p in model.named_parameters()}
        found.append((loss.item(), measured.item(), gradients))
    mine, plain = found
    # Float32 sums in another order.
    assert mine[0] == pytest.approx(plain[0], rel=1e-6)
    assert mine[1] == pytest.approx(plain[0], rel=1e-6)
    for name, gradient in mine[2].items():
        torch.testing.assert_close(gradient, plain[2][name], rtol=1e-4, atol=1e-6)


# Documents


def test_position_ids_and_mask_by_hand():
    position, mask = apart(torch.tensor([[5, 6, EOS, 7, 8, EOS]]), EOS)
    assert position.tolist() == [[0, 1, 0, 1, 2, 0]]
    assert mask[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("family", ["gpt2", "llama_tied"])
def test_a_document_in_a_row_has_the_loss_of_the_document_alone(family):
    model = tiny.MODELS[family]()
    first, second, third = [3, 9, 4, 4], [7, 2, 8, 8, 5], [6, 1]
    row = torch.tensor([[*first, EOS, *second, EOS, *third]])

    def losses(separated):
        objective = Objective(model, separated=separated, bfloat16=False, chunked=True)
        targets = row[:, 1:]
        found = []
        for place in range(targets.shape[1]):
            only = torch.full_like(targets, NO_TARGET)
            only[0, place] = targets[0, place]
            with torch.no_grad():
                found.append(objective(row[:, :-1], only, 1.0).item())
        return torch.tensor(found)

    def alone(ids):
        logp = model(input_ids=torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        return -logp[range(len(ids) - 1), ids[1:]].detach()

    # A row may begin in the middle of a document; each EOS ends one text and begins the next.
    expected = torch.cat([alone([*first, EOS]), alone([EOS, *second, EOS]), alone([EOS, *third])])
    # Float32 through another attention kernel.
    torch.testing.assert_close(losses(EOS), expected, rtol=1e-4, atol=1e-5)
    assert (losses(None) - expected).abs().max() > 0.01


def test_the_head_over_a_large_vocabulary_is_as_exact_as_float32_allows():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 32, generator=generator)
    weight = torch.randn(32_000, 32, generator=generator) * 0.1
    tokens = torch.randint(0, 32_000, (64,), generator=generator)
    exact = F.cross_entropy(hidden.double() @ weight.double().T, tokens)
    found = head_cross_entropy(hidden, weight.requires_grad_(), tokens, 1 / 64)
    # Sums of 32,000 terms, each exact to 6e-8.
    assert found.item() == pytest.approx(exact.item(), rel=1e-6)
