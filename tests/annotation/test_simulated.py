"""Simulated annotators: choices follow Plackett-Luce, bias and lapses are as stated, order is nothing."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest

from talltree.annotation.likelihood import mean_logp
from talltree.annotation.scores import Item
from talltree.annotation.simulated import Habits, answer_tasks, items_of_study, judge, thresholds
from talltree.annotation.store import Store
from talltree.annotation.study import Answer, Study, Task, make_tuple
from talltree.errors import DataError

DRAWS = 4000


def task(number: int, order: tuple[int, ...] = (0, 1, 2), repeat: bool = False) -> Task:
    return Task(
        task_id=f"{number}", tuple_id=f"t{number}", prompt="p", candidates=("",) * len(order), order=order,
        repeat=repeat,
    )  # fmt: skip


def within(count: int, probability: float) -> bool:
    """Whether a count out of DRAWS is within five standard errors of what is expected."""
    return abs(count / DRAWS - probability) <= 5 * math.sqrt(probability * (1 - probability) / DRAWS)


def test_choices_follow_plackett_luce() -> None:
    """All six orders, as (best, worst), with probabilities by the model's definition, u / noise."""
    utilities, noise = (1.0, 0.0, 2.0), 0.8
    answers = [judge("bws", task(n), utilities, Habits(noise=noise), "A") for n in range(DRAWS)]
    found = Counter((answer.best, answer.worst) for answer in answers)
    weights = [math.exp(utility / noise) for utility in utilities]
    for first, second, third in permutations(range(3)):
        probability = weights[first] / sum(weights) * weights[second] / (weights[second] + weights[third])
        assert within(found[first, third], probability)


def test_the_first_place_gets_its_bonus() -> None:
    habits = Habits(noise=1.0, position_bias=math.log(3))
    rng = random.Random(0)
    tasks = [task(n, tuple(rng.sample(range(3), 3))) for n in range(DRAWS)]
    best = [judge("best", each, (0, 0, 0), habits, "A").best for each in tasks]
    first = sum(each.order[0] == chosen for each, chosen in zip(tasks, best, strict=True))
    assert within(first, 3 / 5)  # weights 3 : 1 : 1


def test_lapses_are_uniform_and_as_many_as_stated() -> None:
    answers = [judge("bws", task(n), (5, 1, 0), Habits(lapses=0.3), "A") for n in range(DRAWS)]
    found = Counter((answer.best, answer.worst) for answer in answers)
    assert within(found[0, 2], 0.7 + 0.3 / 6)
    assert all(within(found[pair], 0.3 / 6) for pair in permutations(range(3), 2) if pair != (0, 2))


def test_without_noise_the_utility_decides_and_equal_ones_are_drawn() -> None:
    assert judge("bws", task(1), (0.1, 0.3, 0.2), Habits(), "A") == Answer(best=1, worst=0)
    assert judge("pair", task(1, (1, 0)), (0.1, 0.3), Habits(), "A") == Answer(best=1)
    best = Counter(judge("pair", task(n, (0, 1)), (1, 1), Habits(), "A").best for n in range(DRAWS))
    assert within(best[0] or 0, 0.5)


def test_an_answer_depends_on_seed_name_tuple_and_repeat_alone() -> None:
    def many(seed: int, name: str, repeat: bool) -> list[Answer]:
        habits = Habits(noise=1.0, lapses=0.2, seed=seed)
        return [judge("bws", task(n, repeat=repeat), (0, 0.5, 1), habits, name) for n in range(50)]

    base = many(0, "A", False)
    assert many(0, "A", False) == base
    assert all(many(*other) != base for other in [(1, "A", False), (0, "B", False), (0, "A", True)])


def test_ratings_are_spread_evenly_over_the_points() -> None:
    utilities = [float(n) for n in range(100)]
    limits = thresholds(utilities, 5)
    given = [
        judge("rating", task(n, (0,)), (utility,), Habits(), "A", limits)
        for n, utility in enumerate(utilities)
    ]
    ratings = [answer.ratings[0][0] for answer in given if answer.ratings is not None]
    assert ratings == sorted(ratings)
    assert Counter(ratings) == {1: 20, 2: 20, 3: 20, 4: 20, 5: 20}
    lapsed = Counter(
        judge("rating", task(n, (0,)), (0.0,), Habits(lapses=1.0), "A", limits).ratings for n in range(DRAWS)
    )
    assert all(within(lapsed[((point,),)], 0.2) for point in range(1, 6))
    twice = judge("rating", task(0, (0, 1)), (0, 99), Habits(), "A", limits, criteria=2)
    assert twice.ratings == ((1, 5), (1, 5))


# --- through the store -------------------------------------------------------------------------------------


def study(tuples: int = 6, overlap: int = 2) -> Study:
    rows = tuple(make_tuple(f"p{n}", [f"{n}a", f"{n}bb", f"{n}ccc"]) for n in range(tuples))
    return Study(kind="bws", tuples=rows, overlap=overlap, repeats=0.5, seed=4)


def scored(given: Study) -> dict[Item, float]:
    return {item: float(len(item.text)) for item in items_of_study(given)}


class Killed(Exception):
    """Stands for a process that ends between two writes."""


def test_every_task_is_answered_and_the_utility_is_what_was_asked(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", study()) as store:
        given = answer_tasks(store, ["one", "two"], scored(store.study), Habits())
        judgements = store.judgements()
        assert sum(given.values()) == len(judgements)
        assert set(store.coverage().values()) == {2}
        assert all((j.best, j.worst, j.seconds) == (2, 0, None) for j in judgements)
        assert {j.annotator for j in judgements} == {"one", "two"}
        assert len(judgements) > 12  # hidden repeats too
        assert answer_tasks(store, ["one", "two"], scored(store.study), Habits()) == {"one": 0, "two": 0}


@pytest.mark.parametrize("kill_after", [1, 5, 11])
def test_whoever_is_killed_goes_on_without_a_duplicate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_after: int
) -> None:
    """The kill comes right after a commit whose receipt never arrived; the answers end as unkilled."""
    habits = Habits(noise=1.0, lapses=0.1)
    with Store.create(tmp_path / "whole", study()) as store:
        answer_tasks(store, ["one", "two"], scored(store.study), habits)
        expected = {(j.annotator, j.tuple_id, j.order, j.best, j.worst) for j in store.judgements()}
        number = len(store.judgements())
    with Store.create(tmp_path / "killed", study()) as store:
        answer, calls = store.answer, iter(range(1, 1000))

        def then_die(*arguments: object) -> object:
            receipt = answer(*arguments)  # type: ignore[arg-type]
            if next(calls) == kill_after:
                raise Killed
            return receipt

        monkeypatch.setattr(store, "answer", then_die)
        with pytest.raises(Killed):
            answer_tasks(store, ["one", "two"], scored(store.study), habits)
    with Store.open(tmp_path / "killed") as store:
        assert len(store.judgements()) == kill_after
        answer_tasks(store, ["one", "two"], scored(store.study), habits)
        judgements = store.judgements()
    assert len(judgements) == number
    assert {(j.annotator, j.tuple_id, j.order, j.best, j.worst) for j in judgements} == expected


# --- a model's likelihood ----------------------------------------------------------------------------------


def test_mean_logp_is_what_the_model_says(stories260K: Path) -> None:
    import torch

    from talltree.models.load import load_model, load_tokenizer

    model, tokenizer = load_model(str(stories260K)), load_tokenizer(str(stories260K))
    prompts, completions = ["Once upon", "Once upon", ""], [" a time, there", " cat", "The sun was hot."]
    found = mean_logp(model, tokenizer, prompts, completions)
    for prompt, completion, value in zip(prompts, completions, found, strict=True):
        ids = tokenizer(prompt + completion)["input_ids"]
        start = len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = [float(logp[place - 1, ids[place]]) for place in range(start, len(ids))]
        assert value == pytest.approx(sum(wanted) / len(wanted), abs=1e-4)
    with pytest.raises(DataError, match="has no token after its prompt"):
        mean_logp(model, tokenizer, ["Once upon"], [""])
    with pytest.raises(DataError, match="tokens, the model reads"):
        mean_logp(model, tokenizer, ["Once"], [" upon a time" * 300])
    assert mean_logp(model, tokenizer, [], []) == []
