"""The page's replies to what people and scripts send, good and bad."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from talltree.annotation.study import Study, StudyError, Task, make_tuple
from talltree.web import forms
from talltree.web.pages import clean
from tests.web.serving import Live, ask, live

TUPLES = tuple(make_tuple("Once", [f"{letter}{i}" for letter in "abcd"], ["m"] * 4) for i in range(9))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("app") / "s", Study(kind="bws", tuples=TUPLES)) as made:
        yield made


def test_a_script_judges_by_json(site: Live) -> None:
    link = site.link("Json")
    shown = json.loads(ask(link)[2])
    assert set(shown) == {"task", "request"} and set(shown["task"]) == {"task_id", "prompt", "candidates"}
    form = {"task": shown["task"]["task_id"], "request": shown["request"], "best": "1", "worst": "4"}
    first = json.loads(ask(link + "/answer", form)[2])
    again = json.loads(ask(link + "/answer", form)[2])
    assert (first["saved"], first["receipt"]["seen_before"]) == (True, False)
    assert (again["saved"], again["receipt"]["seen_before"]) == (True, True)
    assert again["receipt"]["time"] == first["receipt"]["time"] and again["task"] == first["task"]
    assert first["task"]["task_id"] != form["task"]
    (record,) = [each for each in site.store.records() if each.annotator == "Json"]
    assert (record.answer.best, record.answer.worst) == (record.order[0], record.order[3])


@pytest.mark.parametrize(
    ("fields", "status", "line"),
    [
        ({"best": "2", "worst": "2"}, 422, "Best and worst are the same one; choose two different ones."),
        ({"best": "2"}, 422, "The worst one is not chosen; choose one."),
        ({"best": "5", "worst": "1"}, 422, "Best '5' is not one of the 4 texts."),
        ({"best": "0", "worst": "1"}, 422, "Best '0' is not one of the 4 texts."),
        ({"best": "tie", "worst": "1"}, 422, "No preference is not an answer in this study; choose one."),
        ({"best": "1", "worst": "2", "task": "ffff.1"}, 404, "Task 'ffff.1' belongs to another study; load"),
        ({"best": "1", "worst": "2", "request": ""}, 422, "Request id '' is not 1 to 64 letters, digits"),
        ({f"x{i}": "1" for i in range(500)}, 422, "What was sent is not a form of this page"),
    ],
)
def test_answers_that_are_refused(site: Live, fields: dict[str, str], status: int, line: str) -> None:
    link = site.link("Refused")
    task = json.loads(ask(link)[2])["task"]["task_id"]
    before = site.store.history()
    found, _, body = ask(link + "/answer", {"task": task, "request": "one", **fields})
    assert found == status and json.loads(body)["saved"] is False
    assert json.loads(body)["problem"].startswith(line)
    found, _, page = ask(
        link + "/answer", {"task": task, "request": "one", **fields}, {"Accept": "text/html"}
    )
    assert found == status and 'role="alert">' in page
    assert site.store.history() == before


def test_an_unknown_link_and_an_unknown_action(site: Live) -> None:
    status, _, page = ask(site.url + "/a/nobody", headers={"Accept": "text/html"})
    assert status == 404 and "This link belongs to no annotator of this study" in page
    for path, form in (("/a/nobody/answer", {"task": "x"}), ("/a/nobody/skip", {}), ("/a/nobody/undo", {})):
        status, _, body = ask(site.url + path, form)
        assert status == 404 and json.loads(body)["problem"].startswith("This link belongs to no annotator")
    assert ask(site.link("Refused") + "/delete", {})[0] == 404
    assert ask(site.link("Refused") + "/undo", {"request": "u1"})[0] == 422


def test_two_requests_for_one_task(site: Live) -> None:
    link = site.link("Twice")
    task = json.loads(ask(link)[2])["task"]["task_id"]
    assert ask(link + "/answer", {"task": task, "request": "r1", "best": "1", "worst": "2"})[0] == 200
    status, _, body = ask(link + "/answer", {"task": task, "request": "r2", "best": "3", "worst": "4"})
    assert status == 409 and "this was not saved" in json.loads(body)["problem"]
    status, _, body = ask(link + "/answer", {"task": task, "request": "r1", "best": "3", "worst": "4"})
    assert status == 409 and "was sent before with something else" in json.loads(body)["problem"]


def test_a_redirect_follows_what_was_saved(site: Live) -> None:
    link = site.link("Plain")
    task = json.loads(ask(link)[2])["task"]["task_id"]
    form = {"task": task, "request": "p1", "reason": forms.REASONS[1], "words": " it stops <mid "}
    status, _, page = ask(link + "/skip", form, {"Accept": "text/html"})  # follows the 303
    assert status == 200
    assert "skipped (A text is broken or cut off: it stops &lt;mid)" in page


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"seconds": "12.34", "shown": "90"}, 12.3),
        ({"seconds": "", "shown": "90"}, 10.0),
        ({"seconds": "nan", "shown": "90"}, 10.0),
        ({"seconds": "inf", "shown": "x"}, None),
        ({"seconds": "1e9"}, None),
        ({}, None),
    ],
)
def test_time_taken(fields: dict[str, str], expected: float | None) -> None:
    task = Task(task_id="x.1", tuple_id="t", prompt="", candidates=("b", "a"), order=(1, 0), repeat=False)
    study = Study(kind="pair", tuples=(make_tuple("", ["a", "b"]),))
    assert forms.answer(study, task, {"best": "1", **fields}, now=100.0).seconds == expected
    assert forms.answer(study, task, {"best": "1", **fields}, now=100.0).best == 1


def test_ratings_of_a_form_are_put_into_the_designs_order() -> None:
    task = Task(task_id="x.1", tuple_id="t", prompt="", candidates=("b", "a"), order=(1, 0), repeat=False)
    study = Study(kind="rating", tuples=(make_tuple("", ["a", "b"]),), criteria=("plot", "style"))
    fields = {"rating-0-0": "1", "rating-0-1": "2", "rating-1-0": "3", "rating-1-1": "4"}
    assert forms.answer(study, task, fields, 0.0).ratings == ((2, 1), (4, 3))
    for wrong in ("6", "0", "x", "3.0"):
        with pytest.raises(StudyError, match=r"text 1, style: rating '.*' is not 1 to 5; rate every text"):
            forms.answer(study, task, {**fields, "rating-1-0": wrong}, 0.0)
    with pytest.raises(StudyError, match="text 2, style: one rating is missing"):
        forms.answer(study, task, {**fields, "rating-1-1": ""}, 0.0)


def test_characters_that_html_does_not_allow() -> None:
    assert clean("a\x00b\x1bc\x7f\r\nd\re\tf\ud800") == "a\ufffdb\ufffdc\ufffd\nd\ne\tf\ufffd"


def test_nothing_tells_which_model_wrote_a_text_or_what_is_a_repeat(tmp_path: Path) -> None:
    tuples = tuple(make_tuple("Once", [f"a{i}", f"b{i}"], ["secret-1", "secret-2"]) for i in range(2))
    with live(tmp_path / "s", Study(kind="pair", tuples=tuples, repeats=1.0)) as site:
        link = site.link("Anna")
        pages = []
        for number in range(4):
            shown = json.loads(ask(link)[2])
            pages.append(ask(link, headers={"Accept": "text/html"})[2])
            form = {"task": shown["task"]["task_id"], "request": f"r{number}", "best": "1"}
            pages.append(ask(link + "/answer", form)[2])
        assert sum(each.repeat for each in site.store.records()) == 2
        assert not any("secret" in page or "repeat" in page for page in pages)
