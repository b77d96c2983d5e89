"""What a study is: its tuples and its question, the task that one annotator sees, and the answer to it.

Indices into candidates are always those of the design; `Task.order` says which one stood where on screen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from talltree.data.preferences import Judgement
from talltree.errors import TallTreeError

Kind = Literal["bws", "best", "pair", "rating"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_K = 9
"""Candidates of a tuple that can be told apart by one number key."""
MAX_OVERLAP = 7
MAX_POINTS = 9
QUESTIONS: dict[Kind, str] = {
    "bws": "Which of these is best, and which is worst?",
    "best": "Which of these is best?",
    "pair": "Which of the two is better?",
    "rating": "How good is each text?",
}
"""The question of a study that gives none."""


class StudyError(TallTreeError):
    """A study, an annotator, a task or an answer that cannot be used; nothing was stored."""


class UnknownAnnotatorError(StudyError):
    """A token that belongs to nobody in this study."""


class UnknownTaskError(StudyError):
    """A task of another study, of another annotator, or of nobody."""


class AlreadyJudgedError(StudyError):
    """A second answer to a task, or a request id used twice for different things; the first stands."""


class NotSavedError(StudyError):
    """The disk is full, read-only or failing, or another process holds the store: nothing was stored."""


@dataclass(frozen=True, kw_only=True)
class StudyTuple:
    """Candidates of one prompt that are judged together; `sources` (models) are kept and never shown."""

    tuple_id: str
    prompt: str
    candidates: tuple[str, ...]
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that is fixed when a study is made.

    `overlap` different annotators judge each tuple; `repeats` is the share of an annotator's tuples that come
    back once, unannounced, later and in another order. Ratings run from 1 to `points` for each of `criteria`.
    """

    kind: Kind
    tuples: tuple[StudyTuple, ...]
    question: str = ""
    overlap: int = 1
    repeats: float = 0.0
    seed: int = 0
    criteria: tuple[str, ...] = ()
    points: int = 5
    ties: bool = True

    @property
    def k(self) -> int:
        """Candidates of the largest tuple."""
        return max((len(each.candidates) for each in self.tuples), default=0)


@dataclass(frozen=True, kw_only=True)
class Annotator:
    """A person, or a simulated one; whoever has the token is taken for that person."""

    annotator_id: int
    name: str
    token: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """One tuple before one annotator: candidates as shown, order[position] = index in the design.

    `repeat` is True for a hidden repeat and is never shown.
    """

    task_id: str
    tuple_id: str
    prompt: str
    candidates: tuple[str, ...]
    order: tuple[int, ...]
    repeat: bool


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A judgement in indices of the design.

    bws: best and worst; best: best; pair: best, or tie; rating: ratings[criterion][candidate], 1 to points.
    bws and best may bring the whole `ranking`, best first. `seconds` is the time taken.
    """

    best: int | None = None
    worst: int | None = None
    ranking: tuple[int, ...] | None = None
    ratings: tuple[tuple[int, ...], ...] | None = None
    tie: bool = False
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What is on disk; `seen_before` says that this request had been stored by an earlier try."""

    task_id: str
    action: Literal["answer", "skip", "undo"]
    time: str
    seen_before: bool


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where one annotator stands; `left` may still come to them, `waiting` of it is before others now."""

    answered: int
    skipped: int
    left: int
    waiting: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """A standing answer with all that is known of it, sources and criteria included."""

    number: int
    annotator: str
    item: StudyTuple
    order: tuple[int, ...]
    repeat: bool
    answer: Answer
    time: str


def judgement_of(record: Record) -> Judgement:
    """A record as the judgement that the other stages read; ratings are means over the criteria."""
    answer = record.answer
    ratings = answer.ratings
    chosen = answer.ranking is None
    return Judgement(
        prompt=record.item.prompt,
        candidates=record.item.candidates,
        best=answer.best if chosen else None,
        worst=answer.worst if chosen else None,
        ranking=answer.ranking,
        ratings=None
        if ratings is None
        else tuple(sum(each) / len(each) for each in zip(*ratings, strict=True)),
        tie=answer.tie,
        annotator=record.annotator,
        seconds=answer.seconds,
        time=record.time,
        tuple_id=record.item.tuple_id,
        order=record.order,
    )


def make_tuple(prompt: str, candidates: Sequence[str], sources: Sequence[str] = ()) -> StudyTuple:
    """A tuple named by its content, so that the same tuple has the same id in every study."""
    content = json.dumps([prompt, list(candidates), list(sources)])
    tuple_id = hashlib.sha256(content.encode()).hexdigest()[:12]
    return StudyTuple(tuple_id=tuple_id, prompt=prompt, candidates=tuple(candidates), sources=tuple(sources))


def settled(study: Study) -> Study:
    """The study with its question and criteria filled in. Raises StudyError for what is refused."""
    if study.kind not in KINDS:
        raise StudyError(f"kind {study.kind!r} is not known; kinds: {', '.join(KINDS)}")
    study = replace(
        study,
        question=study.question.strip() or QUESTIONS[study.kind],
        criteria=(study.criteria or ("quality",)) if study.kind == "rating" else study.criteria,
    )
    _check(study)
    return study


def _check(study: Study) -> None:
    if not study.tuples:
        raise StudyError("a study needs at least one tuple, this one has none; give more samples")
    if not 1 <= study.overlap <= MAX_OVERLAP:
        raise StudyError(f"overlap {study.overlap} is not 1 to {MAX_OVERLAP} annotators a tuple")
    if not 0 <= study.repeats <= 1:
        raise StudyError(f"repeats {study.repeats} is not a share; give 0 to 1")
    if study.criteria and study.kind != "rating":
        raise StudyError(f"criteria belong to kind rating, not {study.kind}; leave them out")
    if len(set(study.criteria)) < len(study.criteria) or not all(each.strip() for each in study.criteria):
        raise StudyError(f"criteria {', '.join(study.criteria)!r}: one is empty or there twice")
    if not 2 <= study.points <= MAX_POINTS:
        raise StudyError(f"points {study.points} is not 2 to {MAX_POINTS}")
    low, high = {"bws": (3, MAX_K), "best": (2, MAX_K), "pair": (2, 2), "rating": (1, MAX_K)}[study.kind]
    for text in (study.question, *study.criteria):
        _check_text(text, "question and criteria")
    ids = set()
    for number, each in enumerate(study.tuples, 1):
        where = f"tuple {number} ({each.tuple_id})"
        if each.tuple_id in ids:
            raise StudyError(f"{where} is there twice; a tuple is judged again through overlap and repeats")
        ids.add(each.tuple_id)
        for text in (each.tuple_id, each.prompt, *each.candidates, *each.sources):
            _check_text(text, where)
        if not low <= len(each.candidates) <= high:
            some = str(low) if low == high else f"{low} to {high}"
            raise StudyError(f"{where} has {len(each.candidates)} candidates; kind {study.kind} takes {some}")
        if len(set(each.candidates)) < len(each.candidates):
            raise StudyError(f"{where} has the same candidate twice; leave one out")
        if each.sources and len(each.sources) != len(each.candidates):
            raise StudyError(f"{where} has {len(each.candidates)} candidates but {len(each.sources)} sources")


def _check_text(text: str, where: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise StudyError(f"{where}: half a surrogate pair (\\ud800 to \\udfff) is no text; write it whole")


def check_answer(study: Study, k: int, answer: Answer) -> None:
    """Raises StudyError, in words for the annotator, unless `answer` is a whole one to a tuple of k."""
    kind = study.kind
    if answer.seconds is not None and not 0 <= answer.seconds < float("inf"):
        raise StudyError(f"seconds {answer.seconds} is not a time taken")
    if kind == "rating":
        _check_ratings(study, k, answer)
    elif answer.ratings is not None:
        raise StudyError(f"ratings are no answer in a study of kind {kind}")
    elif answer.tie:
        if kind != "pair" or not study.ties:
            raise StudyError("no preference is not an answer in this study; choose one")
        if (answer.best, answer.worst, answer.ranking) != (None, None, None):
            raise StudyError("no preference and a choice exclude each other; give one of the two")
    else:
        _check_choice(kind, k, answer)


def _check_choice(kind: Kind, k: int, answer: Answer) -> None:
    best, worst = answer.best, answer.worst
    if best is None:
        raise StudyError("the best one is not chosen; choose one")
    if worst is None and kind == "bws":
        raise StudyError("the worst one is not chosen; choose one")
    if worst is not None and kind == "best":
        raise StudyError("a study of kind best takes no worst one")
    for name, index in (("best", best), ("worst", worst)):
        if index is not None and not 0 <= index < k:
            raise StudyError(f"{name} {index} is not one of the {k} candidates")
    if best == worst:
        raise StudyError("best and worst are the same one; choose two different ones")
    if answer.ranking is None:
        return
    if kind == "pair" or sorted(answer.ranking) != list(range(k)):
        raise StudyError(f"ranking {list(answer.ranking)} does not name each of the {k} candidates once")
    if answer.ranking[0] != best or (worst is not None and answer.ranking[-1] != worst):
        raise StudyError(f"ranking {list(answer.ranking)} contradicts best {best} and worst {worst}")


def _check_ratings(study: Study, k: int, answer: Answer) -> None:
    if (answer.best, answer.worst, answer.ranking, answer.tie) != (None, None, None, False):
        raise StudyError("a study of kind rating takes ratings, no choice")
    ratings = answer.ratings or ()
    if len(ratings) != len(study.criteria) or any(len(row) != k for row in ratings):
        raise StudyError("some ratings are missing; rate every candidate")
    for criterion, row in zip(study.criteria, ratings, strict=True):
        for rating in row:
            if not 1 <= rating <= study.points:
                raise StudyError(f"{criterion} {rating} is not 1 to {study.points}")


def answer_json(answer: Answer) -> dict[str, Any]:
    """The fields of an answer that are not at their default."""
    fields = {name: getattr(answer, name) for name in Answer.__dataclass_fields__}
    return {name: value for name, value in fields.items() if value is not None and value is not False}


def answer_from_json(content: dict[str, Any]) -> Answer:
    """The answer that `answer_json` wrote."""
    fields = dict(content)
    if "ranking" in fields:
        fields["ranking"] = tuple(fields["ranking"])
    if "ratings" in fields:
        fields["ratings"] = tuple(tuple(row) for row in fields["ratings"])
    return Answer(**fields)
