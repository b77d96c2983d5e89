"""The log of a study in its database: transactions around a state that is caught up inside each of them."""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from talltree.annotation.database import create_database, errors
from talltree.annotation.state import Assignment, Event, State
from talltree.annotation.study import Annotator, Study, StudyTuple

_NOT_TUPLES = tuple(field.name for field in fields(Study) if field.name != "tuples")


class Journal:
    """One connection, its lock, and the state that follows from the rows read so far."""

    def __init__(self, connection: sqlite3.Connection, path: Path, study: Study) -> None:
        self.state = State(study)
        self._connection = connection
        self._path = path
        self._lock = threading.RLock()
        self._seen = {"annotators": 0, "assignments": 0, "events": 0}

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def insert(self, table: str, **row: str | int | float) -> None:
        """Adds a row inside a `writing` block."""
        _insert(self._connection, table, row)

    @contextmanager
    def reading(self) -> Iterator[State]:
        """The state with everything that any process has committed so far."""
        with self._lock, errors(self._path):
            self._connection.execute("BEGIN")
            try:
                self.catch_up()
            finally:
                self._connection.execute("ROLLBACK")
            yield self.state

    @contextmanager
    def writing(self) -> Iterator[State]:
        """One transaction: committed and folded into the state at the end of the block, or rolled back."""
        with self._lock, errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            changes = self._connection.total_changes
            committed = False
            try:
                self.catch_up()
                yield self.state
                self.catch_up()
                self._connection.execute("COMMIT")
                committed = True
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if not committed and self._connection.total_changes != changes:
                    self._forget()  # it may have folded rows that are not there after the rollback

    def _forget(self) -> None:
        self.state = State(self.state.study)
        self._seen = dict.fromkeys(self._seen, 0)

    def catch_up(self) -> None:
        """Folds the rows that came since the last time, one's own uncommitted ones too."""
        for row in self._new_rows("annotators", "annotator_id", "annotator_id, name, token"):
            self.state.add_annotator(Annotator(annotator_id=row[0], name=row[1], token=row[2]))
        columns = "number, annotator_id, position, repeat, shown_order, time"
        for number, annotator_id, position, repeat, order, when in self._new_rows(
            "assignments", "number", columns
        ):
            self.state.add_assignment(
                Assignment(number, annotator_id, position, bool(repeat), tuple(json.loads(order)), when)
            )
        for row in self._new_rows("events", "number", ", ".join(Event._fields)):
            self.state.add_event(Event(*row))

    def _new_rows(self, table: str, key: str, columns: str) -> list[tuple[Any, ...]]:
        rows = self._connection.execute(
            f"SELECT {columns} FROM {table} WHERE {key} > ? ORDER BY {key}", (self._seen[table],)
        ).fetchall()
        if rows:
            self._seen[table] = rows[-1][0]
        return rows


def fill(path: Path, study: Study, now: float) -> None:
    """Makes a database with a study in it and closes it."""
    connection = create_database(path)
    try:
        connection.execute("BEGIN IMMEDIATE")
        content = {name: getattr(study, name) for name in _NOT_TUPLES}
        row = {"one": 1, "study_id": secrets.token_hex(4), "made": iso(now), "content": json.dumps(content)}
        _insert(connection, "study", row)
        for position, each in enumerate(study.tuples):
            _insert(
                connection,
                "tuples",
                {
                    "position": position,
                    "tuple_id": each.tuple_id,
                    "prompt": each.prompt,
                    "candidates": json.dumps(each.candidates),
                    "sources": json.dumps(each.sources),
                },
            )
        connection.execute("COMMIT")
    finally:
        connection.close()


def read_study(connection: sqlite3.Connection) -> tuple[str, Study]:
    """The study's id and the study."""
    study_id, content = connection.execute("SELECT study_id, content FROM study").fetchone()
    rows = connection.execute("SELECT tuple_id, prompt, candidates, sources FROM tuples ORDER BY position")
    tuples = tuple(
        StudyTuple(
            tuple_id=tuple_id,
            prompt=prompt,
            candidates=tuple(json.loads(candidates)),
            sources=tuple(json.loads(sources)),
        )
        for tuple_id, prompt, candidates, sources in rows
    )
    kept = json.loads(content)
    kept["criteria"] = tuple(kept["criteria"])
    return study_id, Study(tuples=tuples, **kept)


def _insert(connection: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))


def iso(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
