"""What the held-out pairs say: accuracy with intervals and by margin, calibration, length, annotators.

Pure functions of pairs. A pair is right where its winner scores higher; equal scores count half.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 2_000
CALIBRATION_BINS = 10
DIFFERENCE_BINS = 4
MOST_VALUES = 10
ANNOTATORS_SHOWN = 50


class Pair(NamedTuple):
    """One settled pair of one held-out judgement.

    difference: reward of the winner minus that of the loser. units: what it hangs on, as in `cluster_share`.
    margin: None where none is stated. length: characters of the winner's completion minus those of the
    loser's. texts: rows of winner and loser.
    """

    difference: float
    units: tuple[int, ...]
    annotator: str
    margin: float | None
    length: int
    texts: tuple[int, int]


def right(difference: float) -> float:
    """1 above 0, one half at 0, 0 below."""
    return 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0


def accuracy(pairs: Sequence[Pair], seed: int = 0) -> dict[str, Any]:
    """Share of the pairs that are right, with the interval of `cluster_share` over their units."""
    return cluster_share([right(p.difference) for p in pairs], [p.units for p in pairs], seed)


def cluster_share(values: Sequence[float], units: Sequence[tuple[int, ...]], seed: int = 0) -> dict[str, Any]:
    """Mean of the values with a 95% percentile bootstrap that draws what they hang on anew, RESAMPLES times.

    units: for each value its cluster, or all items that it compares. Items are drawn with replacement, and a
    value counts the product of how often its items were drawn; draws without any value are left out. For
    clusters that is the cluster bootstrap (Efron 1979), for items the product bootstrap, a little wide rather
    than too narrow (Owen and Eckles 2012, arXiv:1106.2125). low and high are None where no two values are
    free of common units; mean, too, without a value.
    """
    if not values:
        return {"mean": None, "low": None, "high": None, "n": 0, "clusters": 0}
    totals: dict[tuple[int, ...], list[float]] = {}
    for value, each in zip(values, units, strict=True):
        found_there = totals.setdefault(tuple(sorted(each)), [0.0, 0.0])
        found_there[0] += value
        found_there[1] += 1.0
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(itertools.chain(*units)))}
    sums, sizes = np.array(list(totals.values())).T
    found: dict[str, Any] = {"mean": float(sums.sum() / sizes.sum()), "low": None, "high": None}
    if any(set(one).isdisjoint(other) for one, other in itertools.combinations(totals, 2)):
        longest = max(map(len, totals))
        # The last column is drawn once always, for what hangs on fewer units than others.
        place_MK = np.array(
            [[numbers[u] for u in each] + [len(numbers)] * (longest - len(each)) for each in totals]
        )
        drawn = np.random.default_rng(seed).multinomial(
            len(numbers), np.full(len(numbers), 1 / len(numbers)), size=RESAMPLES
        )
        shares = []
        for some in np.array_split(np.pad(drawn, ((0, 0), (0, 1)), constant_values=1), RESAMPLES // 100):
            weight = some[:, place_MK].prod(2)
            size = weight @ sizes
            shares.append((weight @ sums)[size > 0] / size[size > 0])
        low, high = np.percentile(np.concatenate(shares), [2.5, 97.5])
        found |= {"low": float(low), "high": float(high)}
    return found | {"n": len(values), "clusters": len(numbers)}


def by_margin(pairs: Sequence[Pair], seed: int = 0) -> list[dict[str, Any]]:
    """Accuracy by the annotators' own margin: each value, or quarters where there are more than MOST_VALUES.

    Empty where no two pairs state different margins.
    """
    stated = [(pair.margin, pair) for pair in pairs if pair.margin is not None]
    if len({margin for margin, _ in stated}) < 2:
        return []
    return _binned([pair for _, pair in stated], [margin for margin, _ in stated], seed)


def by_difference(pairs: Sequence[Pair], seed: int = 0) -> list[dict[str, Any]]:
    """Accuracy by how far apart the model scores the two texts, in quarters of the pairs."""
    return _binned(pairs, [abs(pair.difference) for pair in pairs], seed)


def calibration(pairs: Sequence[Pair], log_odds: float) -> dict[str, Any]:
    """Predicted against observed: p = sigmoid(log_odds * difference) that the winner wins.

    bins: by confidence max(p, 1 - p) in tenths of [0.5, 1], with its mean and the share that is right. ece =
    sum over bins of |confidence - accuracy| * pairs / all. nats: mean of -log p; ln 2 = 0.693 is chance. Guo
    et al. 2017, arXiv:1706.04599.
    """
    bins: list[list[tuple[float, float]]] = [[] for _ in range(CALIBRATION_BINS)]
    nats = 0.0
    for pair in pairs:
        x = log_odds * pair.difference
        nats += math.log1p(math.exp(-abs(x))) + max(-x, 0.0)
        confidence = 1.0 / (1.0 + math.exp(-abs(x)))
        number = min(int((confidence - 0.5) * 2 * CALIBRATION_BINS), CALIBRATION_BINS - 1)
        bins[number].append((confidence, right(pair.difference)))
    rows = [
        {
            "from": 0.5 + number / (2 * CALIBRATION_BINS),
            "to": 0.5 + (number + 1) / (2 * CALIBRATION_BINS),
            "pairs": len(inside),
            "confidence": sum(c for c, _ in inside) / len(inside),
            "accuracy": sum(r for _, r in inside) / len(inside),
        }
        for number, inside in enumerate(bins)
        if inside
    ]
    ece = sum(row["pairs"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / len(pairs)
    return {"ece": ece, "nats": nats / len(pairs), "bins": rows}


def length(
    scores: Sequence[float], lengths: Sequence[int], pairs: Sequence[Pair], train_longer_wins: float
) -> dict[str, Any]:
    """Spearman's correlation of score and completion length over texts, and what length alone gets right.

    Lengths are in characters: a text that the model reads from its middle on counts whole.

    train_longer_wins: share of the training pairs that the longer text won, which says whether the baseline
    prefers the longer or the shorter. The correlation is None where scores or lengths are all equal.
    """
    varied = len(set(scores)) > 1 and len(set(lengths)) > 1
    sign = 1 if train_longer_wins >= 0.5 else -1
    alone = [right(sign * pair.length) for pair in pairs]
    return {
        "spearman": float(stats.spearmanr(scores, lengths).statistic) if varied else None,
        "baseline": "longer" if sign > 0 else "shorter",
        "baseline_accuracy": sum(alone) / len(alone),
        "model_prefers_longer": sum(right(p.difference * p.length) for p in pairs) / len(pairs),
        "winner_is_longer": sum(right(p.length) for p in pairs) / len(pairs),
    }


def agreement(pairs: Sequence[Pair]) -> dict[str, Any]:
    """How often two different annotators of one pair of texts agree: share of encounters, None without."""
    encounters = [
        one.texts == other.texts
        for judged in _by_texts(pairs).values()
        for one, other in itertools.combinations(judged, 2)
        if one.annotator != other.annotator
    ]
    return {
        "mean": sum(encounters) / len(encounters) if encounters else None,
        "encounters": len(encounters),
        "pairs_judged_again": sum(
            len({pair.annotator for pair in judged}) > 1 for judged in _by_texts(pairs).values()
        ),
    }


def by_annotator(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """For each annotator, most pairs first: pairs, the model's accuracy on them, agreement with the others.

    Empty for one annotator; at most ANNOTATORS_SHOWN.
    """
    names = {pair.annotator for pair in pairs}
    if len(names) < 2:
        return []
    grouped = _by_texts(pairs)
    rows: list[dict[str, Any]] = []
    for name in sorted(names):
        own = [pair for pair in pairs if pair.annotator == name]
        met = [
            pair.texts == other.texts
            for pair in own
            for other in grouped[frozenset(pair.texts)]
            if other.annotator != name
        ]
        rows.append(
            {
                "annotator": name,
                "pairs": len(own),
                "accuracy": sum(right(pair.difference) for pair in own) / len(own),
                "agreement": sum(met) / len(met) if met else None,
                "encounters": len(met),
            }
        )
    return sorted(rows, key=lambda row: (-row["pairs"], row["annotator"]))[:ANNOTATORS_SHOWN]


def _by_texts(pairs: Sequence[Pair]) -> Mapping[frozenset[int], list[Pair]]:
    found: dict[frozenset[int], list[Pair]] = {}
    for pair in pairs:
        found.setdefault(frozenset(pair.texts), []).append(pair)
    return found


def _binned(pairs: Sequence[Pair], values: Sequence[float], seed: int) -> list[dict[str, Any]]:
    """Accuracy within bins of the values: each value where they are few, else quarters."""
    distinct = sorted(set(values))
    if len(distinct) <= MOST_VALUES:
        edges = [(value, value) for value in distinct]
    else:
        cuts = [float(cut) for cut in np.quantile(values, np.linspace(0, 1, DIFFERENCE_BINS + 1))]
        edges = list(itertools.pairwise(dict.fromkeys(cuts)))
    rows = []
    taken: set[int] = set()
    for low, high in edges:
        chosen = [n for n, value in enumerate(values) if n not in taken and low <= value <= high]
        taken.update(chosen)
        if chosen:
            rows.append({"from": low, "to": high, **accuracy([pairs[n] for n in chosen], seed)})
    return rows
