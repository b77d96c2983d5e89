"""How far people agree with each other and with themselves: alpha, split-half reliability, repeats."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from talltree.annotation.scores import Item, ends, items_of
from talltree.data.preferences import Judgement
from talltree.errors import ConfigError

Level = Literal["nominal", "ordinal", "interval"]
Unit = tuple[str, frozenset[str]]
"""The prompt and the candidates of a tuple, in whatever order they are given."""


class Agreement(NamedTuple):
    """Krippendorff's alpha with a 95% bootstrap interval over units, and the raw share it corrects.

    units: those judged by two people or more; judgements: values given to them. agreed: share of pairs of
    people at the same unit with the same value.
    """

    level: Level
    alpha: float
    low: float
    high: float
    agreed: float
    units: int
    judgements: int


class SplitHalf(NamedTuple):
    """Correlation of the items' scores from two random halves of the judgements, over several halvings.

    pearson and spearman: means over the halvings; low and high: 2.5% and 97.5% of Pearson's r over them,
    which is the spread of halving alone. spearman_brown = 2 r / (1 + r): all judgements together.
    items: the mean number of items that had judgements in both halves.
    """

    pearson: float
    low: float
    high: float
    spearman: float
    spearman_brown: float
    items: float
    splits: int


class SelfAgreement(NamedTuple):
    """Answers to a tuple's second showing against the same person's first, with 95% Wilson intervals.

    same_best and same_worst: shares of repeats, None where never said. same: share with the whole answer the
    same; chance: what that share would be for answers drawn at random. rating_change: mean absolute change.
    """

    repeats: int
    same: float
    low: float
    high: float
    chance: float | None
    same_best: float | None
    same_worst: float | None
    rating_change: float | None


def unit_of(judgement: Judgement) -> Unit:
    """What everybody who judged the same candidates shares."""
    return judgement.prompt, frozenset(judgement.candidates)


def first_judgements(judgements: Sequence[Judgement]) -> list[Judgement]:
    """Without an annotator's later judgements of the same unit; the nameless count as different people."""
    seen: set[tuple[str, Unit]] = set()
    kept = []
    for judgement in judgements:
        key = (judgement.annotator, unit_of(judgement))
        if not judgement.annotator or key not in seen:
            kept.append(judgement)
        seen.add(key)
    return kept


def choice_agreement(judgements: Sequence[Judgement], resamples: int, seed: int) -> Agreement | None:
    """Nominal alpha of the best choices: a unit is a tuple, its value which of the candidates is best.

    Candidates are numbered by a hash of their text, because a number has no meaning beyond its own tuple; a
    tie is a value of its own. None where no unit has two people's choices, or only one value was ever chosen.
    """
    values: dict[Unit, list[float]] = defaultdict(list)
    for judgement in first_judgements(judgements):
        best, _ = ends(judgement)
        if judgement.tie:
            values[unit_of(judgement)].append(-1.0)
        elif best is not None and judgement.ratings is None:
            ranked = sorted(judgement.candidates, key=_hash)
            values[unit_of(judgement)].append(float(ranked.index(judgement.candidates[best])))
    return _agreement(values.values(), "nominal", resamples, seed)


def rating_agreement(
    judgements: Sequence[Judgement], level: Level, resamples: int, seed: int
) -> Agreement | None:
    """Alpha of the ratings: a unit is one candidate of one prompt, its values the ratings people gave it.

    None where no unit was rated by two people, or every rating is the same.
    """
    values: dict[Item, list[float]] = defaultdict(list)
    for judgement in first_judgements(judgements):
        if judgement.ratings is not None:
            for item, rating in zip(items_of(judgement), judgement.ratings, strict=True):
                values[item].append(float(rating))
    return _agreement(values.values(), level, resamples, seed)


def _agreement(values: Iterable[list[float]], level: Level, resamples: int, seed: int) -> Agreement | None:
    several = [given for given in values if len(given) > 1]
    domain = sorted({value for given in several for value in given})
    if len(domain) < 2:
        return None
    place = {value: column for column, value in enumerate(domain)}
    counts_UV = np.zeros((len(several), len(domain)))
    for row, given in enumerate(several):
        for value in given:
            counts_UV[row, place[value]] += 1
    rng = np.random.default_rng(seed)
    drawn = [
        _alpha(counts_UV[rng.integers(len(several), size=len(several))], domain, level)
        for _ in range(resamples)
    ]
    known = [value for value in drawn if value is not None]
    alpha = _alpha(counts_UV, domain, level)
    assert alpha is not None
    total_U = counts_UV.sum(1)
    agreed = float((counts_UV * (counts_UV - 1)).sum() / (total_U * (total_U - 1)).sum())
    low, high = np.quantile(known, [0.025, 0.975]) if known else (math.nan, math.nan)
    return Agreement(level, alpha, float(low), float(high), agreed, len(several), int(total_U.sum()))


def _alpha(counts_UV: NDArray[np.float64], domain: Sequence[float], level: Level) -> float | None:
    """Alpha of a table of how often each unit was given each value; None where one value alone was given."""
    is_used = counts_UV.sum(0) > 0
    if is_used.sum() < 2:
        return None
    kept = np.asarray(domain)[is_used]
    return float(
        _krippendorff().alpha(
            value_counts=counts_UV[:, is_used], value_domain=kept, level_of_measurement=level
        )
    )


def split_half(judgements: Sequence[Judgement], splits: int, seed: int) -> SplitHalf | None:
    """Reliability of best-minus-worst scores, or mean ratings, from random halves of the judgements.

    In every halving each tuple's judgements are dealt to the two halves in turn, the first one to a random
    half. Repeats by the same person count once. None where scores of fewer than 3 items are in both halves,
    or are constant there, in every halving. Kiritchenko and Mohammad 2017, arXiv:1712.01765.
    """
    from scipy.stats import rankdata

    kept = first_judgements(judgements)
    if not kept:
        return None
    table = contributions(kept)
    unit_J = _unit_numbers(kept)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(splits):
        half_C = _halves(unit_J, rng)[table.judgement_C]
        halves = [_means(table, half_C == half) for half in (0, 1)]
        is_in_both = np.isfinite(halves[0]) & np.isfinite(halves[1])
        one, other = (scores[is_in_both] for scores in halves)
        if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
            continue
        spearman = np.corrcoef(rankdata(one), rankdata(other))[0, 1]
        found.append((np.corrcoef(one, other)[0, 1], spearman, len(one)))
    if not found:
        return None
    pearson_S, spearman_S, items_S = np.array(found).T
    r = float(pearson_S.mean())
    low, high = map(float, np.quantile(pearson_S, [0.025, 0.975]))
    stepped_up = 2 * r / (1 + r) if r > -1 else math.nan
    return SplitHalf(r, low, high, float(spearman_S.mean()), stepped_up, float(items_S.mean()), len(found))


def halving(judgements: Sequence[Judgement], seed: int) -> tuple[list[float], list[float]]:
    """The scores of the items from the two halves of one random halving, where both have judgements."""
    kept = first_judgements(judgements)
    table = contributions(kept)
    half_C = _halves(_unit_numbers(kept), np.random.default_rng(seed))[table.judgement_C]
    one, other = (_means(table, half_C == half) for half in (0, 1))
    is_in_both = np.isfinite(one) & np.isfinite(other)
    return one[is_in_both].tolist(), other[is_in_both].tolist()


def _unit_numbers(judgements: Sequence[Judgement]) -> NDArray[np.int64]:
    numbers: dict[Unit, int] = {}
    return np.array([numbers.setdefault(unit_of(judgement), len(numbers)) for judgement in judgements])


class Contributions(NamedTuple):
    """What each showing of an item adds to its score: +1 best, -1 worst, 0 neither; or its rating.

    judgement_C, item_C: numbers of judgement and item; value_C; items: the items by number.
    """

    judgement_C: NDArray[np.int64]
    item_C: NDArray[np.int64]
    value_C: NDArray[np.float64]
    items: list[Item]


def contributions(judgements: Sequence[Judgement]) -> Contributions:
    """The table of which an item's mean value is its `scores.simple_scores`."""
    are_ratings = all(judgement.ratings is not None for judgement in judgements)
    number: dict[Item, int] = {}
    rows: list[tuple[int, int, float]] = []
    for place, judgement in enumerate(judgements):
        best, worst = ends(judgement)
        for index, item in enumerate(items_of(judgement)):
            if are_ratings and judgement.ratings is not None:
                value = float(judgement.ratings[index])
            else:
                value = float(index == best) - float(index == worst)
            rows.append((place, number.setdefault(item, len(number)), value))
    judgement_C, item_C, value_C = zip(*rows, strict=True)
    return Contributions(np.array(judgement_C), np.array(item_C), np.array(value_C), list(number))


def _means(table: Contributions, chosen_C: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean value of each item over the chosen rows; NaN where it has none."""
    size = len(table.items)
    times = np.bincount(table.item_C[chosen_C], minlength=size)
    sums = np.bincount(table.item_C[chosen_C], table.value_C[chosen_C], size)
    return np.where(times > 0, sums / np.maximum(times, 1), np.nan)


def _halves(unit_J: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """0 or 1 for each judgement: dealt in turn within a unit, in random order, from a random half on."""
    order = np.lexsort((rng.random(len(unit_J)), unit_J))
    sorted_units = unit_J[order]
    is_first = np.concatenate([[True], sorted_units[1:] != sorted_units[:-1]])
    begins = np.flatnonzero(is_first)
    group = np.cumsum(is_first) - 1
    start = rng.integers(2, size=len(begins))
    half = np.empty(len(unit_J), np.int64)
    half[order] = (np.arange(len(unit_J)) - begins[group] + start[group]) % 2
    return half


def self_agreement(judgements: Sequence[Judgement]) -> SelfAgreement | None:
    """How often the same person answers the same tuple as before; None without any repeat.

    Each showing is compared with the one before it. `chance` is known for choices: 1/k for the best of k,
    1/(k(k-1)) for best and worst, 1/k! for a whole ranking; None for ratings and where ties may be given.
    """
    showings: dict[tuple[str, Unit], list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        if judgement.annotator:
            showings[judgement.annotator, unit_of(judgement)].append(judgement)
    repeats = [pair for shown in showings.values() for pair in pairwise(shown)]
    if not repeats:
        return None
    same = [_answer(one) == _answer(other) for one, other in repeats]
    low, high = wilson(sum(same), len(same))
    change = [abs(one - other) for pair in repeats for one, other in _rating_pairs(*pair)]
    chances = [_chance(one) for one, _ in repeats]
    return SelfAgreement(
        repeats=len(repeats),
        same=sum(same) / len(same),
        low=low,
        high=high,
        chance=None if None in chances else math.fsum(filter(None, chances)) / len(chances),
        same_best=_same_end(repeats, 0),
        same_worst=_same_end(repeats, 1),
        rating_change=math.fsum(change) / len(change) if change else None,
    )


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95% Wilson score interval of a share."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def _answer(judgement: Judgement) -> object:
    """What was answered, in texts, so that the order of the candidates does not matter."""
    if judgement.ratings is not None:
        return sorted(zip(judgement.candidates, judgement.ratings, strict=True))
    if judgement.ranking is not None:
        return [judgement.candidates[index] for index in judgement.ranking]
    return [None if end is None else judgement.candidates[end] for end in ends(judgement)]


def _rating_pairs(one: Judgement, other: Judgement) -> list[tuple[float, float]]:
    if one.ratings is None or other.ratings is None:
        return []
    again = dict(zip(other.candidates, other.ratings, strict=True))
    return [(rating, again[text]) for text, rating in zip(one.candidates, one.ratings, strict=True)]


def _chance(judgement: Judgement) -> float | None:
    k = len(judgement.candidates)
    if judgement.ratings is not None or judgement.tie:
        return None
    if judgement.ranking is not None:
        return math.factorial(k - len(judgement.ranking)) / math.factorial(k)
    both = judgement.best is not None and judgement.worst is not None and k > 2
    return 1 / (k * (k - 1)) if both else 1 / k


def _same_end(repeats: Sequence[tuple[Judgement, Judgement]], which: int) -> float | None:
    texts = [
        [None if (end := ends(judgement)[which]) is None else judgement.candidates[end] for judgement in pair]
        for pair in repeats
    ]
    said = [one == other for one, other in texts if one is not None and other is not None]
    return sum(said) / len(said) if said else None


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _krippendorff() -> ModuleType:
    try:
        import krippendorff
    except ModuleNotFoundError:
        raise ConfigError(
            "alpha needs krippendorff, which is missing; pip install 'talltree[annotate]'"
        ) from None
    return krippendorff
