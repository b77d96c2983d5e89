"""Losses of preference learning: minus log-likelihoods of choices among K candidates, given their scores.

`above` is what a judgement settles: pairs (i, j), candidate i preferred to candidate j, transitively closed
and without cycles. N judgements that settle the same pairs share a call, score_NK holding their candidates in
one order; each judgement's loss depends on its own row alone, so that a batch may be split anywhere. At K = 2
softmax_loss, bradley_terry_loss and plackett_luce_loss are one and the same, smoothing and margin included.
Scores are in units of log-odds; adding a constant to a row changes no loss but `centring`.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Pairs = Collection[tuple[int, int]]

MOST_STATES = 4096
"""Sets of candidates left that a Plackett-Luce likelihood may pass through: all subsets of 12 candidates."""


def softmax_loss(
    score_NK: Tensor, best: int, smoothing: float = 0.0, margin_N: Tensor | None = None
) -> Tensor:
    """Best of K: -log softmax(score)[best], the best lowered by the margin first.

    smoothing e: the target is 1 - e on the best and e / (K - 1) on each other. -> (N,) nats. Raises
    ValueError for K < 2 or e outside [0, 1). Ziegler et al. 2019, arXiv:1909.08593 (K = 4).
    """
    candidates = score_NK.shape[1]
    _check(candidates, smoothing)
    chosen_K = torch.arange(candidates, device=score_NK.device) == best
    target_K = torch.where(chosen_K, 1.0 - smoothing, smoothing / (candidates - 1)).to(score_NK.dtype)
    shifted_NK = score_NK if margin_N is None else score_NK - margin_N[:, None] * chosen_K
    return -(torch.log_softmax(shifted_NK, 1) * target_K).sum(1)


def bradley_terry_loss(
    score_NK: Tensor, above: Pairs, smoothing: float = 0.0, margin_N: Tensor | None = None
) -> Tensor:
    """Mean over the settled pairs of -(1 - e) log sigmoid(d) - e log sigmoid(-d), d = s_i - s_j - margin.

    The pairs of one judgement are treated as independent, and weigh as much together as one pair alone.
    -> (N,) nats a pair. Raises ValueError without a pair or for e outside [0, 1). Bradley and Terry 1952;
    the margin: Touvron et al. 2023, arXiv:2307.09288.
    """
    _check(score_NK.shape[1], smoothing)
    if not above:
        raise ValueError("a judgement that settles no pair has no likelihood; leave ties out")
    winners, losers = (list(side) for side in zip(*sorted(above), strict=True))
    difference_NP = score_NK[:, winners] - score_NK[:, losers]
    if margin_N is not None:
        difference_NP = difference_NP - margin_N[:, None]
    loss_NP = -logsigmoid(difference_NP)
    if smoothing:
        loss_NP = (1.0 - smoothing) * loss_NP - smoothing * logsigmoid(-difference_NP)
    return loss_NP.mean(1)


def plackett_luce_loss(
    score_NK: Tensor, above: Pairs, smoothing: float = 0.0, margin_N: Tensor | None = None
) -> Tensor:
    """-(1 - e) log P(above) - e log P(above reversed), P the Plackett-Luce probability of the partial order.

    margin: every candidate is lowered by margin * (steps of the longest chain below it), so that each step up
    the order has to be won by the margin. -> (N,) nats. Raises ValueError as `log_plackett_luce` does.
    """
    _check(score_NK.shape[1], smoothing)
    if margin_N is not None:
        height_K = torch.tensor(heights(above, score_NK.shape[1]), device=score_NK.device)
        score_NK = score_NK - margin_N[:, None] * height_K
    loss_N = -log_plackett_luce(score_NK, above)
    if smoothing:
        reverse = [(low, high) for high, low in above]
        loss_N = (1.0 - smoothing) * loss_N - smoothing * log_plackett_luce(score_NK, reverse)
    return loss_N


def log_plackett_luce(score_NK: Tensor, above: Pairs) -> Tensor:
    """Log of the probability that a Plackett-Luce ranking of the K candidates agrees with `above`.

    A ranking draws its places from the top, each candidate with probability exp(s_i) / sum over those left of
    exp(s_j); P(above) is the sum over all full rankings that agree. A full ranking is the usual product; best
    alone is softmax; best and worst of four is P(b, x, y, w) + P(b, y, x, w). Computed exactly over the sets
    of candidates left, not over rankings. -> (N,) nats. Raises ValueError without a pair, or where more than
    MOST_STATES sets can be left. Plackett 1975; Luce 1959.
    """
    if not above:
        raise ValueError("a judgement that settles no pair has no likelihood; leave ties out")
    candidates = score_NK.shape[1]
    known: dict[frozenset[int], Tensor] = {}

    def log_rest(left: frozenset[int]) -> Tensor | None:
        """Log-probability that the ranking of those left agrees; None where they are without any order."""
        inside = [pair for pair in above if pair[0] in left and pair[1] in left]
        if not inside:
            return None
        if left not in known:
            if len(known) >= MOST_STATES:
                raise ValueError(
                    f"an order of {candidates} candidates that leaves so many open passes through more than "
                    f"{MOST_STATES} sets; use bradley_terry, or fewer candidates"
                )
            below = {low for _, low in inside}
            total_N = score_NK[:, sorted(left)].logsumexp(1)
            terms = []
            for first in sorted(left - below):
                rest_N = log_rest(left - {first})
                term_N = score_NK[:, first] - total_N
                terms.append(term_N if rest_N is None else term_N + rest_N)
            known[left] = torch.stack(terms, 1).logsumexp(1) if len(terms) > 1 else terms[0]
        return known[left]

    found_N = log_rest(frozenset(range(candidates)))
    assert found_N is not None
    return found_N


def centring(score_NK: Tensor) -> Tensor:
    """Penalty on the squared mean of a judgement's scores: mean_K(score)^2 -> (N,).

    Comparisons leave the level of the scores open; this holds it near 0. Eisenstein et al. 2023,
    arXiv:2312.09244 (with the sum in place of the mean).
    """
    return score_NK.mean(1).square()


def heights(above: Pairs, candidates: int) -> list[int]:
    """For each candidate the number of steps in the longest chain of `above` that begins with it."""
    below = {high: [low for each, low in above if each == high] for high, _ in above}

    def height(candidate: int) -> int:
        return 1 + max(map(height, below[candidate])) if candidate in below else 0

    return [height(candidate) for candidate in range(candidates)]


def _check(candidates: int, smoothing: float) -> None:
    if candidates < 2:
        raise ValueError(f"{candidates} candidates leave no choice; a comparison needs 2 or more")
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"smoothing {smoothing} must be at least 0 and below 1; 0.05 is usual")
