"""Best-of-n: what the sample of highest proxy reward out of n is worth, from N samples of each prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def selection_weights(proxy: Sequence[float], n: int) -> np.ndarray:
    """Probability that each of N samples is the proxy's best of a random n of them, without replacement.

    Sorted ascending by proxy, sample i (from 1) is the best with C(i-1, n-1) / C(N, n); samples of equal
    proxy share their weights, as a random choice among them would. -> (N,), sum 1. Raises ValueError unless
    1 <= n <= N. Nakano et al. 2021, arXiv:2112.09332, appendix.
    """
    count = len(proxy)
    if not 1 <= n <= count:
        raise ValueError(f"the best of {n} cannot be chosen from {count} samples")
    values = np.asarray(proxy, dtype=float)
    order = np.argsort(values, kind="stable")
    ranked = np.zeros(count)
    # C(i-1, n-1) / C(N, n), each from the one above it: no large numbers.
    weight = n / count
    for place in range(count - 1, n - 2, -1):
        ranked[place] = weight
        if place:
            weight *= (place - n + 1) / place
    weights = np.zeros(count)
    weights[order] = ranked
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.bincount(group, weights) / sizes)[group]


def expected(proxy: Sequence[float], values: Sequence[float], n: int) -> float:
    """E[value of the proxy's best of n]: the mean over all size-n subsets of the N samples, unbiased for it.

    values: the gold reward, or the proxy itself. Raises ValueError unless 1 <= n <= N.
    """
    return float(selection_weights(proxy, n) @ np.asarray(values, dtype=float))


def best_of_n_kl(n: int) -> float:
    """KL in nats of the best-of-n policy from the one it samples: log n - (n - 1) / n.

    An upper bound where rewards tie or the same text comes twice, exact where all differ. Hilton and Gao
    2022; Beirami et al. 2024, arXiv:2401.01879.
    """
    return math.log(n) - (n - 1) / n


def pseudo_values(proxy: Sequence[float], values: Sequence[float], n: int) -> np.ndarray:
    """What each of N draws adds to `expected`: N expected - (N - 1) expected without the draw; (N,).

    Their mean is `expected` itself, because that is a mean over subsets, so drawing them anew tells how it
    varies with the draws. Raises ValueError unless 1 <= n < N. Tukey 1958.
    """
    count = len(proxy)
    whole = expected(proxy, values, n)
    found = np.empty(count)
    for out in range(count):
        rest = [place for place in range(count) if place != out]
        found[out] = count * whole - (count - 1) * expected(
            [proxy[place] for place in rest], [values[place] for place in rest], n
        )
    return found


def sizes(largest: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ... up to the largest n, which always closes the list."""
    found = {1, largest}
    power = 1
    while power <= largest:
        found |= {n for n in (power, power * 3 // 2) if n <= largest}
        power *= 2
    return sorted(found)
