"""Whatever a model, an annotator or the maker of a study writes is shown as text and never runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from talltree.annotation.study import Study, make_tuple
from talltree.web import forms, guard
from talltree.web.pages import clean
from tests.web.payloads import PAYLOADS
from tests.web.serving import Live, live

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LISTEN = (
    "document.addEventListener('securitypolicyviolation', e => console.error('CSP ' + e.violatedDirective))"
)


class Watched:
    """A page, and every sign that something ran or tried to."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.signs: list[str] = []
        page.on("dialog", self._dialog)
        page.on("console", lambda each: self.signs.append(f"console: {each.text}"))
        page.on("pageerror", lambda each: self.signs.append(f"error: {each}"))
        page.on("request", self._request)
        page.add_init_script(LISTEN)

    def _dialog(self, dialog: object) -> None:
        self.signs.append(f"dialog: {dialog.message}")  # type: ignore[attr-defined]
        dialog.dismiss()  # type: ignore[attr-defined]

    def _request(self, request: object) -> None:
        url = request.url  # type: ignore[attr-defined]
        if not url.startswith("http://127.0.0.1:"):
            self.signs.append(f"request: {url}")

    def settle(self) -> list[str]:
        """The signs so far, after the page had time for its timers and failed images."""
        if (
            self.page.evaluate("() => new Promise(done => setTimeout(() => done(window.hit), 15))")
            is not None
        ):
            self.signs.append("a global was set")
        return self.signs


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    yield Watched(context.new_page())
    context.close()


def study() -> Study:
    tuples = [
        make_tuple(payload, [f"{payload}{mark}" for mark in "ab"], [payload] * 2) for payload in PAYLOADS
    ]
    tuples += [make_tuple(prompt, ["benigna", "benignb"]) for prompt in ("Once", "benign")]
    return Study(kind="rating", tuples=tuple(tuples), criteria=("plot",), overlap=7)


TEXTS = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)].map((each) => each.textContent);
  const one = (selector) => document.querySelector(selector).textContent;
  return {
    given: all('.given'), texts: all('.text').sort(), question: one('#question'),
    criterion: one('.row legend'), name: one('.name'), saved: one('#saved'), problem: one('#problem'),
    words: document.querySelector('input[name=words]').value, title: document.title,
  };
}"""


def elements(page: Page) -> int:
    return page.evaluate("document.querySelectorAll('*').length")


def prepare(site: Live, name: str, prompt: str, reason: str) -> tuple[str, str]:
    """(token, id of the task before them) of a new annotator who skipped one task and now has this prompt."""
    token = site.store.add_annotator(name).token
    # What is given next, whatever the annotator's own order.
    place = site.store._journal.state.by_token[token]
    positions = {each.prompt: i for i, each in enumerate(site.store.study.tuples)}
    place.unseen = {positions["Once"]: None, positions[prompt]: None}
    first = site.store.next_task(token)
    assert first is not None
    site.store.skip(token, first.task_id, f"skip-{token}", reason)
    task = site.store.next_task(token)
    assert task is not None and task.prompt == prompt
    return token, task.task_id


def name_of(payload: str, number: int) -> str:
    """The payload as far as a name may hold it: printable characters only, at most 80, no two alike."""
    return f"{number}" + "".join(each for each in payload if each.isprintable())[:76]


SEND_NATIVELY = """([action, fields]) => {
  const form = document.createElement('form');
  form.method = 'post';
  form.action = action;
  for (const [name, value] of Object.entries(fields)) {
    const input = document.createElement('input');
    input.name = name;
    input.value = value;
    form.append(input);
  }
  document.body.append(form);
  form.submit();
}"""


def send(page: Page, action: str, fields: dict[str, str]) -> None:
    """Posts a form as a browser without the page's script would, and waits for the page that comes back."""
    with page.expect_navigation():
        page.evaluate(SEND_NATIVELY, [action, fields])


def test_no_payload_runs_wherever_it_stands(watched: Watched, tmp_path: Path) -> None:
    """One page a payload: as prompt, texts, question, criterion, name, skip's reason, refused words."""
    assert len(set(PAYLOADS)) >= 50
    page = watched.page
    with live(tmp_path / "study", study()) as site:
        page.goto(site.url)
        usual = 0
        for number, payload in enumerate(("benign", *PAYLOADS)):
            named = name_of(payload, number)
            study_now = dataclasses.replace(site.store.study, question=payload, criteria=(payload,))
            site.store.study = study_now
            reason = forms.reason({"reason": forms.REASONS[0], "words": payload})
            token, task_id = prepare(site, named, payload, reason)
            # Words without a reason are refused, and come back in the page to be sent again.
            send(page, f"/a/{token}/skip", {"task": task_id, "request": "r", "reason": "", "words": payload})
            text = clean(payload)
            usual = usual or elements(page)
            assert elements(page) == usual
            assert page.evaluate(TEXTS) == {
                "given": [text, text],
                "texts": sorted([f"{text}a", f"{text}b"]),
                "question": text,
                "criterion": f"{text} of text 1",
                "name": named,
                "saved": f"skipped ({forms.REASONS[0]}: {text.strip()})",
                "problem": "A skip needs a reason; choose one.",
                "words": text.replace("\n", ""),
                "title": " ".join(f"{named}: {text}".split()),
            }
        for payload in PAYLOADS[:10]:
            send(page, f"/a/{token}/answer", {"task": payload, "request": payload})
            assert "belongs to another study" in page.locator("#problem").inner_text()
            assert elements(page) == usual
        # Chromium notes in its console that the pages came with the refusals' status.
        signs = [each for each in watched.settle() if "responded with a status of 4" not in each]
        assert signs == []
        assert site.store.judgements() == []


def test_the_signs_are_seen_where_something_runs(watched: Watched) -> None:
    page = watched.page
    page.set_content("<script>window.hit = 1; alert(1)</script><img src=x onerror=alert(2)>")
    page.goto(
        "data:text/html,<script>console.log('ran'); window.hit = 1; fetch('http://evil.invalid/')</script>"
    )
    signs = watched.settle()
    for expected in ("dialog: 1", "console: ran", "a global was set", "request: http://evil.invalid/"):
        assert any(each.startswith(expected) for each in signs), (expected, signs)


@pytest.mark.parametrize(
    ("markup", "directive"),
    [
        ("<script>alert(1)</script>", "script-src-elem"),
        ("<img src=/x onerror=alert(1)>", "script-src-attr"),
        ("<p style='color: red'>x</p>", "style-src-attr"),
        ("<base href='http://evil.invalid/'>", "base-uri"),
    ],
)
def test_the_policy_stops_markup_that_was_not_escaped(watched: Watched, markup: str, directive: str) -> None:
    watched.page.route(
        "http://127.0.0.1:1/**",
        lambda route: route.fulfill(
            body=f"<!doctype html>{markup}", content_type="text/html", headers=dict(guard.HEADERS)
        ),
    )
    watched.page.goto("http://127.0.0.1:1/a")
    signs = watched.settle()
    assert any(each == f"console: CSP {directive}" for each in signs), signs
    assert not any(each.startswith("dialog") for each in signs)
