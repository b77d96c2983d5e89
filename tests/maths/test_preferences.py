"""Preference losses against enumeration of all rankings, hand numbers and finite differences."""

import itertools
import math

import pytest
import torch

from talltree.maths import preferences
from talltree.maths.preferences import (
    bradley_terry_loss,
    centring,
    heights,
    log_plackett_luce,
    plackett_luce_loss,
    softmax_loss,
)

BEST = [(0, 1), (0, 2), (0, 3)]
WORST = [(0, 3), (1, 3), (2, 3)]
BEST_WORST = [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
TOP_TWO = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
FULL = list(itertools.combinations(range(4), 2))
LEVELS = [(0, 2), (0, 3), (1, 2), (1, 3)]
ONE_PAIR = [(2, 1)]
ORDERS = {
    "best": BEST, "worst": WORST, "best and worst": BEST_WORST, "top two": TOP_TWO, "full": FULL,
    "two levels": LEVELS, "one pair of four": ONE_PAIR, "two chains": [(0, 2), (1, 3)],
}  # fmt: skip


def scores(n=3, k=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator, dtype=torch.float64) * 1.5


def enumerated(score_K, above):
    """Sum over all rankings that agree of the product of their draws, by the definition."""
    total = 0.0
    weights = [math.exp(value) for value in score_K.tolist()]
    for ranking in itertools.permutations(range(len(weights))):
        place = {candidate: number for number, candidate in enumerate(ranking)}
        if all(place[high] < place[low] for high, low in above):
            left, chance = list(ranking), 1.0
            while left:
                chance *= weights[left[0]] / sum(weights[each] for each in left)
                left.pop(0)
            total += chance
    return total


@pytest.mark.parametrize("above", ORDERS.values(), ids=ORDERS)
def test_plackett_luce_is_the_sum_over_all_rankings_that_agree(above):
    score_NK = scores()
    expected = [math.log(enumerated(row, above)) for row in score_NK]
    torch.testing.assert_close(
        log_plackett_luce(score_NK, above), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_plackett_luce_by_hand():
    # Weights 3, 2, 1: P(0 > 1 > 2) = 3/6 * 2/3; P(0 best) = 3/6; P(2 worst) = 3/6*2/3 + 2/6*3/4.
    score = torch.tensor([[3.0, 2.0, 1.0]]).double().log()
    for above, probability in (
        ([(0, 1), (0, 2), (1, 2)], 1 / 3),
        ([(0, 1), (0, 2)], 1 / 2),
        ([(0, 2), (1, 2)], 1 / 3 + 1 / 4),
    ):
        assert log_plackett_luce(score, above).exp().item() == pytest.approx(probability, rel=1e-12)
    # Equal scores: 2 of the 24 rankings of four have a given best and a given worst.
    assert log_plackett_luce(torch.zeros(1, 4), BEST_WORST).exp().item() == pytest.approx(1 / 12)


def test_best_alone_is_softmax():
    score_NK = scores()
    torch.testing.assert_close(plackett_luce_loss(score_NK, BEST), softmax_loss(score_NK, 0))


def test_softmax_by_hand():
    score = torch.tensor([[2.0, 1.0, 1.0]]).double().log()
    assert softmax_loss(score, 0).item() == pytest.approx(math.log(2))
    # e = 0.2: 0.8 on the best, 0.1 on each other. The probabilities are 1/2, 1/4, 1/4.
    expected = 0.8 * math.log(2) + 0.2 * math.log(4)
    assert softmax_loss(score, 0, smoothing=0.2).item() == pytest.approx(expected)
    # A margin of ln 2 takes the best's weight from 2 to 1.
    assert softmax_loss(score, 0, margin_N=torch.tensor([math.log(2)])).item() == pytest.approx(math.log(3))


def test_bradley_terry_by_hand():
    # Weights 3 and 1: P = 3/4. Margin ln 3: P = 1/2.
    score = torch.tensor([[3.0, 1.0]]).double().log()
    assert bradley_terry_loss(score, [(0, 1)]).item() == pytest.approx(math.log(4 / 3))
    assert bradley_terry_loss(score, [(0, 1)], 0.1).item() == pytest.approx(
        0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    )
    margin_N = torch.tensor([math.log(3)])
    assert bradley_terry_loss(score, [(0, 1)], 0.0, margin_N).item() == pytest.approx(math.log(2))
    # The five pairs of a best and worst of four, weights 4, 2, 2, 1: 4/6 twice, 4/5, 2/3 twice.
    score = torch.tensor([[4.0, 2.0, 2.0, 1.0]]).double().log()
    expected = (4 * math.log(3 / 2) + math.log(5 / 4)) / 5
    assert bradley_terry_loss(score, BEST_WORST).item() == pytest.approx(expected)


@pytest.mark.parametrize(("smoothing", "margin"), [(0.0, None), (0.1, None), (0.0, 0.7), (0.1, 0.7)])
def test_the_three_losses_are_one_for_a_pair(smoothing, margin):
    score_NK = scores(k=2)
    margin_N = None if margin is None else torch.tensor([0.0, margin, 2 * margin]).double()
    pair = bradley_terry_loss(score_NK, [(0, 1)], smoothing, margin_N)
    torch.testing.assert_close(softmax_loss(score_NK, 0, smoothing, margin_N), pair)
    torch.testing.assert_close(plackett_luce_loss(score_NK, [(0, 1)], smoothing, margin_N), pair)


def test_the_margin_of_an_order_counts_its_steps():
    # best, two in the middle, worst stand 2, 1, 1 and 0 steps above the bottom.
    assert heights(BEST_WORST, 4) == [2, 1, 1, 0]
    assert heights(FULL, 4) == [3, 2, 1, 0]
    assert heights(ONE_PAIR, 4) == [0, 0, 1, 0]
    score_NK, margin_N = scores(), torch.tensor([0.0, 0.5, 2.0]).double()
    lowered = score_NK - margin_N[:, None] * torch.tensor([2, 1, 1, 0])
    torch.testing.assert_close(
        plackett_luce_loss(score_NK, BEST_WORST, 0.0, margin_N), -log_plackett_luce(lowered, BEST_WORST)
    )


def test_smoothing_an_order_is_its_reverse():
    score_NK = scores()
    reverse = [(low, high) for high, low in BEST_WORST]
    expected = [
        -0.9 * math.log(enumerated(s, BEST_WORST)) - 0.1 * math.log(enumerated(s, reverse)) for s in score_NK
    ]
    torch.testing.assert_close(
        plackett_luce_loss(score_NK, BEST_WORST, 0.1), torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ORDERS)
def test_gradients_are_those_of_finite_differences(name, smoothing):
    above, margin_N = ORDERS[name], torch.tensor([0.1, 0.0, 0.6]).double()
    score_NK = scores().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: plackett_luce_loss(s, above, smoothing, margin_N), score_NK)
    assert torch.autograd.gradcheck(lambda s: bradley_terry_loss(s, above, smoothing, margin_N), score_NK)
    assert torch.autograd.gradcheck(lambda s: softmax_loss(s, 2, smoothing, margin_N), score_NK)


def test_gradient_of_a_pair_by_hand():
    # d loss / d s_winner = -(1 - p); at scores 0 that is -1/2. A BWS tuple at 0: the mean over five pairs.
    score = torch.zeros(1, 4, requires_grad=True)
    bradley_terry_loss(score, BEST_WORST).sum().backward()
    torch.testing.assert_close(score.grad, torch.tensor([[-0.3, 0.0, 0.0, 0.3]]))
    score = torch.zeros(1, 4, requires_grad=True)
    softmax_loss(score, 1).sum().backward()
    torch.testing.assert_close(score.grad, torch.tensor([[0.25, -0.75, 0.25, 0.25]]))


def test_a_constant_changes_only_centring():
    score_NK = scores()
    for loss in (
        lambda s: softmax_loss(s, 0, 0.1),
        lambda s: bradley_terry_loss(s, BEST_WORST, 0.1),
        lambda s: plackett_luce_loss(s, BEST_WORST, 0.1),
    ):
        torch.testing.assert_close(loss(score_NK + 5), loss(score_NK))
    assert centring(torch.tensor([[1.0, 3.0], [-1.0, 1.0]])).tolist() == [4.0, 0.0]


def test_scores_far_apart_stay_finite():
    score_NK = torch.tensor([[-200.0, 200.0, 0.0, 100.0]], requires_grad=True)
    loss = plackett_luce_loss(score_NK, BEST_WORST) + bradley_terry_loss(score_NK, BEST_WORST)
    loss.sum().backward()
    assert loss.isfinite().all() and score_NK.grad.isfinite().all()
    # -200 must come first of all (400 below the top), and 100 last, below 0 (100).
    assert plackett_luce_loss(score_NK, BEST_WORST).item() == pytest.approx(400 + 100, rel=1e-6)


def test_what_has_no_likelihood_is_refused(monkeypatch):
    monkeypatch.setattr(preferences, "MOST_STATES", 64)
    with pytest.raises(ValueError, match="settles no pair"):
        plackett_luce_loss(torch.zeros(1, 3), [])
    with pytest.raises(ValueError, match="settles no pair"):
        bradley_terry_loss(torch.zeros(1, 3), [])
    with pytest.raises(ValueError, match="1 candidates leave no choice"):
        softmax_loss(torch.zeros(1, 1), 0)
    with pytest.raises(ValueError, match="smoothing 1.0"):
        softmax_loss(torch.zeros(1, 2), 0, 1.0)
    apart = [(2 * n, 2 * n + 1) for n in range(7)]
    with pytest.raises(ValueError, match="more than 64 sets"):
        log_plackett_luce(torch.zeros(1, 14), apart)
    # Best alone, a full ranking: any number of candidates.
    many = torch.zeros(1, 30)
    assert log_plackett_luce(many, [(0, low) for low in range(1, 30)]).item() == pytest.approx(-math.log(30))
