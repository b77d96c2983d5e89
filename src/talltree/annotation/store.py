"""The store of a study: every annotator, task, answer, skip and undo, on disk before it is acknowledged.

SQLite in WAL mode with synchronous FULL, one connection, every write in one BEGIN IMMEDIATE transaction. The
tables only grow; what the store knows is a fold over them (`state`), caught up inside each transaction, so
that several processes may share one study.
"""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import time
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from talltree.annotation import database
from talltree.annotation.journal import Journal, fill, iso, read_study
from talltree.annotation.state import Action, Assignment, Event, Place, State
from talltree.annotation.study import (
    AlreadyJudgedError,
    Annotator,
    Answer,
    Progress,
    Receipt,
    Record,
    Study,
    StudyError,
    Task,
    UnknownAnnotatorError,
    UnknownTaskError,
    answer_from_json,
    answer_json,
    check_answer,
    judgement_of,
    settled,
)
from talltree.data.preferences import Judgement

MAX_NAME = 80
MAX_REASON = 500
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Store:
    """An open study: `Store.create(folder, study)` or `Store.open(folder)`, as context managers.

    Every method may be called from any thread. Whatever writes returns only after the commit; what cannot be
    written raises NotSavedError and leaves no trace. A request id that was stored before is answered from the
    store and changes nothing, so a request may be repeated until its receipt arrives.
    """

    def __init__(
        self,
        folder: Path,
        connection: sqlite3.Connection,
        study: Study,
        study_id: str,
        clock: Callable[[], float],
    ) -> None:
        self.folder = folder
        self.study = study
        self.study_id = study_id
        self._clock = clock
        self._journal = Journal(connection, folder / database.FILE, study)

    @classmethod
    def create(cls, folder: str | Path, study: Study, *, clock: Callable[[], float] = time.time) -> Store:
        """Makes the study's folder, whole or not at all. Raises StudyError if the folder holds anything."""
        folder = Path(folder).expanduser()
        study = settled(study)
        path = folder / database.FILE
        partial = folder / f".{database.FILE}.partial"
        if folder.is_file():
            raise StudyError(f"{folder} is a file; choose another folder for the study")
        if folder.is_dir() and any(not each.name.startswith(partial.name) for each in folder.iterdir()):
            raise StudyError(
                f"{folder} exists and is not empty, and nothing is overwritten; choose another folder, or "
                f"go on with talltree annotate serve {folder}"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove(folder, partial)
            partial.touch(mode=0o600)  # it holds the private links
            with database.errors(path):
                fill(partial, study, clock())
            database.rename_into_place(partial, path)
        except OSError as error:
            raise StudyError(f"cannot make {folder}: {error.strerror}; choose another folder") from error
        finally:
            _remove(folder, partial)
        return cls.open(folder, clock=clock)

    @classmethod
    def open(cls, folder: str | Path, *, clock: Callable[[], float] = time.time) -> Store:
        """Opens a study. Raises StudyError, one line, where there is none or it cannot be read."""
        folder = Path(folder).expanduser()
        connection = database.open_database(folder)
        with database.closed_unless_done(connection), database.errors(folder / database.FILE):
            study_id, study = read_study(connection)
            store = cls(folder, connection, study, study_id, clock)
            with store._journal.reading():
                return store

    def close(self) -> None:
        """Closes the database; what was acknowledged is on disk in any case."""
        self._journal.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- annotators ---

    def add_annotator(self, name: str) -> Annotator:
        """A new annotator with a random token. Raises StudyError for an empty, long or used name."""
        name = _name(name)
        if not name or len(name) > MAX_NAME or not _is_plain(name):
            raise StudyError(
                f"annotator {name[:MAX_NAME]!r}: a name has 1 to {MAX_NAME} printable characters"
            )
        with self._journal.writing() as state:
            if any(each.annotator.name.casefold() == name.casefold() for each in state.places.values()):
                raise StudyError(f"annotator {name!r} exists in this study; choose another name")
            self._journal.insert("annotators", name=name, token=secrets.token_urlsafe(24), time=self._clock())
        return next(each for each in self.annotators() if each.name == name)

    def add_missing(self, names: Iterable[str]) -> None:
        """Adds those who are not there yet, so that the same names may be given again."""
        for name in dict.fromkeys(map(_name, names)):
            if name not in {each.name for each in self.annotators()}:
                self.add_annotator(name)

    def annotators(self) -> list[Annotator]:
        """Everybody in the order in which they were added."""
        with self._journal.reading() as state:
            return [place.annotator for place in state.places.values()]

    def annotator(self, token: str) -> Annotator:
        """Whose token this is. Raises UnknownAnnotatorError."""
        with self._journal.reading() as state:
            return _place(state, token).annotator

    # --- judging ---

    def next_task(self, token: str) -> Task | None:
        """The task before this annotator: the same until it is answered, skipped, or undone back to.

        None where nothing is left to give, for good or until others are done; `progress` tells which.
        """
        with self._journal.reading() as state:
            place = _place(state, token)
            current = state.current(place)
        if current is None:
            with self._journal.writing() as state:
                self._give(state, token)
                self._journal.catch_up()
                current = state.current(_place(state, token))
        return None if current is None else self._task(current)

    def task(self, token: str, task_id: str) -> Task:
        """A task that this annotator was shown, answered or not. Raises UnknownTaskError for any other."""
        with self._journal.reading() as state:
            return self._task(self._assignment(state, _place(state, token), task_id))

    def answer(self, token: str, task_id: str, request_id: str, answer: Answer) -> Receipt:
        """Stores an answer, in indices of the design, and returns after the commit.

        Raises StudyError for an answer that is not whole, AlreadyJudgedError for a second one to the task.
        """
        content = json.dumps(answer_json(answer))
        return self._act(token, task_id, request_id, "answer", content, answer)

    def skip(self, token: str, task_id: str, request_id: str, reason: str) -> Receipt:
        """Stores that the annotator does not judge this task, and why; others may be given the tuple."""
        reason = reason.strip()
        if not reason or len(reason) > MAX_REASON or not _is_text(reason):
            raise StudyError(f"a skip needs a reason of 1 to {MAX_REASON} characters; this has {len(reason)}")
        return self._act(token, task_id, request_id, "skip", reason, None)

    def undo(self, token: str, request_id: str, task_id: str | None = None) -> Receipt:
        """Takes back the annotator's last answer or skip, which stays in the log; its task is next again.

        With `task_id`, only if that is the last one. Raises StudyError where nothing is left to undo.
        """
        with self._journal.writing() as state:
            place = _place(state, token)
            if (seen := self._seen_before(state, place, request_id, "undo", None, None)) is not None:
                return seen
            if not place.standing:
                raise StudyError("there is no answer to undo")
            last = place.standing[-1]
            if task_id is not None and self._assignment(state, place, task_id).number != last.task:
                raise StudyError("that is not your last answer any more; nothing was undone")
            self._insert_event(place, request_id, last.task, "undo", str(last.number))
            self._journal.catch_up()
            return self._receipt(state.requests[request_id], False)

    # --- reading ---

    def progress(self, token: str) -> Progress:
        """Where this annotator stands."""
        with self._journal.reading() as state:
            return state.progress(_place(state, token), self._clock())

    def last_action(self, token: str) -> tuple[Receipt, str] | None:
        """The annotator's last standing answer or skip, and its content: JSON, or the reason."""
        with self._journal.reading() as state:
            standing = _place(state, token).standing
            return (self._receipt(standing[-1], False), standing[-1].content) if standing else None

    def records(self) -> list[Record]:
        """Every answer that stands, with sources, criteria and order, in the order of their commits."""
        with self._journal.reading() as state:
            return [
                Record(
                    number=event.number,
                    annotator=annotator.name,
                    item=self.study.tuples[assignment.position],
                    order=assignment.order,
                    repeat=assignment.repeat,
                    answer=answer_from_json(json.loads(event.content)),
                    time=iso(event.time),
                )
                for event, assignment, annotator in state.standing_answers()
            ]

    def judgements(self) -> list[Judgement]:
        """Every answer that stands, in the order of their commits; hidden repeats share their tuple_id.

        A rating is the mean over the criteria; `records` has each.
        """
        return [judgement_of(record) for record in self.records()]

    def history(self) -> list[Event]:
        """The whole log: answers, skips and undos, those that no longer stand too."""
        with self._journal.reading() as state:
            return sorted(state.requests.values())

    def coverage(self) -> dict[str, int]:
        """tuple_id -> number of annotators whose answer stands."""
        with self._journal.reading() as state:
            ids = [each.tuple_id for each in self.study.tuples]
            return dict(zip(ids, state.coverage(), strict=True))

    # --- inside ---

    def _act(
        self,
        token: str,
        task_id: str,
        request_id: str,
        action: Action,
        content: str,
        answer: Answer | None,
    ) -> Receipt:
        with self._journal.writing() as state:
            place = _place(state, token)
            assignment = self._assignment(state, place, task_id)
            seen = self._seen_before(state, place, request_id, action, assignment.number, content)
            if seen is not None:
                return seen
            if answer is not None:
                check_answer(self.study, len(assignment.order), answer)
            if not assignment.is_open:
                assert assignment.last is not None
                what = "skipped" if assignment.last.action == "skip" else "judged"
                raise AlreadyJudgedError(
                    f"you have {what} this one already, at {iso(assignment.last.time)[11:16]} UTC; that "
                    "stands and this was not saved"
                )
            self._insert_event(place, request_id, assignment.number, action, content)
            # The next task in the same transaction: one commit, and one wait for the disk, an answer.
            self._journal.catch_up()
            self._give(state, token)
            return self._receipt(state.requests[request_id], False)

    def _give(self, state: State, token: str) -> None:
        """Shows the annotator the next tuple, if none is before them and there is one."""
        place = _place(state, token)
        if state.current(place) is not None or (chosen := state.choose(place, self._clock())) is None:
            return
        position, repeat = chosen
        self._journal.insert(
            "assignments",
            annotator_id=place.annotator.annotator_id,
            position=position,
            repeat=int(repeat),
            shown_order=json.dumps(state.shown_order(place, position, repeat)),
            time=self._clock(),
        )

    def _seen_before(
        self,
        state: State,
        place: Place,
        request_id: str,
        action: Action,
        task: int | None,
        content: str | None,
    ) -> Receipt | None:
        if not _REQUEST_ID.fullmatch(request_id):
            raise StudyError(f"request id {request_id[:64]!r} is not 1 to 64 letters, digits, - or _")
        event = state.requests.get(request_id)
        if event is None:
            return None
        same = event.annotator_id == place.annotator.annotator_id and event.action == action
        if not same or (task is not None and (event.task, event.content) != (task, content)):
            raise AlreadyJudgedError(
                "this page was sent before with something else, which stands; this was not saved: load the "
                "page again"
            )
        if action != "undo" and state.assignments[event.task].last is not event:
            raise AlreadyJudgedError(
                "this page was sent before and then undone; it was not saved again: load the page again"
            )
        return self._receipt(event, True)

    def _assignment(self, state: State, place: Place, task_id: str) -> Assignment:
        study_id, _, number = task_id.partition(".")
        if study_id != self.study_id:
            raise UnknownTaskError(f"task {task_id[:40]!r} belongs to another study; load the page again")
        found = state.assignments.get(int(number)) if re.fullmatch(r"[0-9]{1,15}", number) else None
        if found is None or found.annotator_id != place.annotator.annotator_id:
            raise UnknownTaskError(f"task {task_id[:40]!r} was not given to {place.annotator.name}")
        return found

    def _task(self, assignment: Assignment) -> Task:
        item = self.study.tuples[assignment.position]
        return Task(
            task_id=f"{self.study_id}.{assignment.number}",
            tuple_id=item.tuple_id,
            prompt=item.prompt,
            candidates=tuple(item.candidates[index] for index in assignment.order),
            order=assignment.order,
            repeat=assignment.repeat,
        )

    def _receipt(self, event: Event, seen_before: bool) -> Receipt:
        task_id = f"{self.study_id}.{event.task}"
        return Receipt(task_id=task_id, action=event.action, time=iso(event.time), seen_before=seen_before)

    def _insert_event(self, place: Place, request_id: str, task: int, action: Action, content: str) -> None:
        self._journal.insert(
            "events",
            request_id=request_id,
            annotator_id=place.annotator.annotator_id,
            task=task,
            action=action,
            content=content,
            time=self._clock(),
        )


def _remove(folder: Path, partial: Path) -> None:
    for leftover in folder.glob(f"{partial.name}*"):
        leftover.unlink()


def _place(state: State, token: str) -> Place:
    place = state.by_token.get(token)
    if place is None:
        raise UnknownAnnotatorError(
            "this link belongs to no annotator of this study; ask for a new one where you got it"
        )
    return place


def _name(given: str) -> str:
    """A name as it is stored."""
    return unicodedata.normalize("NFC", given).strip()


def _is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_plain(text: str) -> bool:
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Cf") for character in text)
