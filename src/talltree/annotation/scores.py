"""Scores of items from judgements: best-minus-worst counts, mean ratings, Bradley-Terry, Plackett-Luce."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import NamedTuple

from talltree.data.preferences import Judgement, pairs, partial_orders
from talltree.errors import ConfigError

Choice = tuple[int, tuple[int, ...]]
"""(item chosen, items it was chosen over), as numbers of items."""


class Item(NamedTuple):
    """A text that is judged: the same candidate of the same prompt is the same item in every tuple."""

    prompt: str
    text: str


class Count(NamedTuple):
    """How often an item was shown, was the best of its tuple, and was the worst."""

    shown: int
    best: int
    worst: int

    @property
    def score(self) -> float:
        """(best - worst) / shown, from -1 to 1."""
        return (self.best - self.worst) / self.shown


def items_of(judgement: Judgement) -> list[Item]:
    """The candidates as items, in the design's order."""
    return [Item(judgement.prompt, text) for text in judgement.candidates]


def ends(judgement: Judgement) -> tuple[int | None, int | None]:
    """(best, worst) as indices, also where a ranking or the choice between two says it; None: not said.

    A partial ranking has no worst, a tie neither, and ratings have those only that no other candidate shares.
    """
    size = len(judgement.candidates)
    best, worst = judgement.best, judgement.worst
    if judgement.ranking is not None:
        best = judgement.ranking[0]
        whole = len(judgement.ranking) >= size - 1
        worst = (
            next((i for i in range(size) if i not in judgement.ranking), judgement.ranking[-1])
            if whole
            else None
        )
    if judgement.ratings is not None and size > 1:
        high, low = max(judgement.ratings), min(judgement.ratings)
        best = judgement.ratings.index(high) if judgement.ratings.count(high) == 1 else None
        worst = judgement.ratings.index(low) if judgement.ratings.count(low) == 1 else None
    if size == 2 and best is not None:
        worst = 1 - best
    elif size == 2 and worst is not None:
        best = 1 - worst
    return best, worst


def best_worst_counts(judgements: Iterable[Judgement]) -> dict[Item, Count]:
    """Each item's Count over the judgements, whose score is (best - worst) / shown.

    Over one tuple whose worst is said the scores add up to 0; where only the best is said, the score is the
    share of tuples won. Orme 2009; Kiritchenko and Mohammad 2017, arXiv:1712.01765.
    """
    shown: Counter[Item] = Counter()
    first: Counter[Item] = Counter()
    last: Counter[Item] = Counter()
    for judgement in judgements:
        items = items_of(judgement)
        shown.update(items)
        best, worst = ends(judgement)
        if best is not None:
            first[items[best]] += 1
        if worst is not None:
            last[items[worst]] += 1
    return {item: Count(count, first[item], last[item]) for item, count in shown.items()}


def mean_ratings(judgements: Iterable[Judgement]) -> dict[Item, float]:
    """Each rated item's mean rating over everybody who rated it."""
    given: dict[Item, list[float]] = {}
    for judgement in judgements:
        if judgement.ratings is not None:
            for item, rating in zip(items_of(judgement), judgement.ratings, strict=True):
                given.setdefault(item, []).append(rating)
    return {item: math.fsum(ratings) / len(ratings) for item, ratings in given.items()}


def simple_scores(judgements: Sequence[Judgement]) -> dict[Item, float]:
    """Mean ratings where every judgement is one of ratings, else best-minus-worst counts."""
    if judgements and all(judgement.ratings is not None for judgement in judgements):
        return mean_ratings(judgements)
    return {item: count.score for item, count in best_worst_counts(judgements).items()}


def groups(judgements: Iterable[Judgement]) -> list[list[Item]]:
    """Items that comparisons join, directly or through others, largest group first.

    An item that was never compared is alone. Strengths of different groups cannot be compared.
    """
    parent: dict[Item, Item] = {}

    def root(item: Item) -> Item:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for judgement in judgements:
        items = items_of(judgement)
        for item in items:
            parent.setdefault(item, item)
        for winner, loser in pairs(judgement):
            parent[root(items[winner])] = root(items[loser])
    joined: dict[Item, list[Item]] = {}
    for item in parent:
        joined.setdefault(root(item), []).append(item)
    return sorted(joined.values(), key=len, reverse=True)


def bradley_terry(judgements: Sequence[Judgement], regularisation: float) -> dict[Item, float]:
    """Strengths s in nats with P(i beats j) = 1 / (1 + exp(s_j - s_i)), from every pair that is settled.

    Minimises sum over pairs of -ln P + regularisation * sum of s^2, which keeps the strength of an item that
    always won finite and each group's mean at 0. The pairs of one judgement count as independent, which they
    are not: intervals do not follow from this likelihood. Items never compared are left out. Bradley and
    Terry 1952; solved by choix.
    """
    choix = _choix()
    return _strengths(
        judgements,
        lambda judgement: [(winner, (loser,)) for winner, loser in pairs(judgement)],
        lambda size, data: choix.opt_pairwise(
            size, [(one, over[0]) for one, over in data], alpha=regularisation
        ),
    )


def plackett_luce(judgements: Sequence[Judgement], regularisation: float) -> dict[Item, float]:
    """Strengths s in nats with P(i is chosen out of S) = exp(s_i) / sum over j in S of exp(s_j).

    Each choice of `partial_orders` of one over several is such a term, so a ranking has its exact likelihood.
    Where several stand above (those over the worst one, equal ratings), each of them is a term of its own:
    a composite likelihood. Regularisation, groups and items left out as in `bradley_terry`, with which it
    agrees on pairs. Plackett 1975; solved by choix.
    """
    choix = _choix()
    return _strengths(
        judgements,
        lambda judgement: [(one, below) for above, below in partial_orders(judgement) for one in above],
        lambda size, data: (
            choix.opt_pairwise(size, [(one, over[0]) for one, over in data], alpha=regularisation)
            if all(len(over) == 1 for _, over in data)  # the same likelihood, and far quicker
            else choix.opt_top1(size, [list(each) for each in data], alpha=regularisation)
        ),
    )


def _strengths(
    judgements: Sequence[Judgement],
    choices: Callable[[Judgement], list[Choice]],
    solve: Callable[[int, list[Choice]], Iterable[float]],
) -> dict[Item, float]:
    """Each group solved on its own: a penalty is all that would join them, and this is quicker."""
    place: dict[Item, tuple[int, int]] = {}
    joined = [group for group in groups(judgements) if len(group) > 1]
    for number, group in enumerate(joined):
        place.update({item: (number, index) for index, item in enumerate(group)})
    data: list[list[Choice]] = [[] for _ in joined]
    for judgement in judgements:
        items = items_of(judgement)
        for one, over in choices(judgement):
            number, index = place[items[one]]
            data[number].append((index, tuple(place[items[each]][1] for each in over)))
    found: dict[Item, float] = {}
    for group, its in zip(joined, data, strict=True):
        found.update(zip(group, map(float, solve(len(group), its)), strict=True))
    return found


def _choix() -> ModuleType:
    try:
        import choix
    except ModuleNotFoundError:
        raise ConfigError(
            "Bradley-Terry and Plackett-Luce need choix, which is missing; pip install 'talltree[annotate]'"
        ) from None
    return choix
