"""From a form's fields to an answer or a reason; positions on the screen become indices of the design."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs

from talltree.annotation.study import Answer, Study, StudyError, Task

MAX_FIELDS = 400
LONGEST_SECONDS = 86_400.0
REASONS = ("I cannot decide", "A text is broken or cut off", "Upsetting or unsuitable", "Something else")
TIE = "tie"


def fields(body: bytes) -> dict[str, str]:
    """The fields of an urlencoded form, the first of each name. Raises StudyError for anything else."""
    try:
        found = parse_qs(
            body.decode("utf-8", "replace"),
            keep_blank_values=True,
            max_num_fields=MAX_FIELDS,
            errors="replace",
        )
    except ValueError as error:
        raise StudyError(f"what was sent is not a form of this page ({error})") from None
    return {name: values[0] for name, values in found.items()}


def answer(study: Study, task: Task, form: Mapping[str, str], now: float) -> Answer:
    """The answer in a form; whether it is whole is for the store to say.

    Time taken: as the page's script counted it, else since the page was made.
    """
    seconds = _seconds(form, now)
    if study.kind == "rating":
        return Answer(ratings=_ratings(study, task, form), seconds=seconds)
    if form.get("best") == TIE:
        return Answer(tie=True, seconds=seconds)
    best, worst = (_index(task, form, name) for name in ("best", "worst"))
    return Answer(best=best, worst=worst, seconds=seconds)


def rating_field(criterion: int, position: int) -> str:
    """The name of the field with one rating, both counted from 0."""
    return f"rating-{criterion}-{position}"


def reason(form: Mapping[str, str]) -> str:
    """Why a task is skipped: one of REASONS, with the annotator's own words behind it."""
    chosen, words = form.get("reason", "").strip(), form.get("words", "").strip()
    if chosen not in REASONS:
        raise StudyError("a skip needs a reason; choose one")
    return f"{chosen}: {words}" if words else chosen


def _index(task: Task, form: Mapping[str, str], name: str) -> int | None:
    given = form.get(name, "")
    if not given:
        return None
    if given not in {str(number) for number in range(1, len(task.order) + 1)}:
        raise StudyError(f"{name} {given[:20]!r} is not one of the {len(task.order)} texts")
    return task.order[int(given) - 1]


def _ratings(study: Study, task: Task, form: Mapping[str, str]) -> tuple[tuple[int, ...], ...]:
    allowed = {str(value): value for value in range(1, study.points + 1)}
    rows = []
    for number, criterion in enumerate(study.criteria):
        row = {}
        for position, index in enumerate(task.order):
            given = form.get(rating_field(number, position), "")
            if given not in allowed:
                what = (
                    f"rating {given[:20]!r} is not 1 to {study.points}" if given else "one rating is missing"
                )
                raise StudyError(f"text {position + 1}, {criterion}: {what}; rate every text")
            row[index] = allowed[given]
        rows.append(tuple(row[index] for index in range(len(task.order))))
    return tuple(rows)


def _seconds(form: Mapping[str, str], now: float) -> float | None:
    for name, since in (("seconds", 0.0), ("shown", now)):
        try:
            value = abs(since - float(form.get(name, "")))
        except ValueError:
            continue
        if value <= LONGEST_SECONDS:  # false for NaN, too
            return round(value, 1)
    return None
