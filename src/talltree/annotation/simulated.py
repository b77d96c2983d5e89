"""Simulated annotators: a stated hidden utility, noise, a liking for the first place, and lapses.

They are for tests, studies and demonstrations, and answer through the same store as people.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from talltree.annotation.scores import Item
from talltree.annotation.store import Store
from talltree.annotation.study import Answer, Kind, Study, Task


class Habits(NamedTuple):
    """How a simulated annotator judges; noise and position_bias are in units of the utility.

    Each candidate's felt value is u + position_bias (for the one that stands first) + noise * g with g drawn
    from the standard Gumbel distribution for every candidate of every task, so that the order of the felt
    values follows Plackett-Luce with strengths u / noise (Yellott 1977): the best of S is i with
    probability exp(u_i / noise) / sum over S. A share `lapses` of the answers is drawn uniformly instead.
    """

    noise: float = 0.0
    position_bias: float = 0.0
    lapses: float = 0.0
    seed: int = 0


def judge(
    kind: Kind,
    task: Task,
    utilities: Sequence[float],
    habits: Habits,
    name: str,
    thresholds: Sequence[float] = (),
    criteria: int = 1,
) -> Answer:
    """The answer of the annotator `name` to a task; utilities are those of the candidates in design order.

    It depends on the seed, the name, the tuple and whether it is a repeat, and on nothing else: not on the
    order in which tasks come. Equal felt values are put in random order. A rating is 1 + how many of the
    `thresholds` (ascending, points - 1 of them) the felt value has reached; each criterion has its own noise.
    Nobody answers "no preference", and no seconds are given: nobody took any.
    """
    rng = _random(habits.seed, name, task.tuple_id, task.repeat)
    lapses = rng.random() < habits.lapses
    k = len(utilities)
    if kind == "rating":
        rows = []
        for _ in range(criteria):
            felt = _felt(utilities, task, habits, rng)
            drawn = [1 + rng.randrange(len(thresholds) + 1) for _ in range(k)]
            rated = [1 + bisect.bisect_right(thresholds, value) for value in felt]
            rows.append(tuple(drawn if lapses else rated))
        return Answer(ratings=tuple(rows))
    felt = _felt(utilities, task, habits, rng)
    order = rng.sample(range(k), k)
    if not lapses:
        order.sort(key=lambda candidate: -felt[candidate])  # stable: equal ones stay in random order
    if kind == "bws":
        return Answer(best=order[0], worst=order[-1])
    return Answer(best=order[0])


def thresholds(utilities: Sequence[float], points: int) -> list[float]:
    """The quantiles 1/points, 2/points, ... of the utilities, so that every rating is given equally often."""
    return [float(each) for each in np.quantile(utilities, np.arange(1, points) / points)]


def utilities_of(study: Study, scored: Mapping[Item, float]) -> dict[str, list[float]]:
    """tuple_id -> the utilities of its candidates in design order."""
    return {
        each.tuple_id: [scored[Item(each.prompt, text)] for text in each.candidates] for each in study.tuples
    }


def items_of_study(study: Study) -> list[Item]:
    """Every different item of the study, in the order of its tuples."""
    return list(dict.fromkeys(Item(each.prompt, text) for each in study.tuples for text in each.candidates))


def answer_tasks(
    store: Store, names: Sequence[str], scored: Mapping[Item, float], habits: Habits
) -> dict[str, int]:
    """Lets the annotators answer in turn, one task each, until none has any left; answers given by each.

    Annotators who are not in the study join it. Every answer is stored on its own with a request id made from
    name and task, so that whoever is killed goes on later and nothing is stored twice.
    """
    study = store.study
    known = {each.name: each.token for each in store.annotators()}
    tokens = {name: known.get(name) or store.add_annotator(name).token for name in names}
    of_tuple = utilities_of(study, scored)
    limits = thresholds(list(scored.values()), study.points) if study.kind == "rating" else []
    given = dict.fromkeys(names, 0)
    busy = list(names)
    while busy:
        for name in list(busy):
            task = store.next_task(tokens[name])
            if task is None:
                busy.remove(name)
                continue
            answer = judge(
                study.kind, task, of_tuple[task.tuple_id], habits, name, limits, max(len(study.criteria), 1)
            )
            store.answer(tokens[name], task.task_id, _request_id(name, task), answer)
            given[name] += 1
    return given


def _felt(utilities: Sequence[float], task: Task, habits: Habits, rng: random.Random) -> list[float]:
    gumbel = [-math.log(-math.log(_open_unit(rng))) for _ in utilities]
    first = task.order[0] if len(utilities) > 1 else None  # alone on the screen, no place is the first
    return [
        utility + habits.position_bias * (candidate == first) + habits.noise * gumbel[candidate]
        for candidate, utility in enumerate(utilities)
    ]


def _open_unit(rng: random.Random) -> float:
    """Uniform on (0, 1), both ends left out."""
    while not (drawn := rng.random()):
        pass
    return drawn


def _random(*parts: object) -> random.Random:
    return random.Random(hashlib.sha256(repr(parts).encode()).digest())


def _request_id(name: str, task: Task) -> str:
    return hashlib.sha256(repr(("simulated", name, task.task_id)).encode()).hexdigest()[:32]
