"""The SQLite file of a study: its schema, how it is opened, and what its errors mean to a person."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from talltree.annotation.study import NotSavedError, StudyError

FILE = "study.sqlite"
SCHEMA_VERSION = 1
APPLICATION_ID = 0x7A117EE  # what `file` and `open_database` know the format by
BUSY_SECONDS = 20.0
TABLES = ("study", "tuples", "annotators", "assignments", "events")

_TABLES = """
CREATE TABLE study (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    study_id TEXT NOT NULL,
    made TEXT NOT NULL,
    content TEXT NOT NULL
) STRICT;
CREATE TABLE tuples (
    position INTEGER PRIMARY KEY,
    tuple_id TEXT NOT NULL UNIQUE,
    prompt TEXT NOT NULL,
    candidates TEXT NOT NULL,
    sources TEXT NOT NULL
) STRICT;
CREATE TABLE annotators (
    annotator_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    token TEXT NOT NULL UNIQUE,
    time REAL NOT NULL
) STRICT;
CREATE TABLE assignments (
    number INTEGER PRIMARY KEY,
    annotator_id INTEGER NOT NULL REFERENCES annotators,
    position INTEGER NOT NULL REFERENCES tuples,
    repeat INTEGER NOT NULL CHECK (repeat IN (0, 1)),
    shown_order TEXT NOT NULL,
    time REAL NOT NULL,
    UNIQUE (annotator_id, position, repeat)
) STRICT;
CREATE TABLE events (
    number INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE,
    annotator_id INTEGER NOT NULL REFERENCES annotators,
    task INTEGER NOT NULL REFERENCES assignments,
    action TEXT NOT NULL CHECK (action IN ('answer', 'skip', 'undo')),
    content TEXT NOT NULL,
    time REAL NOT NULL
) STRICT;
CREATE INDEX events_of_task ON events (task, number);
CREATE TRIGGER one_answer BEFORE INSERT ON events
WHEN (NEW.action = 'undo') IS NOT
    COALESCE((SELECT action <> 'undo' FROM events WHERE task = NEW.task ORDER BY number DESC LIMIT 1), FALSE)
BEGIN SELECT RAISE(ABORT, 'a task is answered once, and only an answer is undone'); END;
"""
_APPEND_ONLY = "".join(
    f"CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END;\n"
    for table in TABLES
    for verb in ("UPDATE", "DELETE")
)


def create_database(path: Path) -> sqlite3.Connection:
    """A new database with the schema; the caller fills it, closes it and gives it its final name."""
    connection = _connect(path)
    connection.executescript(
        f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};\n"
        f"BEGIN; {_TABLES} {_APPEND_ONLY} COMMIT;"
    )
    return connection


def open_database(folder: Path) -> sqlite3.Connection:
    """Opens a study's database. Raises StudyError if there is none, or none that can be read."""
    path = folder / FILE
    if not path.is_file():
        what = "holds no study" if folder.is_dir() else "does not exist"
        raise StudyError(f"{folder} {what}; make one with talltree annotate new {folder} --samples FILE")
    with errors(path):
        connection = _connect(path)
    with closed_unless_done(connection):
        _check(connection, path)
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    with closed_unless_done(connection):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
    return connection


@contextmanager
def closed_unless_done(connection: sqlite3.Connection) -> Iterator[None]:
    """Closes the connection where the block does not reach its end."""
    with ExitStack() as stack:
        stack.callback(connection.close)
        yield
        stack.pop_all()


def _check(connection: sqlite3.Connection, path: Path) -> None:
    with errors(path):
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            raise StudyError(f"{path} is an SQLite file but not a study of talltree; name a study folder")
        if version != SCHEMA_VERSION:
            newer = version > SCHEMA_VERSION
            raise StudyError(
                f"{path} was written by {'a newer' if newer else 'an older'} talltree (schema {version}, "
                f"here {SCHEMA_VERSION}); {'update talltree' if newer else 'export it with that one'}"
            )
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise _damaged(path, found)
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
        lacking = [name for name in TABLES if name not in tables]
        if lacking or connection.execute("SELECT count(*) FROM study").fetchone() != (1,):
            raise _damaged(path, f"without {', '.join(lacking) or 'a study'}")


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turns SQLite's errors inside the block into one line; programming errors stay as they are."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise NotSavedError(_not_saved(path, error)) from error
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError):
        raise
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error


def _not_saved(path: Path, error: sqlite3.OperationalError) -> str:
    code = error.sqlite_errorcode & 0xFF
    why = {
        sqlite3.SQLITE_FULL: "the disk is full; make room",
        sqlite3.SQLITE_READONLY: "the file or its folder is read-only; permit writing",
        sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check the folder and its permissions",
        sqlite3.SQLITE_BUSY: f"another process held it for {BUSY_SECONDS:.0f} seconds; stop that one",
        sqlite3.SQLITE_IOERR: "the disk failed to read or write; check it",
    }.get(code)
    if why is None:
        raise error
    return f"not saved: {path}: {why}, then try again ({error})"


def _damaged(path: Path, found: str) -> StudyError:
    return StudyError(
        f"{path} is damaged ({' '.join(found.split())}); restore a backup, or save what is left with "
        f"sqlite3 {path} .recover"
    )


def rename_into_place(partial: Path, path: Path) -> None:
    """Gives a closed database its name, on disk before this returns."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(partial, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
