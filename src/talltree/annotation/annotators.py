"""How people judge: their time, their liking for a place on the screen, their agreement with the others."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from talltree.annotation.agreement import contributions
from talltree.annotation.scores import Item, ends, items_of
from talltree.data.preferences import Judgement, pairs

MANY_FAST = 0.1
"""Share of fast answers above which an annotator is flagged."""
ENOUGH = 30
"""Judgements that can be compared with the others' before chance is spoken of."""


class Seconds(NamedTuple):
    """Time per judgement: quartiles in seconds over the judgements that have one."""

    timed: int
    lower: float
    median: float
    upper: float


class Positions(NamedTuple):
    """How often the best of tuples of k stood at each place on the screen, the first place first.

    chi2 and p: Pearson's test of equal counts, k - 1 degrees of freedom; p None below 5 expected a place.
    """

    k: int
    best: tuple[int, ...]
    worst: tuple[int, ...]
    chi2: float
    p: float | None


class Reliability(NamedTuple):
    """One annotator against the scores that the others alone give the items.

    agreed: mean over `compared` judgements of the share of settled pairs in which the others score the
    winner higher (0.5 is chance), with a 95% interval from its deviation over judgements; None where there
    is nothing to compare. correlation: Spearman's, of own ratings with the others' means. fast: answers under
    the limit; flags: what is worth a look, in words.
    """

    annotator: str
    judgements: int
    median_seconds: float | None
    fast: int
    compared: int
    agreed: float | None
    low: float | None
    high: float | None
    correlation: float | None
    flags: tuple[str, ...]


def seconds_taken(judgements: Sequence[Judgement]) -> Seconds | None:
    """Quartiles of the seconds; None if no judgement has them."""
    known = [judgement.seconds for judgement in judgements if judgement.seconds is not None]
    if not known:
        return None
    lower, median, upper = np.quantile(known, [0.25, 0.5, 0.75])
    return Seconds(len(known), float(lower), float(median), float(upper))


def fast_limit(judgements: Sequence[Judgement]) -> float | None:
    """A third of the median time over everybody; None without times."""
    found = seconds_taken(judgements)
    return found.median / 3 if found is not None else None


def position_bias(judgements: Sequence[Judgement]) -> list[Positions]:
    """Places of best and worst choices for each k, from judgements whose order on the screen is known.

    Where the order was drawn at random, every place is equally likely for somebody without a bias.
    """
    from scipy.stats import chisquare

    best: dict[int, Counter[int]] = defaultdict(Counter)
    worst: dict[int, Counter[int]] = defaultdict(Counter)
    for judgement in judgements:
        if judgement.order is None or judgement.ratings is not None:
            continue
        first, last = ends(judgement)
        k = len(judgement.candidates)
        if first is not None:
            best[k][judgement.order.index(first)] += 1
        if last is not None:
            worst[k][judgement.order.index(last)] += 1
    found = []
    for k in sorted(best):
        counts = tuple(best[k][place] for place in range(k))
        test = chisquare(counts)
        p = float(test.pvalue) if sum(counts) >= 5 * k else None
        found.append(
            Positions(k, counts, tuple(worst[k][place] for place in range(k)), float(test.statistic), p)
        )
    return found


def reliabilities(judgements: Sequence[Judgement], fast_seconds: float | None) -> list[Reliability]:
    """A Reliability for each named annotator, in the order of their names."""
    names = sorted({judgement.annotator for judgement in judgements if judgement.annotator})
    if not names:
        return []
    table = contributions(judgements)
    size = len(table.items)
    number = {item: index for index, item in enumerate(table.items)}
    total = np.bincount(table.item_C, table.value_C, size)
    times = np.bincount(table.item_C, minlength=size)
    who_C = np.array([judgement.annotator for judgement in judgements])[table.judgement_C]
    found = []
    for name in names:
        own = who_C == name
        others_times = times - np.bincount(table.item_C[own], minlength=size)
        others_total = total - np.bincount(table.item_C[own], table.value_C[own], size)
        others = np.where(others_times > 0, others_total / np.maximum(others_times, 1), np.nan)
        mine = [judgement for judgement in judgements if judgement.annotator == name]
        scores = {item: float(others[number[item]]) for judgement in mine for item in items_of(judgement)}
        found.append(_reliability(name, mine, scores, fast_seconds))
    return found


def _reliability(
    name: str, mine: Sequence[Judgement], others: dict[Item, float], fast_seconds: float | None
) -> Reliability:
    shares = [share for judgement in mine if (share := _agreed(judgement, others)) is not None]
    agreed = math.fsum(shares) / len(shares) if shares else None
    low = high = None
    if agreed is not None and len(shares) > 1:
        half = 1.96 * float(np.std(shares, ddof=1)) / math.sqrt(len(shares))
        low, high = max(agreed - half, 0.0), min(agreed + half, 1.0)
    seconds = seconds_taken(mine)
    timed = [judgement.seconds for judgement in mine if judgement.seconds is not None]
    fast = sum(taken < fast_seconds for taken in timed) if fast_seconds is not None else 0
    flags = []
    if timed and fast / len(timed) > MANY_FAST:
        flags.append(f"{fast} of {len(timed)} answers in under {fast_seconds:.1f} s")
    if low is not None and low <= 0.5 and len(shares) >= ENOUGH:
        flags.append("agreement that chance could give")
    return Reliability(
        name,
        len(mine),
        seconds.median if seconds is not None else None,
        fast,
        len(shares),
        agreed,
        low,
        high,
        _correlation(mine, others),
        tuple(flags),
    )


def _agreed(judgement: Judgement, others: dict[Item, float]) -> float | None:
    """Share of the judgement's pairs on which the others agree; equal scores count half, unknown ones not."""
    items = items_of(judgement)
    found = [
        (np.sign(difference) + 1) / 2
        for winner, loser in pairs(judgement)
        if math.isfinite(difference := others[items[winner]] - others[items[loser]])
    ]
    return float(sum(found)) / len(found) if found else None


def _correlation(mine: Sequence[Judgement], others: dict[Item, float]) -> float | None:
    from scipy.stats import rankdata

    both = [
        (rating, others[item])
        for judgement in mine
        if judgement.ratings is not None
        for item, rating in zip(items_of(judgement), judgement.ratings, strict=True)
        if math.isfinite(others[item])
    ]
    if len(both) < 3:
        return None
    one, other = (rankdata(column) for column in zip(*both, strict=True))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])
