"""Preferences: one Judgement for each time that somebody judged k candidates of one prompt, read and written.

A file is JSONL whose keys are the fields of Judgement, or prompt/chosen/rejected rows as other libraries
write them.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from talltree import checkpoint
from talltree.data import chosen_rejected
from talltree.data.documents import jsonl_rows
from talltree.errors import DataError

Order = tuple[tuple[int, ...], tuple[int, ...]]
"""(above, below): every candidate of `above` is preferred to every candidate of `below`."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One annotator's judgement of k candidates of one prompt; prompt + candidate is the text that was read.

    candidates: k different completions in the design's order, k >= 2, or k >= 1 with ratings.
    One answer: best and worst (one of them may be None; indices into candidates, different), or ranking
    (indices, best first; all k, or the top m, whose unnamed rest is below in no order; best and worst may
    repeat its ends), or ratings (one a candidate, higher is better), or tie (judged, without a preference:
    counted, settles nothing).
    seconds: time taken. time: ISO 8601, UTC. margin: strength of the preference, >= 0. tuple_id: the same for
    everybody who judged these candidates. order[position on the screen] = index into candidates.
    Raises DataError, which names the field, for anything else.
    """

    prompt: str
    candidates: tuple[str, ...]
    best: int | None = None
    worst: int | None = None
    ranking: tuple[int, ...] | None = None
    ratings: tuple[float, ...] | None = None
    tie: bool = False
    annotator: str = ""
    seconds: float | None = None
    time: str | None = None
    margin: float | None = None
    tuple_id: str = ""
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "annotator", "tuple_id"):
            _check_text(name, getattr(self, name))
        _check_candidates(self.candidates, self.ratings is not None)
        _check_answer(self)
        for name in ("seconds", "margin"):
            _check_amount(name, getattr(self, name))
        _check_time(self.time)
        size = len(self.candidates)
        if self.order is not None:
            _check_indices("order", self.order, size)
            if len(self.order) != size:
                raise DataError(f"order {list(self.order)} names {len(self.order)} of {size} candidates")


FIELDS = tuple(field.name for field in dataclasses.fields(Judgement))
_TUPLES = ("candidates", "ranking", "ratings", "order")


def partial_orders(judgement: Judgement) -> list[Order]:
    """What the judgement settles, as choices in their order; no pair of candidates stands in two of them.

    Best: (best; the rest). Worst: (the rest; worst). Best and worst: (best; the rest), then (the middle;
    worst), the middle left out where it is empty. Ranking: (first; the rest), (second; those below it), ...
    Ratings: (all of one value; all of lower values) from the highest value down. A tie, and equal ratings,
    settle nothing. Both sides hold indices in ascending order.
    """
    every = range(len(judgement.candidates))
    if judgement.ratings is not None:
        values = sorted(set(judgement.ratings), reverse=True)
        groups = [tuple(i for i in every if judgement.ratings[i] == value) for value in values]
        below = [tuple(sorted(sum(groups[level + 1 :], ()))) for level in range(len(groups))]
        return list(zip(groups[:-1], below[:-1], strict=True))
    if judgement.ranking is not None:
        choices = []
        left = set(every)
        for chosen in judgement.ranking:
            left.remove(chosen)
            choices.append(((chosen,), tuple(sorted(left))))
        return [choice for choice in choices if choice[1]]
    found: list[Order] = []
    best, worst = judgement.best, judgement.worst
    if best is not None:
        found.append(((best,), tuple(i for i in every if i != best)))
    if worst is not None:
        found.append((tuple(i for i in every if i not in (best, worst)), (worst,)))
    return [choice for choice in found if choice[0]]


def pairs(judgement: Judgement) -> list[tuple[int, int]]:
    """(winner, loser) for every pair of candidates that the judgement settles, as indices.

    Best and worst of k settle 2k - 3 of the k(k-1)/2 pairs (5 of 6 for k = 4), best alone k - 1, a full
    ranking all of them, a tie none.
    """
    return [
        (winner, loser) for above, below in partial_orders(judgement) for winner in above for loser in below
    ]


def read_preferences(path: Path | str, ignore: Collection[str] = ()) -> list[Judgement]:
    """The judgements of a JSONL file: rows of Judgement's fields, or of prompt, chosen and rejected.

    Absent and null fields take their defaults. chosen/rejected rows may have margin, annotator, seconds and
    time; `chosen_rejected.fields_of` says how message lists become texts. `ignore` names
    columns to leave out. Raises DataError, naming file, line and field, for whatever is not so, for an
    unknown column, and where one tuple_id stands for different candidates.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"preferences {path} not found; give a .jsonl file of judgements")
    judgements = from_rows(jsonl_rows(path), ignore)
    if not judgements:
        raise DataError(f"preferences {path} holds no judgement")
    return judgements


def from_rows(rows: Iterable[tuple[str, Mapping[str, Any]]], ignore: Collection[str] = ()) -> list[Judgement]:
    """The judgements of (place for messages, row) pairs, as `read_preferences` takes them."""
    judgements: list[Judgement] = []
    places: list[str] = []
    for where, row in rows:
        try:
            judgements.append(from_row(row, ignore))
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        places.append(where)
    _check_tuples(judgements, places)
    return judgements


def write_preferences(path: Path | str, judgements: Iterable[Judgement]) -> None:
    """One JSON object a judgement, fields at their default left out; written aside and renamed."""
    lines = (json.dumps(to_row(judgement), ensure_ascii=False) + "\n" for judgement in judgements)
    with (
        checkpoint.replacing(Path(path)) as partial,
        partial.open("w", encoding="utf-8", newline="\n") as file,
    ):
        file.writelines(lines)


def to_row(judgement: Judgement) -> dict[str, Any]:
    """The fields that are not at their default, as plain JSON values."""
    row: dict[str, Any] = {}
    for field in dataclasses.fields(Judgement):
        value = getattr(judgement, field.name)
        if value != field.default:
            row[field.name] = list(value) if isinstance(value, tuple) else value
    return row


def from_row(row: Mapping[str, Any], ignore: Collection[str] = ()) -> Judgement:
    """The judgement of one row, as `read_preferences` takes it. Raises DataError, naming the field."""
    given = {name: value for name, value in row.items() if value is not None and name not in ignore}
    known = FIELDS
    if "candidates" not in given and {"chosen", "rejected"} & set(given):
        known = chosen_rejected.COLUMNS
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)};"
            raise DataError(
                f"column {name!r} is unknown; {meant} name it among those to ignore if it has no use"
            )
    if known is not FIELDS:
        given = chosen_rejected.fields_of(given)
    for name in ("prompt", "candidates"):
        if name not in given:
            have = ", ".join(row) or "none"
            raise DataError(f"{name} is missing (or prompt, chosen and rejected); columns there: {have}")
    for name in _TUPLES:
        if name in given:
            if not isinstance(given[name], list | tuple):
                raise DataError(f"{name} {_short(given[name])} is not a list")
            given[name] = tuple(given[name])
    return Judgement(**given)


def _check_tuples(judgements: Sequence[Judgement], places: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for number, judgement in enumerate(judgements):
        if not judgement.tuple_id:
            continue
        earlier = judgements[first.setdefault(judgement.tuple_id, number)]
        if (earlier.prompt, earlier.candidates) != (judgement.prompt, judgement.candidates):
            raise DataError(
                f"{places[number]}: tuple_id {judgement.tuple_id!r} stands for another prompt or other "
                f"candidates, or another order of them, in {places[first[judgement.tuple_id]]}"
            )


# What a field may hold


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise DataError(f"{name} {_short(value)} is {_kind(value)}, not a text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{name} holds half a surrogate pair (\\ud800 to \\udfff); write it whole")


def _check_candidates(candidates: tuple[str, ...], are_rated: bool) -> None:
    if not isinstance(candidates, tuple):
        raise DataError(f"candidates {_short(candidates)} is {_kind(candidates)}, not a tuple of texts")
    for number, text in enumerate(candidates):
        _check_text(f"candidates[{number}]", text)
    least = 1 if are_rated else 2
    if len(candidates) < least:
        many = "1 candidate" if candidates else "no candidate"
        only = "" if are_rated else "; one alone can only be rated"
        raise DataError(f"candidates holds {many}, at least {least} are needed{only}")
    if len(set(candidates)) < len(candidates):
        double = next(i for i, text in enumerate(candidates) if text in candidates[:i])
        raise DataError(
            f"candidates[{candidates.index(candidates[double])}] and candidates[{double}] are the same text "
            f"{_short(candidates[double])}; a choice between them says nothing"
        )


def _check_answer(judgement: Judgement) -> None:
    size = len(judgement.candidates)
    if not isinstance(judgement.tie, bool):
        raise DataError(f"tie {_short(judgement.tie)} is {_kind(judgement.tie)}, not true or false")
    names = ("best", "worst", "ranking", "ratings")
    given = [name for name in names if getattr(judgement, name) is not None] + ["tie"] * judgement.tie
    if not given:
        raise DataError("there is no answer; give best, worst, ranking, ratings, or tie: true")
    if len(given) > 1 and not {"best", "worst", "ranking"}.issuperset(given):
        raise DataError(f"{' and '.join(given)} are given, which exclude each other; give one of them")
    for name in ("best", "worst"):
        index = getattr(judgement, name)
        if index is not None:
            _check_indices(name, (index,), size)
    if judgement.best is not None and judgement.best == judgement.worst:
        raise DataError(f"best and worst are both {judgement.best}; they must differ")
    if judgement.ranking is not None:
        _check_ranking(judgement.ranking, judgement.best, judgement.worst, size)
    if judgement.ratings is not None:
        _check_ratings(judgement.ratings, size)


def _check_ranking(ranking: tuple[int, ...], best: int | None, worst: int | None, size: int) -> None:
    _check_indices("ranking", ranking, size)
    if best is not None and ranking[0] != best:
        raise DataError(f"ranking {list(ranking)} does not begin with best, which is {best}")
    if worst is not None and (len(ranking) < size or ranking[-1] != worst):
        raise DataError(
            f"ranking {list(ranking)} of {size} candidates does not end with worst, which is {worst}"
        )


def _check_ratings(ratings: tuple[float, ...], size: int) -> None:
    if not isinstance(ratings, tuple) or len(ratings) != size:
        many = len(ratings) if isinstance(ratings, tuple) else _kind(ratings)
        raise DataError(f"ratings: {many} for {size} candidates; give one for each")
    for number, value in enumerate(ratings):
        if not _is_number(value):
            raise DataError(f"ratings[{number}] {_short(value)} is not a finite number")


def _check_indices(name: str, indices: tuple[int, ...], size: int) -> None:
    if not isinstance(indices, tuple) or not indices:
        raise DataError(f"{name} {_short(indices)} is not a list of indices")
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < size:
            raise DataError(f"{name} {_short(index)} is not an index of a candidate, 0 to {size - 1}")
    if len(set(indices)) < len(indices):
        raise DataError(f"{name} {list(indices)} names a candidate twice")


def _check_amount(name: str, value: object) -> None:
    if value is not None and not (_is_number(value) and value >= 0):  # type: ignore[operator]
        raise DataError(f"{name} {_short(value)} is not a finite number of at least 0")


def _check_time(value: object) -> None:
    if value is None:
        return
    try:
        moment = datetime.fromisoformat(value)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        raise DataError(f"time {_short(value)} is not ISO 8601, such as 2025-03-01T12:30:00Z") from None
    if moment.utcoffset() != timedelta(0):
        raise DataError(f"time {_short(value)} is not in UTC; end it with Z or +00:00")


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the range of floats
        return False


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: object) -> str:
    name = type(value).__name__
    return name if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
