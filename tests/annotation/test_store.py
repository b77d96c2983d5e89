"""The store: who is given what, what stands, and that requests may be repeated."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from talltree.annotation.store import Store
from talltree.annotation.study import Annotator, Answer, Kind, Progress, Study, StudyTuple, Task, make_tuple
from talltree.data.preferences import Judgement

REQUESTS = (f"request-{number}" for number in itertools.count())


def tuples(count: int, k: int = 4) -> tuple[StudyTuple, ...]:
    return tuple(make_tuple("Once", [f"text {i} of {j}" for i in range(k)], ["m"] * k) for j in range(count))


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store.create(tmp_path / "study", Study(kind="bws", tuples=tuples(6)), clock=clock) as made:
        yield made


def best_worst(task: Task, best: int = 0, worst: int = 1) -> Answer:
    return Answer(best=task.order[best], worst=task.order[worst], seconds=2.5)


def judge(store: Store, annotator: Annotator) -> Task | None:
    task = store.next_task(annotator.token)
    if task is not None:
        store.answer(annotator.token, task.task_id, next(REQUESTS), best_worst(task))
    return task


def test_an_answer_is_a_judgement_in_the_designs_order(store: Store) -> None:
    anna = store.add_annotator("Anna")
    task = store.next_task(anna.token)
    assert task is not None and store.next_task(anna.token) == task
    item = next(each for each in store.study.tuples if each.tuple_id == task.tuple_id)
    assert task.candidates == tuple(item.candidates[index] for index in task.order)
    receipt = store.answer(anna.token, task.task_id, "one", best_worst(task, 2, 3))
    assert (receipt.task_id, receipt.action, receipt.seen_before) == (task.task_id, "answer", False)
    (judgement,) = store.judgements()
    assert judgement == Judgement(
        prompt="Once",
        candidates=item.candidates,
        best=task.order[2],
        worst=task.order[3],
        annotator="Anna",
        seconds=2.5,
        time="2027-01-15T08:00:00.000Z",
        tuple_id=item.tuple_id,
        order=task.order,
    )
    assert store.records()[0].item.sources == ("m",) * 4


def test_names_may_be_given_again(store: Store) -> None:
    for _ in range(2):
        store.add_missing(["Anna ", "Zoe\u0308", "Anna"])
    assert [each.name for each in store.annotators()] == ["Anna", "Zo\u00eb"]


def test_a_closed_store_opens_as_it_was(tmp_path: Path, clock: Clock) -> None:
    study = Study(kind="rating", tuples=tuples(3, 2), criteria=("plot", "grammar"), points=7, repeats=0.5)
    with Store.create(tmp_path / "study", study, clock=clock) as store:
        anna = store.add_annotator("Anna")
        task = store.next_task(anna.token)
        assert task is not None
        ratings = ((1, 7), (3, 4))  # of the design's candidates 0 and 1, for plot, then for grammar
        store.answer(anna.token, task.task_id, "one", Answer(ratings=ratings))
        before = (store.study, store.records(), store.history(), store.next_task(anna.token))
        assert store.judgements()[0].ratings == (2.0, 5.5)
    with Store.open(tmp_path / "study") as again:
        assert (again.study, again.records(), again.history(), again.next_task(anna.token)) == before
        assert again.records()[0].answer.ratings == ratings
        assert again.annotators() == [anna]
    assert (tmp_path / "study" / "study.sqlite").stat().st_mode & 0o077 == 0
    assert [each.name for each in (tmp_path / "study").iterdir()] == ["study.sqlite"]


def test_a_request_may_be_repeated_and_counts_once(store: Store) -> None:
    anna = store.add_annotator("Anna")
    task = store.next_task(anna.token)
    assert task is not None
    first = store.answer(anna.token, task.task_id, "one", best_worst(task))
    again = store.answer(anna.token, task.task_id, "one", best_worst(task))
    assert (again.seen_before, again.time, again.task_id) == (True, first.time, first.task_id)
    assert len(store.history()) == 1
    assert store.undo(anna.token, "two").seen_before is False
    assert store.undo(anna.token, "two").seen_before is True
    assert [event.action for event in store.history()] == ["answer", "undo"]
    task = store.next_task(anna.token)
    assert task is not None
    skipped = [store.skip(anna.token, task.task_id, "three", "broken").seen_before for _ in range(2)]
    assert skipped == [False, True]


def test_undo_brings_the_last_task_back_and_the_log_keeps_everything(store: Store) -> None:
    anna = store.add_annotator("Anna")
    first, second = judge(store, anna), judge(store, anna)
    assert first is not None and second is not None
    third = store.next_task(anna.token)
    receipt = store.undo(anna.token, next(REQUESTS), second.task_id)
    assert (receipt.action, receipt.task_id) == ("undo", second.task_id)
    assert store.next_task(anna.token) == second
    assert [each.tuple_id for each in store.judgements()] == [first.tuple_id]
    store.undo(anna.token, next(REQUESTS))
    assert store.next_task(anna.token) == first
    store.answer(anna.token, first.task_id, next(REQUESTS), best_worst(first, 3, 2))
    assert [store.next_task(anna.token), len(store.judgements())] == [second, 1]
    judge(store, anna)
    assert store.next_task(anna.token) == third
    log = [(event.action, event.task) for event in store.history()]
    one, two = (int(task.task_id.partition(".")[2]) for task in (first, second))
    undone = [
        ("answer", one),
        ("answer", two),
        ("undo", two),
        ("undo", one),
        ("answer", one),
        ("answer", two),
    ]
    assert log == undone
    assert json.loads(store.history()[0].content)["best"] == first.order[0]


def test_a_skipped_tuple_goes_to_somebody_else(store: Store) -> None:
    anna, ben = store.add_annotator("Anna"), store.add_annotator("Ben")
    task = store.next_task(anna.token)
    assert task is not None
    store.skip(anna.token, task.task_id, "one", "  broken ")
    assert store.history()[0].content == "broken"
    seen = []
    while (given := judge(store, anna)) is not None:
        seen.append(given.tuple_id)
    assert len(seen) == 5 and task.tuple_id not in seen
    assert store.progress(anna.token) == Progress(answered=5, skipped=1, left=0, waiting=0)
    last = judge(store, ben)
    assert last is not None and last.tuple_id == task.tuple_id
    assert judge(store, ben) is None


@pytest.mark.parametrize(("people", "overlap"), [(3, 1), (3, 2), (3, 3), (2, 3)])
def test_each_tuple_is_judged_by_so_many_different_people(tmp_path: Path, people: int, overlap: int) -> None:
    with Store.create(tmp_path / "s", Study(kind="bws", tuples=tuples(10), overlap=overlap)) as store:
        crowd = [store.add_annotator(f"person {number}") for number in range(people)]
        for turn in range(40):
            judge(store, crowd[turn % people])
        given = Counter((each.annotator, each.tuple_id) for each in store.judgements())
        assert set(given.values()) == {1}
        reached = min(people, overlap)
        assert set(store.coverage().values()) == {reached} and len(given) == 10 * reached
        shares = Counter(each.annotator for each in store.judgements())
        assert max(shares.values()) - min(shares.values()) <= 1


def test_fewest_first_and_everybody_in_an_order_of_their_own(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", Study(kind="bws", tuples=tuples(30), overlap=2)) as store:
        anna, ben = store.add_annotator("Anna"), store.add_annotator("Ben")
        mine = [judge(store, anna) for _ in range(15)]
        theirs = [judge(store, ben) for _ in range(14)]  # Anna holds her sixteenth
        ids = [[each.tuple_id for each in tasks if each is not None] for tasks in (mine, theirs)]
        assert not set(ids[0]) & set(ids[1])  # all are given once before any is given twice
        judge(store, anna)
        assert set(store.coverage().values()) == {1}
        firsts = Counter(each.order[0] for each in store.judgements() if each.order is not None)
        assert set(firsts) == {0, 1, 2, 3}


def test_what_somebody_holds_is_given_to_nobody_else_for_an_hour(tmp_path: Path, clock: Clock) -> None:
    with Store.create(tmp_path / "s", Study(kind="bws", tuples=tuples(1)), clock=clock) as store:
        anna, ben = store.add_annotator("Anna"), store.add_annotator("Ben")
        held = store.next_task(anna.token)
        assert held is not None and store.next_task(ben.token) is None
        assert store.progress(ben.token) == Progress(answered=0, skipped=0, left=1, waiting=1)
        clock.now += 3599
        assert store.next_task(ben.token) is None
        clock.now += 1
        taken = store.next_task(ben.token)
        assert taken is not None and taken.tuple_id == held.tuple_id
        # Anna comes back late: her answer is taken all the same.
        store.answer(anna.token, held.task_id, "late", best_worst(held))
        store.answer(ben.token, taken.task_id, "too", best_worst(taken))
        assert store.coverage() == {held.tuple_id: 2}


def test_hidden_repeats_come_back_later_in_another_order(tmp_path: Path) -> None:
    study = Study(kind="bws", tuples=tuples(40), repeats=0.25, seed=3)
    with Store.create(tmp_path / "s", study) as store:
        anna = store.add_annotator("Anna")
        total = store.progress(anna.token).left
        tasks = []
        while (task := judge(store, anna)) is not None:
            tasks.append(task)
            assert store.progress(anna.token).left == total - len(tasks)
        repeats = [(place, task) for place, task in enumerate(tasks) if task.repeat]
        assert len(tasks) == total and 40 + len(repeats) == total and 4 <= len(repeats) <= 16
        firsts = {task.tuple_id: (place, task) for place, task in enumerate(tasks) if not task.repeat}
        assert len(firsts) == 40 and len({task.tuple_id for _, task in repeats}) == len(repeats)
        for place, task in repeats:
            before, first = firsts[task.tuple_id]
            assert task.order != first.order
            assert place - before > 5 or place >= 40
        assert set(store.coverage().values()) == {1}
        assert len(store.judgements()) == total


def test_every_tuple_comes_back_where_repeats_is_one(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", Study(kind="pair", tuples=tuples(3, 2), repeats=1.0)) as store:
        anna = store.add_annotator("Anna")
        orders: dict[str, list[tuple[int, ...]]] = {}
        while (task := store.next_task(anna.token)) is not None:
            orders.setdefault(task.tuple_id, []).append(task.order)
            store.answer(anna.token, task.task_id, next(REQUESTS), Answer(best=0))
        assert all(len(shown) == 2 and set(shown) == {(0, 1), (1, 0)} for shown in orders.values())
        assert len(orders) == 3


def test_the_same_seed_shows_the_same_tuples_in_the_same_order(tmp_path: Path) -> None:
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        with Store.create(tmp_path / name, Study(kind="bws", tuples=tuples(8), seed=seed)) as store:
            anna = store.add_annotator("Anna")
            tasks = [judge(store, anna) for _ in range(8)]
            runs.append([(each.tuple_id, each.order) for each in tasks if each is not None])
    assert runs[0] == runs[1] != runs[2]


def test_several_processes_may_share_a_study(store: Store, clock: Clock) -> None:
    anna = store.add_annotator("Anna")
    with Store.open(store.folder, clock=clock) as other:
        ben = other.add_annotator("Ben")
        seen = [judge(each, who) for _ in range(3) for each, who in ((store, anna), (other, ben))]
        assert len({task.tuple_id for task in seen if task is not None}) == 6
        assert store.judgements() == other.judgements() and len(store.judgements()) == 6
        task = store.task(anna.token, seen[0].task_id) if seen[0] else None
        assert task == seen[0]


def test_threads_share_one_store(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", Study(kind="bws", tuples=tuples(60))) as store:
        crowd = [store.add_annotator(f"person {number}") for number in range(6)]

        def work(who: Annotator) -> None:
            number = 0
            while (task := store.next_task(who.token)) is not None:
                store.answer(who.token, task.task_id, f"{who.annotator_id}-{number}", best_worst(task))
                number += 1

        threads = [threading.Thread(target=work, args=(who,)) for who in crowd]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(store.coverage().values()) == {1} and len(store.judgements()) == 60


@pytest.mark.parametrize(
    ("kind", "k", "answer", "expected"),
    [
        ("best", 3, Answer(best=2), {"best": 2}),
        ("best", 3, Answer(best=2, ranking=(2, 0, 1)), {"ranking": (2, 0, 1)}),
        ("bws", 3, Answer(best=2, worst=1, ranking=(2, 0, 1)), {"ranking": (2, 0, 1)}),
        ("pair", 2, Answer(best=1), {"best": 1}),
        ("pair", 2, Answer(tie=True), {"tie": True}),
        ("rating", 1, Answer(ratings=((4,),)), {"ratings": (4.0,)}),
    ],
)
def test_each_kind_of_answer_is_kept(
    tmp_path: Path, kind: Kind, k: int, answer: Answer, expected: dict[str, object]
) -> None:
    with Store.create(tmp_path / "s", Study(kind=kind, tuples=tuples(1, k))) as store:
        anna = store.add_annotator("Anna")
        task = store.next_task(anna.token)
        assert task is not None
        store.answer(anna.token, task.task_id, "one", answer)
        (judgement,) = store.judgements()
        chosen = {name: getattr(judgement, name) for name in ("best", "worst", "ranking", "ratings", "tie")}
        assert (
            chosen == {"best": None, "worst": None, "ranking": None, "ratings": None, "tie": False} | expected
        )
        assert store.records()[0].answer == answer
