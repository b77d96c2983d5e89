"""The frozen reference, LoRA adapters, and what of a policy trains."""

import pytest
import torch

from talltree.errors import ConfigError
from talltree.models.policy import Reference, add_lora, trainable

from .test_models import TEXT, logits_of
from .tiny import MODELS, gpt2, llama, with_lora


def step(policy):
    """One optimiser step that moves the policy far."""
    optimizer = torch.optim.SGD(trainable(policy).values(), lr=1.0)
    policy(input_ids=TEXT).logits.log_softmax(-1)[..., 3].sum().backward()
    optimizer.step()


class SharedWeights(Reference):
    """The planted defect: what looks like a frozen copy is the policy itself."""

    def __init__(self, policy):
        super().__init__(policy)
        self._copy = policy


def stays(reference, policy):
    with reference.model() as model:
        before = logits_of(model)
    moved_from = logits_of(policy)
    step(policy)
    assert (logits_of(policy) - moved_from).abs().max() > 0.1
    with reference.model() as model:
        return torch.equal(logits_of(model), before)


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_is_a_true_copy(name):
    policy = MODELS[name]()
    assert stays(Reference(policy), policy)
    with Reference(policy).model() as reference:
        assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_a_reference_that_shares_weights_is_caught():
    policy = gpt2()
    assert not stays(SharedWeights(policy), policy)


@pytest.mark.parametrize("name", MODELS)
def test_under_lora_the_reference_is_the_base_bit_for_bit(name):
    base = logits_of(MODELS[name]())
    policy = with_lora(MODELS[name]())
    assert (logits_of(policy) - base).abs().max() > 0.05
    reference = Reference(policy)
    with reference.model() as model:
        assert torch.equal(logits_of(model), base)
    assert stays(reference, policy)
    with reference.model() as model:
        assert torch.equal(logits_of(model), base)
    # Outside the block the adapters are on again, and still train.
    assert (logits_of(policy) - base).abs().max() > 0.05
    assert trainable(policy)


@pytest.mark.parametrize("name", MODELS)
def test_fresh_adapters_change_nothing_and_alone_train(name):
    base = logits_of(MODELS[name]())
    policy = add_lora(MODELS[name](), r=2, alpha=4.0, seed=0)
    assert torch.equal(logits_of(policy), base)
    assert not policy.training
    names = trainable(policy)
    assert names
    assert all("lora_" in name for name in names)
    assert not any("lm_head" in name for name in names)


def test_the_seed_decides_the_adapters_and_nothing_global_moves():
    state = torch.random.get_rng_state()
    first, again, other = (trainable(add_lora(llama(), 2, 4.0, seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_model_that_cannot_train_is_refused():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        trainable(gpt2().requires_grad_(False))


def test_tied_weights_train_once():
    names = trainable(llama(tied=True))
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert "lm_head.weight" in trainable(llama(tied=False))
