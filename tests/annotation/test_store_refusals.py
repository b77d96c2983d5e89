"""What the store refuses: each in one line, with nothing stored."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from talltree.annotation.database import APPLICATION_ID, SCHEMA_VERSION
from talltree.annotation.store import Store
from talltree.annotation.study import (
    AlreadyJudgedError,
    Annotator,
    Answer,
    Kind,
    NotSavedError,
    Study,
    StudyError,
    StudyTuple,
    Task,
    UnknownAnnotatorError,
    UnknownTaskError,
    make_tuple,
)

FOUR = tuple(make_tuple("Once", [f"{i} of {j}" for i in range(4)]) for j in range(4))
BOTH = Answer(best=0, worst=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "study", Study(kind="bws", tuples=FOUR)) as made:
        yield made


@pytest.fixture
def anna(store: Store) -> Annotator:
    return store.add_annotator("Anna")


@pytest.fixture
def task(store: Store, anna: Annotator) -> Task:
    given = store.next_task(anna.token)
    assert given is not None
    return given


def refused(error: type[StudyError], act: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        act()
    assert type(caught.value) is error
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("kind", "answer", "line"),
    [
        ("bws", Answer(best=1, worst=1), "best and worst are the same one; choose two different ones"),
        ("bws", Answer(best=1), "the worst one is not chosen; choose one"),
        ("bws", Answer(worst=1), "the best one is not chosen; choose one"),
        ("bws", Answer(), "the best one is not chosen; choose one"),
        ("bws", Answer(best=0, worst=4), "worst 4 is not one of the 4 candidates"),
        ("bws", Answer(best=-1, worst=2), "best -1 is not one of the 4 candidates"),
        ("bws", Answer(tie=True), "no preference is not an answer in this study; choose one"),
        ("bws", Answer(best=0, worst=1, ratings=((1,),)), "ratings are no answer in a study of kind bws"),
        (
            "bws",
            Answer(best=0, worst=1, ranking=(0, 1, 2, 3)),
            "ranking [0, 1, 2, 3] contradicts best 0 and worst 1",
        ),
        (
            "best",
            Answer(best=0, ranking=(0, 1)),
            "ranking [0, 1] does not name each of the 4 candidates once",
        ),
        ("best", Answer(best=0, worst=1), "a study of kind best takes no worst one"),
        (
            "pair",
            Answer(best=0, tie=True),
            "no preference and a choice exclude each other; give one of the two",
        ),
        ("rating", Answer(best=0), "a study of kind rating takes ratings, no choice"),
        ("rating", Answer(ratings=((1, 2, 3),)), "some ratings are missing; rate every candidate"),
        ("rating", Answer(ratings=((1, 2, 3, 6),)), "quality 6 is not 1 to 5"),
        ("bws", Answer(best=0, worst=1, seconds=-1.0), "seconds -1.0 is not a time taken"),
        ("bws", Answer(best=0, worst=1, seconds=float("nan")), "seconds nan is not a time taken"),
    ],
)
def test_answers_that_are_not_whole(tmp_path: Path, kind: Kind, answer: Answer, line: str) -> None:
    k = 2 if kind == "pair" else 4
    items = tuple(make_tuple("Once", [str(i) for i in range(k)]) for _ in range(1))
    with Store.create(tmp_path / "s", Study(kind=kind, tuples=items)) as store:
        anna = store.add_annotator("Anna")
        task = store.next_task(anna.token)
        assert task is not None
        assert refused(StudyError, lambda: store.answer(anna.token, task.task_id, "one", answer)) == line
        assert store.history() == []


def test_a_tuple_judged_twice(store: Store, anna: Annotator, task: Task) -> None:
    store.answer(anna.token, task.task_id, "one", BOTH)
    again = refused(
        AlreadyJudgedError, lambda: store.answer(anna.token, task.task_id, "two", Answer(best=2, worst=3))
    )
    assert again.startswith("you have judged this one already, at ")
    assert again.endswith(" UTC; that stands and this was not saved")
    refused(AlreadyJudgedError, lambda: store.skip(anna.token, task.task_id, "three", "broken"))
    # The same request with something else in it is no retry.
    other = lambda: store.answer(anna.token, task.task_id, "one", Answer(best=2, worst=3))  # noqa: E731
    assert "was sent before with something else" in refused(AlreadyJudgedError, other)
    assert "was sent before with something else" in refused(
        AlreadyJudgedError, lambda: store.undo(anna.token, "one")
    )
    assert len(store.history()) == 1 and store.judgements()[0].best == 0


def test_an_undone_page_that_is_sent_again_is_not_acknowledged(
    store: Store, anna: Annotator, task: Task
) -> None:
    store.answer(anna.token, task.task_id, "one", BOTH)
    store.undo(anna.token, "two")
    line = refused(AlreadyJudgedError, lambda: store.answer(anna.token, task.task_id, "one", BOTH))
    assert line.startswith("this page was sent before and then undone; it was not saved again")
    assert store.judgements() == []
    store.answer(anna.token, task.task_id, "three", BOTH)
    assert len(store.judgements()) == 1


def test_an_unknown_annotator(store: Store, task: Task) -> None:
    for act in (
        lambda: store.next_task("nobody"),
        lambda: store.answer("nobody", task.task_id, "one", BOTH),
        lambda: store.skip("nobody", task.task_id, "one", "broken"),
        lambda: store.undo("nobody", "one"),
        lambda: store.progress(""),
    ):
        assert refused(UnknownAnnotatorError, act).startswith(
            "this link belongs to no annotator of this study"
        )
    assert store.history() == []


def test_a_task_of_another_study_or_of_somebody_else(
    tmp_path: Path, store: Store, anna: Annotator, task: Task
) -> None:
    with Store.create(tmp_path / "other", Study(kind="bws", tuples=FOUR)) as other:
        carl = other.add_annotator("Carl")
        foreign = other.next_task(carl.token)
    assert foreign is not None
    line = refused(UnknownTaskError, lambda: store.answer(anna.token, foreign.task_id, "one", BOTH))
    assert line == f"task {foreign.task_id!r} belongs to another study; load the page again"
    ben = store.add_annotator("Ben")
    line = refused(UnknownTaskError, lambda: store.answer(ben.token, task.task_id, "one", BOTH))
    assert line == f"task {task.task_id!r} was not given to Ben"
    for wrong in ("", "1", f"{store.study_id}.", f"{store.study_id}.99", f"{store.study_id}.x' OR 1"):
        refused(UnknownTaskError, lambda wrong=wrong: store.skip(anna.token, wrong, "one", "broken"))
    assert store.history() == []


def test_nothing_to_undo_and_no_longer_the_last(store: Store, anna: Annotator, task: Task) -> None:
    assert refused(StudyError, lambda: store.undo(anna.token, "one")) == "there is no answer to undo"
    store.answer(anna.token, task.task_id, "two", BOTH)
    second = store.next_task(anna.token)
    assert second is not None
    store.answer(anna.token, second.task_id, "three", BOTH)
    line = refused(StudyError, lambda: store.undo(anna.token, "four", task.task_id))
    assert line == "that is not your last answer any more; nothing was undone"
    assert len(store.judgements()) == 2


@pytest.mark.parametrize("name", ["", "  ", "x" * 81, "a\nb", "\u202eevil", "tab\t"[:4] + "x"])
def test_names_that_nobody_has(store: Store, name: str) -> None:
    line = refused(StudyError, lambda: store.add_annotator(name))
    assert line.endswith("a name has 1 to 80 printable characters")


def test_names_reasons_and_request_ids(store: Store, anna: Annotator, task: Task) -> None:
    assert refused(StudyError, lambda: store.add_annotator(" anna ")) == (
        "annotator 'anna' exists in this study; choose another name"
    )
    for reason in ("", " \n", "x" * 501, "half \ud800"):
        line = refused(StudyError, lambda reason=reason: store.skip(anna.token, task.task_id, "one", reason))
        assert line.startswith("a skip needs a reason of 1 to 500 characters")
    for request in ("", "a b", "x" * 65, "ä"):
        line = refused(
            StudyError, lambda request=request: store.answer(anna.token, task.task_id, request, BOTH)
        )
        assert line.startswith("request id ")
    assert store.history() == []


def pair(*texts: str, prompt: str = "Once") -> StudyTuple:
    return make_tuple(prompt, texts)


@pytest.mark.parametrize(
    ("study", "line"),
    [
        (Study(kind="bws", tuples=()), "a study needs at least one tuple, this one has none"),
        (Study(kind="duel", tuples=FOUR), "kind 'duel' is not known; kinds: bws, best, pair, rating"),  # type: ignore[arg-type]
        (Study(kind="pair", tuples=FOUR), "has 4 candidates; kind pair takes 2"),
        (Study(kind="bws", tuples=(pair("a", "b"),)), "has 2 candidates; kind bws takes 3 to 9"),
        (Study(kind="pair", tuples=(pair("a", "a"),)), "has the same candidate twice; leave one out"),
        (Study(kind="pair", tuples=(pair("a", "b"),) * 2), "is there twice; a tuple is judged again through"),
        (Study(kind="bws", tuples=FOUR, overlap=8), "overlap 8 is not 1 to 7 annotators a tuple"),
        (Study(kind="bws", tuples=FOUR, repeats=1.5), "repeats 1.5 is not a share; give 0 to 1"),
        (Study(kind="bws", tuples=FOUR, criteria=("plot",)), "criteria belong to kind rating, not bws"),
        (Study(kind="rating", tuples=FOUR, criteria=("a", "a")), "one is empty or there twice"),
        (Study(kind="rating", tuples=FOUR, points=1), "points 1 is not 2 to 9"),
        (Study(kind="pair", tuples=(pair("a", "\ud800"),)), "half a surrogate pair"),
        (Study(kind="bws", tuples=FOUR, question="\ud800"), "question and criteria: half a surrogate pair"),
        (
            Study(kind="pair", tuples=(make_tuple("Once", ["a", "b"], ["m"]),)),
            "has 2 candidates but 1 sources",
        ),
    ],
)
def test_studies_that_cannot_be(tmp_path: Path, study: Study, line: str) -> None:
    assert line in refused(StudyError, lambda: Store.create(tmp_path / "s", study))
    assert not (tmp_path / "s").exists()


def test_a_folder_that_exists(tmp_path: Path, store: Store) -> None:
    study = Study(kind="bws", tuples=FOUR)
    line = refused(StudyError, lambda: Store.create(store.folder, study))
    assert "exists and is not empty, and nothing is overwritten" in line
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(StudyError, lambda: Store.create(tmp_path / "file", study))
    assert "holds no study" in refused(StudyError, lambda: Store.open(tmp_path))
    assert "does not exist" in refused(StudyError, lambda: Store.open(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".study.sqlite.partial").write_text("left by a killed process")
    Store.create(tmp_path / "empty", study).close()


def test_a_database_that_is_older_newer_foreign_or_damaged(tmp_path: Path, store: Store) -> None:
    store.close()
    path = store.folder / "study.sqlite"
    whole = path.read_bytes()

    def opened_after(sql: str) -> str:
        path.write_bytes(whole)
        connection = sqlite3.connect(path)
        connection.executescript(sql)
        connection.close()
        return refused(StudyError, lambda: Store.open(store.folder))

    newer = opened_after(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    assert f"was written by a newer talltree (schema {SCHEMA_VERSION + 1}, here" in newer
    assert newer.endswith("update talltree")
    assert "was written by an older talltree (schema 0, here" in opened_after("PRAGMA user_version = 0")
    assert "not a study of talltree" in opened_after("PRAGMA application_id = 5")
    drop = "DROP TABLE events; PRAGMA user_version = 1"
    assert "is damaged (without events)" in opened_after(drop)
    path.write_bytes(b"no database at all " * 100)
    assert "is damaged (file is not a database)" in refused(StudyError, lambda: Store.open(store.folder))
    middle = len(whole) // 2 // 4096 * 4096
    path.write_bytes(whole[:middle] + os.urandom(4096) * 2 + whole[middle + 8192 :])
    assert "is damaged (" in refused(StudyError, lambda: Store.open(store.folder))
    path.write_bytes(whole)
    Store.open(store.folder).close()
    assert APPLICATION_ID != 0


def test_a_full_disk_stores_nothing_and_says_so(store: Store, anna: Annotator, task: Task) -> None:
    connection = store._journal._connection  # SQLite's own limit is how its disk is made full
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    reason = "x" * 500
    number = 0
    with pytest.raises(NotSavedError) as caught:  # until the pages are used up
        for number in range(1000):
            store.skip(anna.token, task.task_id, f"skip-{number}", reason)
            store.undo(anna.token, f"undo-{number}")
    line = str(caught.value)
    assert line.startswith(
        f"not saved: {store.folder / 'study.sqlite'}: the disk is full; make room, then try"
    )
    before = store.history()
    with Store.open(store.folder) as other:
        assert other.history() == before
    connection.execute("PRAGMA max_page_count = 1000000")
    # The very request that failed goes through when there is room, once.
    failed = f"skip-{number}" if before[-1].action == "undo" else f"undo-{number}"
    if failed.startswith("skip"):
        store.skip(anna.token, task.task_id, failed, reason)
    else:
        store.undo(anna.token, failed)
    assert [event.request_id for event in store.history()] == [*(e.request_id for e in before), failed]


def test_a_database_that_another_process_holds(
    monkeypatch: pytest.MonkeyPatch, store: Store, anna: Annotator, task: Task
) -> None:
    store._journal._connection.execute("PRAGMA busy_timeout = 50")
    holder = sqlite3.connect(store.folder / "study.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    line = refused(NotSavedError, lambda: store.answer(anna.token, task.task_id, "one", BOTH))
    assert "another process held it" in line
    holder.execute("ROLLBACK")
    holder.close()
    store.answer(anna.token, task.task_id, "one", BOTH)
    assert len(store.history()) == 1


@pytest.mark.parametrize("table", ["study", "tuples", "annotators", "assignments", "events"])
@pytest.mark.parametrize("verb", ["UPDATE {} SET rowid = rowid", "DELETE FROM {}"])
def test_rows_are_never_changed(store: Store, anna: Annotator, task: Task, table: str, verb: str) -> None:
    store.answer(anna.token, task.task_id, "one", BOTH)
    connection = sqlite3.connect(store.folder / "study.sqlite")
    with pytest.raises(sqlite3.IntegrityError, match=f"{table} is append-only"):
        connection.execute(verb.format(table))
    connection.close()


def test_the_database_itself_refuses_a_second_answer(store: Store, anna: Annotator, task: Task) -> None:
    store.answer(anna.token, task.task_id, "one", BOTH)
    connection = sqlite3.connect(store.folder / "study.sqlite")
    columns = "request_id, annotator_id, task, action, content, time"
    row = f"INSERT INTO events ({columns}) VALUES (?, 1, 1, ?, '{{}}', 0)"
    for action in ("answer", "skip"):
        with pytest.raises(sqlite3.IntegrityError, match="answered once"):
            connection.execute(row, ("two", action))
    connection.execute(row, ("three", "undo"))
    with pytest.raises(sqlite3.IntegrityError, match="answered once"):
        connection.execute(row, ("four", "undo"))
    connection.close()
