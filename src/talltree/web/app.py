"""The page's routes: a person's task, the answer to it, skip and undo; as HTML, or as JSON for scripts.

The store decides everything; a reply that says "saved" is sent after its commit. Requests are answered one by
one in one thread: the store writes one at a time in any case, and waiting threads only slow each other down.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response

from talltree.annotation.store import Store
from talltree.annotation.study import (
    AlreadyJudgedError,
    NotSavedError,
    Receipt,
    StudyError,
    UnknownAnnotatorError,
    UnknownTaskError,
)
from talltree.web import forms, guard, pages

HERE = Path(__file__).parent
STATIC = {name: HERE / "static" / name for name in ("judge.css", "judge.js", "icon.svg")}
STATIC["palette.css"] = HERE.parent / "palette.css"  # the reports have it, too
_STATUS: dict[type[StudyError], int] = {
    AlreadyJudgedError: 409,
    NotSavedError: 503,
    UnknownAnnotatorError: 404,
    UnknownTaskError: 404,
}


def create_app(
    store: Store, hosts: frozenset[str], password: str | None = None, clock: Callable[[], float] = time.time
) -> guard.Guard:
    """The whole application on an open store, with the guard around it."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/", response_class=HTMLResponse)
    async def home() -> str:
        return pages.message("Stories are judged here", "Open the private link that you were given.")

    @app.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in STATIC:
            return HTMLResponse(pages.message("Not found", "There is nothing at this address."), 404)
        return FileResponse(STATIC[name])

    @app.get("/a/{token}")
    async def judge(request: Request, token: str) -> Response:
        return _show(request, store, token, clock())

    @app.post("/a/{token}/{action}")
    async def act(request: Request, token: str, action: str, body: bytes = Depends(_body)) -> Response:
        given: Mapping[str, str] = {}
        try:
            given = forms.fields(body)
            receipt = _do(store, token, action, given, clock())
        except StudyError as error:
            return _show(request, store, token, clock(), error, given)
        if _wants_json(request):
            return JSONResponse({"saved": True, "receipt": _plain(receipt)} | _task_json(store, token))
        return RedirectResponse(f"/a/{token}", 303)

    @app.exception_handler(404)
    async def not_found(request: Request, error: Exception) -> Response:
        return HTMLResponse(pages.message("Not found", "There is nothing at this address."), 404)

    return guard.Guard(app, hosts, password)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > guard.MAX_BODY:  # a body sent in chunks announces no length
            return b"&" * (forms.MAX_FIELDS + 1)
    return bytes(body)


def _do(store: Store, token: str, action: str, given: Mapping[str, str], now: float) -> Receipt:
    task_id, request_id = given.get("task", ""), given.get("request", "")
    if action == "undo":
        return store.undo(token, request_id, task_id or None)
    if action == "skip":
        store.annotator(token)
        return store.skip(token, task_id, request_id, forms.reason(given))
    if action == "answer":
        task = store.task(token, task_id)
        return store.answer(token, task_id, request_id, forms.answer(store.study, task, given, now))
    raise UnknownTaskError(f"{action[:20]!r} is nothing that can be done here")


def _show(
    request: Request,
    store: Store,
    token: str,
    now: float,
    error: StudyError | None = None,
    given: Mapping[str, str] | None = None,
) -> Response:
    """The annotator's page, with what went wrong above it; or that alone where there is no page to show."""
    status = 200 if error is None else _STATUS.get(type(error), 422)
    problem = "" if error is None else _sentence(error)
    if _wants_json(request):
        if error is not None:
            return JSONResponse({"saved": False, "problem": problem}, status)
        try:
            return JSONResponse(_task_json(store, token))
        except StudyError as failed:
            content = {"saved": False, "problem": _sentence(failed)}
            return JSONResponse(content, _STATUS.get(type(failed), 422))
    try:
        view = pages.view(store, token, now, problem, given or {})
    except StudyError as failed:
        title = "Unknown link" if isinstance(failed, UnknownAnnotatorError) else "Not saved"
        return HTMLResponse(pages.message(title, _sentence(failed)), _STATUS.get(type(failed), 422))
    return HTMLResponse(pages.render(view), status)


def _sentence(error: StudyError) -> str:
    """An error as a person on the page reads it; where the database lies is not their concern."""
    text = str(error)
    if isinstance(error, NotSavedError):
        text = "not saved: " + text.removeprefix("not saved: ").partition(": ")[2]
    return text[:1].upper() + text[1:] + "."


def _wants_json(request: Request) -> bool:
    return request.headers.get("accept", "").startswith("application/json")


def _plain(receipt: Receipt) -> dict[str, Any]:
    return {name: getattr(receipt, name) for name in ("task_id", "action", "time", "seen_before")}


def _task_json(store: Store, token: str) -> dict[str, Any]:
    task = store.next_task(token)
    if task is None:
        return {"task": None}
    shown = {"task_id": task.task_id, "prompt": task.prompt, "candidates": task.candidates}
    return {"task": shown, "request": secrets.token_urlsafe(12)}
