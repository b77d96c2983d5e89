"""Weights by hand, and the loss that no micro-batch split may change."""

import math

import pytest
import torch

from talltree.maths import weights

from .enumeration import assert_equal

# Three tokens, one token, none, two tokens.
MASK_NT = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=torch.bool)
VALUE_NT = torch.tensor([[1.0, 2, 4], [8, 3, 3], [3, 3, 3], [16, 32, 3]], dtype=torch.float64)
SPLITS = ([4], [2, 2], [1, 3], [3, 1], [1, 1, 1, 1])


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_per_rollout_by_hand(per_rollout=weights.per_rollout):
    quarter = rows([1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]) / 4
    assert_equal(per_rollout(MASK_NT, dtype=torch.float64), quarter)


def test_per_sequence_by_hand(per_sequence=weights.per_sequence):
    expected = rows([1 / 12, 1 / 12, 1 / 12], [1 / 4, 0, 0], [0, 0, 0], [1 / 8, 1 / 8, 0])
    assert_equal(per_sequence(MASK_NT, dtype=torch.float64), expected)
    assert_equal(per_sequence(MASK_NT[:2], dtype=torch.float64).sum(), 1.0)


def test_per_token_by_hand(per_token=weights.per_token):
    sixth = rows([1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]) / 6
    assert_equal(per_token(MASK_NT, dtype=torch.float64), sixth)
    assert_equal(per_token(MASK_NT, dtype=torch.float64).sum(), 1.0)
    assert_equal(per_token(torch.zeros(2, 2, dtype=torch.bool)), torch.zeros(2, 2))


def test_constant_length_by_hand(constant_length=weights.constant_length):
    expected = rows([1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]) / (4 * 10)
    assert_equal(constant_length(MASK_NT, 10, dtype=torch.float64), expected)
    for refused in (0, -1, math.nan):
        with pytest.raises(ValueError, match=f"length {refused} must be above 0"):
            constant_length(MASK_NT, refused)


def test_weights_are_float32_unless_asked():
    made = (
        weights.per_rollout(MASK_NT),
        weights.per_sequence(MASK_NT),
        weights.per_token(MASK_NT),
        weights.constant_length(MASK_NT, 3),
    )
    assert {each.dtype for each in made} == {torch.float32}


def once_per_step(mask_NT, sizes):
    """How the training loop must do it: weights of the whole batch, then sliced."""
    return weights.per_token(mask_NT, dtype=torch.float64).split(sizes)


def test_loss_ignores_the_micro_batch_split(split_weights=once_per_step):
    # The token mean by hand is 63 / 6; its gradient by a common factor is the same number.
    for sizes in SPLITS:
        factor = torch.ones((), dtype=torch.float64, requires_grad=True)
        for weights_NT, value_NT in zip(split_weights(MASK_NT, sizes), VALUE_NT.split(sizes), strict=True):
            (weights_NT * value_NT * factor).sum().backward()
        assert_equal(factor.grad, 63 / 6)


def test_masked_mean_ignores_the_padding(masked_mean=weights.masked_mean):
    # Whatever stands in the padding, a filler log-prob of 1.0 or NaN, the mean of 1, 2, 4, 8, 16, 32 is 10.5.
    for filler in (0.0, 1.0, -1.0, math.inf, math.nan):
        assert_equal(masked_mean(VALUE_NT.masked_fill(~MASK_NT, filler), MASK_NT), 10.5)
    assert_equal(masked_mean(VALUE_NT, torch.zeros_like(MASK_NT)), 0.0)
