"""The table of algorithms: rows, options, refusals, advantages by hand (gradients: maths/test_gradients)."""

import pytest
import torch

from talltree import algorithms
from talltree.algorithms import algorithm, check_groups
from talltree.errors import ConfigError
from talltree.maths import losses, weights
from talltree.maths.advantages import MovingBaseline, state_mask

MASK_NT = torch.tensor([[True, True, False], [True, True, True], [True, False, False], [True, True, False]])
# Returns 3, 1, 4, 8 in two groups of two; what stands in the padding must not enter.
TOKEN_REWARD_NT = torch.tensor([[-1.0, 4, 9], [0, 0, 1], [4, 9, 9], [3, 5, 9]])
SCORED_N = torch.ones(4, dtype=torch.bool)
START = MovingBaseline()


def advantage_of(row, scored_N=SCORED_N, baseline=START):
    return row.advantage(TOKEN_REWARD_NT, MASK_NT, scored_N, 2, baseline)


def on_tokens(*per_rollout):
    return torch.tensor(per_rollout).unsqueeze(1) * MASK_NT


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("reinforce", {}, (3.0, 1.0, 4.0, 8.0)),
        ("reinforce", {"baseline": "none"}, (3.0, 1.0, 4.0, 8.0)),
        ("reinforce", {"baseline": "batch"}, (-1.0, -3.0, 0.0, 4.0)),
        ("rloo", {}, (2.0, -2.0, -4.0, 4.0)),
        ("grpo", {}, (0.5**0.5, -(0.5**0.5), -(0.5**0.5), 0.5**0.5)),
        ("grpo", {"standardise": False}, (1.0, -1.0, -2.0, 2.0)),
    ],
)
def test_advantages_by_hand(name, options, expected):
    baseline = MovingBaseline(7.0, 0.9, 2)
    advantage_NT, after = advantage_of(algorithm(name, **options), baseline=baseline)
    torch.testing.assert_close(advantage_NT, on_tokens(*expected), atol=1e-5, rtol=0)
    assert after is baseline


def test_moving_baseline_is_carried():
    row = algorithm("reinforce", baseline="moving")
    advantage_NT, after = advantage_of(row, baseline=MovingBaseline(2.0, 0.5, 1))
    torch.testing.assert_close(advantage_NT, on_tokens(1.0, -1.0, 2.0, 6.0))
    # Means 2 and 4 weigh 1/3 and 2/3.
    assert after == (pytest.approx(10 / 3), 0.5, 2)


def test_not_scored_gives_no_advantage():
    scored_N = torch.tensor([True, True, False, True])
    advantage_NT, _ = advantage_of(algorithm("rloo"), scored_N)
    torch.testing.assert_close(advantage_NT, on_tokens(2.0, -2.0, 0.0, 0.0))


def test_rows_are_the_table():
    for row in (algorithm("reinforce"), algorithm("rloo")):
        assert row.surrogate is losses.policy_gradient
        assert row.weights is weights.per_rollout
        assert row.kl_in == "reward"
    grpo = algorithm("grpo")
    assert grpo.weights is weights.per_sequence
    assert grpo.kl_in == "loss"
    dr_grpo = algorithm("grpo", standardise=False, constant_length=10)
    torch.testing.assert_close(dr_grpo.weights(MASK_NT), MASK_NT / 40)
    assert dr_grpo.weights(MASK_NT, dtype=torch.float64).dtype == torch.float64


def test_ppo_is_gae_clipped_over_all_tokens_with_kl_in_the_reward():
    row = algorithm("ppo", gamma=0.5, lam=0.25, whiten_rewards=False)
    assert row.advantage == algorithms.GAE(0.5, 0.25, False, True)
    assert algorithm("ppo").advantage == algorithms.GAE(1.0, 0.95, True, True)
    assert row.weights is weights.per_token
    assert row.kl_in == "reward"
    mask_NT = MASK_NT[:2]
    reward_NU, value_NU = torch.tensor([[1.0, 0, 4, 9], [0, 2, 0, 8]]), torch.zeros(2, 4)
    raw = row.advantage._replace(whiten_advantages=False)
    targets = raw(reward_NU, value_NU, state_mask(mask_NT), mask_NT)
    # A discount of 1/8 a step: row 1 has states 1, 0, 4 and two tokens, row 2 four states and three tokens.
    expected = [[1 + 0 + 4 / 64, 4 / 8, 0], [0 + 2 / 8 + 0 + 8 / 512, 2 + 8 / 64, 8 / 8]]
    torch.testing.assert_close(targets.advantage_NT, torch.tensor(expected))


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_clip_bounds_reach_the_surrogate(name):
    row = algorithm(name, clip_low=0.5, clip_high=0.28)
    logp = torch.log(torch.tensor([2.0, 0.25]))
    loss = row.surrogate(logp, torch.zeros(2), torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(loss, torch.tensor([-1.28, 0.5]))


def test_options_of_none_are_the_rows_own():
    assert algorithm("rloo", baseline=None, clip_low=None).weights is weights.per_rollout
    assert algorithm("grpo", baseline=None, constant_length=None).weights is weights.per_sequence


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("rlo", {}, "algorithm 'rlo' is unknown; did you mean 'rloo'? known: reinforce, rloo, grpo, ppo"),
        ("gppo", {}, "did you mean 'ppo'?"),
        ("xyz", {}, "algorithm 'xyz' is unknown; known: reinforce, rloo, grpo, ppo"),
        ("reinforce", {"baseline": "movin"}, "baseline 'movin' is unknown; did you mean 'moving'?"),
        (
            "rloo",
            {"baseline": "batch"},
            "baseline 'batch' does not belong to algorithm 'rloo'; it has no options",
        ),
        (
            "reinforce",
            {"clip_low": 0.1},
            "clip_low 0.1 does not belong to algorithm 'reinforce'; its options are baseline",
        ),
        ("grpo", {"baseline": "batch"}, "its options are standardise, constant_length, clip_low, clip_high"),
        ("grpo", {"clip_low": 1.5}, "low 1.5"),
        ("grpo", {"clip_high": 0.0}, "high 0.0"),
        ("grpo", {"constant_length": 0}, "constant_length 0 must be above 0"),
        ("ppo", {"gamma": 1.5}, "gamma 1.5 must lie between 0 and 1"),
        ("ppo", {"lam": -0.1}, "lam -0.1 must lie between 0 and 1"),
        ("ppo", {"clip_low": 0.0}, "low 0.0"),
        ("rloo", {"lam": 0.9}, "lam 0.9 does not belong to algorithm 'rloo'; it has no options"),
    ],
)
def test_refusals_are_one_clear_line(name, options, text):
    with pytest.raises(ConfigError) as refusal:
        algorithm(name, **options)
    assert text in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "num_generations", "batch_size", "text"),
    [
        ("rloo", 1, 8, "num_generations 1 is too few for rloo; use 2 or more"),
        ("grpo", 0, 8, "num_generations 0 is too few for grpo; use 2 or more"),
        ("reinforce", 0, 8, "num_generations 0 is too few for reinforce; use 1 or more"),
        ("grpo", 4, 30, "batch_size 30 is not divisible by num_generations 4; try 28 or 32"),
        ("rloo", 4, 3, "batch_size 3 is not divisible by num_generations 4; try 4"),
        ("rloo", 4, 0, "batch_size 0 is not divisible by num_generations 4; try 4"),
    ],
)
def test_group_refusals(name, num_generations, batch_size, text):
    with pytest.raises(ConfigError) as refusal:
        check_groups(name, num_generations, batch_size)
    assert str(refusal.value) == text


def test_groups_that_fit():
    check_groups("reinforce", 1, 7)
    check_groups("rloo", 2, 8)
    assert set(algorithms.ROWS) >= algorithms.GROUPED
