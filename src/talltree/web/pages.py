"""What the page says: everything that the templates show, worked out here, and the templates filled in."""

from __future__ import annotations

import functools
import json
import re
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import jinja2

from talltree.annotation.store import MAX_REASON, Store
from talltree.annotation.study import Kind, Progress, Study, Task, answer_from_json
from talltree.web import forms

SHORT_PROMPT = 160
"""A prompt of so many characters stands at the start of each text; a longer one once, above them."""

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

HELP: dict[Kind, tuple[tuple[str, str], ...]] = {
    "bws": (("1…{k}", "first best, then worst"), ("Shift + 1…{k}", "worst")),
    "best": (("1…{k}", "best"),),
    "pair": (("1 2", "better"),),
    "rating": (("1…{points}", "rate, and go to the next row"),),
}
_COMMON_HELP = (("Enter", "save"), ("u", "undo"), ("s", "skip"))


class View(NamedTuple):
    """All that one page shows."""

    token: str
    name: str
    study: Study
    task: Task | None
    progress: Progress
    saved: str
    saved_time: str
    undo_task: str
    problem: str
    given: Mapping[str, str]
    requests: tuple[str, str, str]
    now: float


def view(store: Store, token: str, now: float, problem: str, given: Mapping[str, str]) -> View:
    """The page of one annotator now; `given` fills in what was chosen and could not be saved."""
    annotator = store.annotator(token)
    task = store.next_task(token)
    last = store.last_action(token)
    saved, saved_time, undo_task = "", "", ""
    if last is not None:
        receipt, content = last
        saved_time, undo_task = receipt.time, receipt.task_id
        if receipt.action == "skip":
            saved = f"skipped ({content})"
        else:
            saved = _words(store.study, store.task(token, receipt.task_id), content)
    is_same = task is not None and given.get("task") == task.task_id
    return View(
        token=token,
        name=annotator.name,
        study=store.study,
        task=task,
        progress=store.progress(token),
        saved=saved,
        saved_time=saved_time,
        undo_task=undo_task,
        problem=problem,
        given=given if is_same else {},
        requests=(secrets.token_urlsafe(12), secrets.token_urlsafe(12), secrets.token_urlsafe(12)),
        now=now,
    )


def render(view: View) -> str:
    """The page of a task, or the one that says that there is none."""
    if view.task is None:
        return _template("rest.html").render(view=view)
    study, task = view.study, view.task
    shown = len(task.order)
    words = {"k": shown, "points": study.points}
    helped = [(keys.format(**words), what) for keys, what in HELP[study.kind]]
    if study.kind == "pair" and study.ties:
        helped.append(("0", "no preference"))
    return _template("judge.html").render(
        view=view,
        study=study,
        task=task,
        inline_prompt=task.prompt if len(task.prompt) <= SHORT_PROMPT else "",
        long_prompt=task.prompt if len(task.prompt) > SHORT_PROMPT else "",
        help=[*helped, *_COMMON_HELP],
        reasons=forms.REASONS,
        rating_field=forms.rating_field,
        tie=forms.TIE,
        max_words=MAX_REASON - max(map(len, forms.REASONS)) - 2,
    )


def message(title: str, text: str) -> str:
    """A page that only says something."""
    return _template("message.html").render(title=title, text=text)


def clean(text: object) -> str:
    """Any value as text, with the characters that HTML does not allow as U+FFFD; escaping comes after."""
    return _CONTROL.sub("\ufffd", str(text).replace("\r\n", "\n").replace("\r", "\n"))


def _words(study: Study, task: Task, content: str) -> str:
    """An answer in the words of the page: positions as they were on the screen."""
    answer = answer_from_json(json.loads(content))
    if answer.tie:
        return "no preference"
    if answer.ratings is not None:
        rows = zip(study.criteria, answer.ratings, strict=True)
        return "; ".join(f"{name} " + ", ".join(str(row[i]) for i in task.order) for name, row in rows)
    chosen = [("best", answer.best), ("worst", answer.worst)]
    return ", ".join(f"{name} {task.order.index(index) + 1}" for name, index in chosen if index is not None)


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("talltree.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_final,
    )


def _final(value: Any) -> Any:
    is_html = isinstance(value, jinja2.Undefined) or hasattr(value, "__html__")
    return value if is_html else clean(value)


def _template(name: str) -> Any:
    return _environment().get_template(name)
