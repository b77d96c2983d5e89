"""The state of a study as a fold over its log: who was shown what, which answers stand, what comes next."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from talltree.annotation.study import Annotator, Progress, Study

Action = Literal["answer", "skip", "undo"]

REPEAT_GAP = 5
"""Other answers that an annotator gives before a hidden repeat, while there are any to give."""
LEASE_SECONDS = 3600.0
"""How long a tuple that somebody was shown is kept for them alone; a later answer still counts."""


class Event(NamedTuple):
    """One row of the log; `content` is the answer as JSON, the reason of a skip, or the undone event."""

    number: int
    request_id: str
    annotator_id: int
    task: int
    action: Action
    content: str
    time: float


@dataclass(eq=False)
class Assignment:
    """A tuple shown to an annotator, and the last thing that happened to it."""

    number: int
    annotator_id: int
    position: int
    repeat: bool
    order: tuple[int, ...]
    time: float
    last: Event | None = None

    @property
    def is_open(self) -> bool:
        return self.last is None or self.last.action == "undo"

    @property
    def touched(self) -> float:
        return self.time if self.last is None else self.last.time


@dataclass(eq=False)
class Place:
    """Where one annotator stands."""

    annotator: Annotator
    unseen: dict[int, None]  # positions in this annotator's own order
    returns: frozenset[int]  # positions that come back as hidden repeats
    open: dict[int, Assignment] = field(default_factory=dict)
    standing: list[Event] = field(default_factory=list)  # answers and skips that are not undone, oldest first
    due: dict[int, int] = field(
        default_factory=dict
    )  # position to repeat -> answers given when it was judged
    repeated: set[int] = field(default_factory=set)
    answered: int = 0


class State:
    """Folds annotators, assignments and events, each in the order of its number."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.places: dict[int, Place] = {}
        self.by_token: dict[str, Place] = {}
        self.assignments: dict[int, Assignment] = {}
        self.requests: dict[str, Event] = {}
        self._answered = [0] * len(study.tuples)  # annotators whose answer to the tuple stands
        self._open: list[dict[int, Assignment]] = [
            {} for _ in study.tuples
        ]  # annotator -> open first showing

    def add_annotator(self, annotator: Annotator) -> None:
        seed, ids = self.study.seed, [each.tuple_id for each in self.study.tuples]
        positions = sorted(range(len(ids)), key=lambda i: _digest(seed, "queue", annotator.name, ids[i]))
        share = round(self.study.repeats * 2**64)
        returns = frozenset(
            i
            for i in (positions if share else ())
            if int.from_bytes(_digest(seed, "repeat", annotator.name, ids[i])[:8]) < share
        )
        place = Place(annotator, dict.fromkeys(positions), returns)
        self.places[annotator.annotator_id] = self.by_token[annotator.token] = place

    def add_assignment(self, assignment: Assignment) -> None:
        place = self.places[assignment.annotator_id]
        self.assignments[assignment.number] = assignment
        place.open[assignment.number] = assignment
        if assignment.repeat:
            place.repeated.add(assignment.position)
            place.due.pop(assignment.position, None)
        else:
            place.unseen.pop(assignment.position, None)
            self._open[assignment.position][assignment.annotator_id] = assignment

    def add_event(self, event: Event) -> None:
        place, assignment = self.places[event.annotator_id], self.assignments[event.task]
        self.requests[event.request_id] = event
        was = assignment.last
        assignment.last = event
        if event.action == "undo":
            place.open[assignment.number] = assignment
            place.standing = [each for each in place.standing if each.task != event.task]
        else:
            place.open.pop(assignment.number, None)
            place.standing.append(event)
        change = (event.action == "answer") - (was is not None and was.action == "answer")
        place.answered += change
        if assignment.repeat:
            return
        self._answered[assignment.position] += change
        if event.action == "undo":
            self._open[assignment.position][event.annotator_id] = assignment
            place.due.pop(assignment.position, None)
            return
        self._open[assignment.position].pop(event.annotator_id, None)
        if event.action == "answer" and self._comes_back(place, assignment.position):
            place.due[assignment.position] = place.answered

    def current(self, place: Place) -> Assignment | None:
        """The oldest task that was shown and is not answered; after an undo, the undone one."""
        return place.open[min(place.open)] if place.open else None

    def choose(self, place: Place, now: float) -> tuple[int, bool] | None:
        """(position, is a repeat) of the next task: a repeat that is due, else the tuple fewest have.

        Tuples that enough annotators have answered, or hold at the moment, are not given. Repeats come early
        only where nothing else is left. None: nothing, for now or for good.
        """
        due = next((each for each, since in place.due.items() if place.answered - since >= REPEAT_GAP), None)
        if due is not None:
            return due, True
        fewest, chosen = self.study.overlap, None
        for position in place.unseen:
            count = self._taken(position, place, now)
            if count < fewest:
                fewest, chosen = count, position
                if count == 0:
                    break
        if chosen is not None:
            return chosen, False
        return next(((position, True) for position in place.due), None)

    def progress(self, place: Place, now: float) -> Progress:
        """Where the annotator stands; tuples that others are about to finish count as left and waiting."""
        skipped = len(place.standing) - place.answered
        overlap = self.study.overlap
        wanted = {each for each in place.unseen if self._answered[each] < overlap}
        held = {each.position for other in self.places.values() for each in other.open.values()}
        waiting = sum(self._taken(each, place, now) >= overlap for each in held & wanted)
        again = len(place.returns & wanted)
        again += sum(
            not each.repeat and self._comes_back(place, each.position) for each in place.open.values()
        )
        left = len(place.open) + len(wanted) + len(place.due) + again
        return Progress(answered=place.answered, skipped=skipped, left=left, waiting=waiting)

    def shown_order(self, place: Place, position: int, repeat: bool) -> tuple[int, ...]:
        """A random order, the same for the same seed, name and tuple; a repeat's differs from the first."""
        item = self.study.tuples[position]
        first = _shuffled(len(item.candidates), self.study.seed, "order", place.annotator.name, item.tuple_id)
        if not repeat or len(first) == 1:
            return first
        for attempt in range(1000):
            again = _shuffled(
                len(first), self.study.seed, f"again {attempt}", place.annotator.name, item.tuple_id
            )
            if again != first:
                return again
        raise RuntimeError(f"1,000 shuffles of {len(first)} candidates were all the same")

    def standing_answers(self) -> Iterator[tuple[Event, Assignment, Annotator]]:
        """Every answer that stands, in the order in which they were given."""
        standing = [event for place in self.places.values() for event in place.standing]
        for event in sorted(standing):
            if event.action == "answer":
                annotator = self.places[event.annotator_id].annotator
                yield event, self.assignments[event.task], annotator

    def coverage(self) -> list[int]:
        """How many annotators' answers stand, for each tuple; hidden repeats are not counted."""
        return list(self._answered)

    def _taken(self, position: int, place: Place, now: float) -> int:
        held = sum(
            annotator_id != place.annotator.annotator_id and now - each.touched < LEASE_SECONDS
            for annotator_id, each in self._open[position].items()
        )
        return self._answered[position] + held

    def _comes_back(self, place: Place, position: int) -> bool:
        return position in place.returns and position not in place.repeated


def _digest(seed: int, *names: str) -> bytes:
    return hashlib.sha256("\n".join([str(seed), *names]).encode()).digest()


def _shuffled(size: int, seed: int, *names: str) -> tuple[int, ...]:
    order = list(range(size))
    random.Random(_digest(seed, *names)).shuffle(order)
    return tuple(order)
