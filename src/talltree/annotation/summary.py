"""Everything that `annotate stats` says about a set of judgements, computed once, as plain values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from talltree.annotation import agreement, annotators, scores
from talltree.annotation.scores import Item
from talltree.data.preferences import Judgement, pairs
from talltree.errors import DataError


class Settings(NamedTuple):
    """Penalty of the strengths, random draws, limit of a fast answer (None: a third of the median)."""

    regularisation: float
    splits: int
    resamples: int
    fast_seconds: float | None
    seed: int


def summarise(judgements: Sequence[Judgement], settings: Settings) -> dict[str, Any]:
    """The content of stats.json; what cannot be computed from these judgements is null.

    Scores, split halves and reliabilities take each annotator's first judgement of a tuple; repeats count for
    self-agreement, seconds and positions alone. Raises DataError without judgements.
    """
    if not judgements:
        raise DataError("there are no judgements yet; let somebody judge, or simulate annotators")
    first = agreement.first_judgements(judgements)
    limit = settings.fast_seconds if settings.fast_seconds is not None else annotators.fast_limit(judgements)
    joined = scores.groups(first)
    alphas = {
        "choices": agreement.choice_agreement(judgements, settings.resamples, settings.seed),
        "ratings_ordinal": agreement.rating_agreement(
            judgements, "ordinal", settings.resamples, settings.seed
        ),
        "ratings_interval": agreement.rating_agreement(
            judgements, "interval", settings.resamples, settings.seed
        ),
    }
    return {
        "judgements": len(judgements),
        "repeats": len(judgements) - len(first),
        "annotators": len({judgement.annotator for judgement in judgements} - {""}),
        "tuples": len({agreement.unit_of(judgement) for judgement in judgements}),
        "candidates": dict(sorted(Counter(len(judgement.candidates) for judgement in judgements).items())),
        "items": len({item for judgement in judgements for item in scores.items_of(judgement)}),
        "pairs": sum(len(pairs(judgement)) for judgement in first),
        "undecided": sum(not pairs(judgement) for judgement in first if len(judgement.candidates) > 1),
        "groups": sum(len(group) > 1 for group in joined),
        "never_compared": sum(len(group) == 1 for group in joined),
        "agreement": {name: _plain(found) for name, found in alphas.items()},
        "split_half": _plain(agreement.split_half(judgements, settings.splits, settings.seed)),
        "self_agreement": _plain(agreement.self_agreement(judgements)),
        "seconds": _plain(annotators.seconds_taken(judgements)),
        "fast_seconds": limit,
        "positions": [_plain(found) for found in annotators.position_bias(judgements)],
        "reliability": [_plain(found) for found in annotators.reliabilities(first, limit)],
        "settings": settings._asdict(),
        "scores": _scores(first, settings.regularisation),
    }


def _scores(judgements: Sequence[Judgement], regularisation: float) -> list[dict[str, Any]]:
    """One row an item, best first: by mean rating, by strength in a single group, by best-minus-worst."""
    counts = scores.best_worst_counts(judgements)
    ratings = scores.mean_ratings(judgements)
    strengths = scores.bradley_terry(judgements, regularisation)
    choices = scores.plackett_luce(judgements, regularisation)
    beside_others = {
        item for each in judgements if len(each.candidates) > 1 for item in scores.items_of(each)
    }
    rows = [
        {
            "prompt": item.prompt,
            "text": item.text,
            **count._asdict(),
            "best_minus_worst": count.score if item in beside_others else None,
            "rating": ratings.get(item),
            "bradley_terry": strengths.get(item),
            "plackett_luce": choices.get(item),
        }
        for item, count in counts.items()
    ]
    comparable = strengths if sum(len(group) > 1 for group in scores.groups(judgements)) == 1 else {}

    def rank(row: dict[str, Any]) -> tuple[float, float, float]:
        item = Item(row["prompt"], row["text"])
        rating, strength = (found.get(item, -math.inf) for found in (ratings, comparable))
        return rating, strength, row["best_minus_worst"] or 0.0

    return sorted(rows, key=rank, reverse=True)


def _plain(found: Any) -> Any:
    """A named tuple as a mapping, NaN as null."""
    if found is None:
        return None
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in found._asdict().items()
    }
