"""Gold reward over d = sqrt(KL): the curves of Gao et al. 2022, arXiv:2210.10760, their fits and peaks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from talltree.evals.results import Metric
from talltree.evals.statistics import CONFIDENCE, RESAMPLES

Kind = Literal["bon", "rl"]
FORMULAS: dict[Kind, str] = {"bon": "d (alpha - beta d)", "rl": "d (alpha - beta log d)"}
"""Gold reward gained over the reference's own; d = sqrt(KL) in sqrt(nats), log is the natural one."""


class Coefficients(NamedTuple):
    """alpha: gain per sqrt(nat) at the start; beta: how fast it is lost."""

    alpha: float
    beta: float


class Peak(NamedTuple):
    """Where the fitted gain is highest: d in sqrt(nats), and the gain there."""

    d: float
    gain: float


class Fit(NamedTuple):
    """Coefficients, peak and fall with 95% intervals from resampled prompts (or draws).

    alpha, beta, r_squared (share of the gains' sum of squares that the curve explains; None where all gains
    are 0). peak_d, peak_gain: None where the fitted curve has no peak between 0 and the largest d measured;
    peak_share: share of resamples that have one there, and their interval is over those. fall: fitted gain at
    the peak less that at the largest d, 0 in resamples without such a peak; None with peak_d.
    """

    kind: Kind
    alpha: Metric
    beta: Metric
    r_squared: float | None
    peak_d: Metric | None
    peak_gain: Metric | None
    fall: Metric | None
    peak_share: float
    largest_d: float


class Points(NamedTuple):
    """What was measured at C checkpoints (or sizes n): arrays of KL in nats and of gold reward, one a point.

    An entry is a unit: a prompt's mean, or a single draw. base: the reference's gold reward. paired: a unit
    is the same prompt (or draw) in every array, so it is drawn anew for all of them at once; otherwise each
    array is drawn from by itself, KL and gold of a point together where they have the same length.
    """

    kl: list[np.ndarray]
    gold: list[np.ndarray]
    base: np.ndarray
    paired: bool


def gains(kind: Kind, d: Sequence[float] | np.ndarray, found: Coefficients) -> np.ndarray:
    """The curve: d (alpha - beta d) for bon, d (alpha - beta log d) for rl; 0 at d = 0."""
    return _features(kind, np.asarray(d, dtype=float)) @ np.array(found)


def fit(kind: Kind, d: Sequence[float] | np.ndarray, gained: Sequence[float] | np.ndarray) -> Coefficients:
    """Least squares of the gains on the curve, which is linear in alpha and beta.

    d: sqrt(nats), >= 0. Raises ValueError unless there are two different d above 0 (rl: besides, they must
    not make one line, as no two do).
    """
    places = np.asarray(d, dtype=float)
    if len(np.unique(places[places > 0])) < 2:
        raise ValueError("alpha and beta need at least two points of different KL above 0")
    solved = np.linalg.lstsq(_features(kind, places), np.asarray(gained, dtype=float), rcond=None)[0]
    return Coefficients(float(solved[0]), float(solved[1]))


def peak(kind: Kind, found: Coefficients) -> Peak | None:
    """The highest point of the curve over d > 0, None where there is none.

    bon: d = alpha / (2 beta), for alpha and beta above 0. rl: d = exp(alpha / beta - 1), for beta above 0.
    """
    alpha, beta = found
    if beta <= 0 or (kind == "bon" and alpha <= 0):
        return None
    if kind == "bon":
        return Peak(alpha / (2 * beta), alpha**2 / (4 * beta))
    exponent = alpha / beta - 1
    if exponent > 300:  # far beyond every KL, and beyond the largest float soon after
        return None
    at = math.exp(exponent)
    return Peak(at, beta * at)


def fit_points(kind: Kind, points: Points, resamples: int = RESAMPLES, seed: int = 0) -> Fit:
    """The fit to all units, and intervals from drawing units anew, KL, gold and base together.

    d is the square root of the mean KL, 0 where that is below 0, as an estimate near 0 may be. Raises
    ValueError as `fit` does.
    """
    kl, gold = (np.array([float(each.mean()) for each in part]) for part in (points.kl, points.gold))
    d, gained = _measured(kl, gold, float(points.base.mean()))
    found, largest = fit(kind, d, gained), float(d.max())
    residual = float(np.sum((gained - gains(kind, d, found)) ** 2))
    total = float(np.sum(gained**2))
    drawn = _resampled(kind, points, resamples, seed)
    top = _inside(kind, found, largest)
    tops = [_inside(kind, Coefficients(*pair), end) for *pair, end in drawn]
    falls = [
        _fall(kind, Coefficients(*pair[:2]), top_, pair[2]) for pair, top_ in zip(drawn, tops, strict=True)
    ]
    n = sum(map(len, points.gold))
    alphas, betas = drawn[:, 0], drawn[:, 1]
    inside = [each for each in tops if each is not None]
    return Fit(
        kind,
        _metric(found.alpha, alphas, n, "gold per sqrt(nat)"),
        _metric(found.beta, betas, n, "gold per nat" if kind == "bon" else "gold per sqrt(nat)"),
        1 - residual / total if total > 0 else None,
        None if top is None else _metric(top.d, [each.d for each in inside], n, "sqrt(nats)"),
        None if top is None else _metric(top.gain, [each.gain for each in inside], n, "gold"),
        None if top is None else _metric(_fall(kind, found, top, largest), falls, n, "gold"),
        len(inside) / len(tops) if tops else 0.0,
        largest,
    )


def _features(kind: Kind, d: np.ndarray) -> np.ndarray:
    if kind == "bon":
        return np.stack([d, -(d**2)], axis=-1)
    # d log d -> 0 as d -> 0.
    return np.stack([d, -d * np.log(np.where(d > 0, d, 1.0))], axis=-1)


def _measured(kl: np.ndarray, gold: np.ndarray, base: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.sqrt(np.maximum(kl, 0.0)), gold - base


def _resampled(kind: Kind, points: Points, resamples: int, seed: int) -> np.ndarray:
    """(alpha, beta, largest d) of each resample that can be fitted, (B, 3); none for one unit."""
    if min(map(len, (*points.gold, points.base))) < 2:
        return np.zeros((0, 3))
    generator = np.random.default_rng(seed)

    def weights(units: int) -> np.ndarray:
        return generator.multinomial(units, np.full(units, 1 / units), size=resamples) / units

    common = weights(len(points.base))
    kl_means, gold_means = [], []
    for of_kl, of_gold in zip(points.kl, points.gold, strict=True):
        drawn = common if points.paired else weights(len(of_gold))
        gold_means.append(drawn @ of_gold)
        kl_means.append((drawn if len(of_kl) == len(of_gold) else weights(len(of_kl))) @ of_kl)
    base, kl, gold = common @ points.base, np.stack(kl_means, 1), np.stack(gold_means, 1)
    d, gained = _measured(kl, gold, base[:, None])
    features = _features(kind, d)
    # The normal equations of two coefficients, all resamples at once.
    squares = np.einsum("bci,bcj->bij", features, features)
    products = np.einsum("bci,bc->bi", features, gained)
    usable = np.linalg.det(squares) > 1e-12 * np.einsum("bii->b", squares) ** 2
    solved = np.linalg.solve(squares[usable], products[usable][..., None])[..., 0]
    return np.column_stack([solved, d.max(1)[usable]])


def _inside(kind: Kind, found: Coefficients, largest: float) -> Peak | None:
    top = peak(kind, found)
    return top if top is not None and top.d < largest else None


def _fall(kind: Kind, found: Coefficients, top: Peak | None, largest: float) -> float:
    return 0.0 if top is None else top.gain - float(gains(kind, [largest], found)[0])


def _metric(value: float, drawn: Sequence[float] | np.ndarray, n: int, unit: str) -> Metric:
    if len(drawn) < 2:
        return Metric(value, None, None, n, unit)
    low, high = np.quantile(np.asarray(drawn), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Metric(value, float(low), float(high), n, unit)
