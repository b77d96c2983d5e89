"""The judging flow in a real browser: every kind, by keyboard, by touch, and without script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from talltree.annotation.study import Answer, Kind, NotSavedError, Progress, Study, make_tuple
from tests.web.serving import Live, live

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

STORY = "there was a small dog who lived by the sea and liked to dig. " * 6
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


def study(kind: Kind, k: int, **options: object) -> Study:
    tuples = tuple(make_tuple("Once", [f" story {i} of {j}: {STORY}" for i in range(k)]) for j in range(3))
    return Study(kind=kind, tuples=tuples, **options)  # type: ignore[arg-type]


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": 1280, "height": 900})
    yield made
    made.close()


def saved(page: Page, count: int) -> str:
    """What the page says was saved, once it counts so many judgements and skips."""
    page.locator(f"#progress[value='{count}']").wait_for()
    page.wait_for_load_state()  # its script has run: keys are taken, the focus is where it belongs
    return page.locator("#status").inner_text()


def chosen(page: Page) -> str:
    return page.locator("#chosen").inner_text()


def focused(page: Page) -> str:
    return page.evaluate("document.activeElement.id || document.activeElement.tagName")


def orders(site: Live) -> list[tuple[int, ...]]:
    return [record.order for record in site.store.records()]


def test_best_and_worst_by_keyboard(context: BrowserContext, tmp_path: Path) -> None:
    with live(tmp_path / "s", study("bws", 4)) as site:
        page = context.new_page()
        page.goto(site.link("Anna"))
        assert focused(page) == "question"
        assert page.locator("#count").inner_text() == "0 judged · 3 to go"
        page.keyboard.press("Enter")
        assert page.locator("input:invalid").count() > 0 and site.store.history() == []
        page.keyboard.press("1")
        page.keyboard.press("3")
        assert chosen(page) == "best 1, worst 3"
        page.keyboard.press("Shift+Digit4")
        assert chosen(page) == "best 1, worst 4"
        page.keyboard.press("Shift+Digit1")  # worst where best was: both cannot be
        assert chosen(page) == "worst 1"
        page.keyboard.press("2")
        page.keyboard.press("2")  # a second time takes it back
        assert chosen(page) == "worst 1"
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        assert "best 2, worst 1" in saved(page, 1)
        assert focused(page) == "question"
        assert page.locator("#count").inner_text() == "1 judged · 2 to go"
        (record,) = site.store.records()
        assert (record.answer.best, record.answer.worst) == (record.order[1], record.order[0])
        assert record.answer.seconds is not None and 0 < record.answer.seconds < 60
        # Undo brings the same task back; it is answered otherwise.
        first = page.locator(".text").all_inner_texts()
        page.keyboard.press("u")
        assert "Every answer is saved" in saved(page, 0)
        assert page.locator("#undo").count() == 0
        assert sorted(page.locator(".text").all_inner_texts()) != sorted(first)
        page.keyboard.press("4")
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        assert "best 4, worst 1" in saved(page, 1)
        assert [event.action for event in site.store.history()] == ["answer", "undo", "answer"]
        # Skip, with a reason.
        page.keyboard.press("s")
        assert focused(page) == "reason"
        page.keyboard.press("Escape")
        assert focused(page) == "question" and page.locator("#skip[open]").count() == 0
        page.keyboard.press("s")
        page.locator("#reason").select_option("Upsetting or unsuitable")
        page.keyboard.press("Tab")
        page.keyboard.type("u and s and 1 are letters here")
        page.keyboard.press("Enter")
        assert "skipped (Upsetting or unsuitable: u and s and 1 are letters here)" in saved(page, 2)
        assert page.locator("#count").inner_text() == "1 judged, 1 skipped · 1 to go"
        page.keyboard.press("1")
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        assert "best 1, worst 2" in saved(page, 3)
        assert page.locator("h1").inner_text() == "That was all. Thank you!" and focused(page) == "question"
        page.keyboard.press("u")
        saved(page, 2)
        assert len(site.store.judgements()) == 1


def test_keys_can_be_turned_off(context: BrowserContext, tmp_path: Path) -> None:
    with live(tmp_path / "s", study("bws", 3)) as site:
        page = context.new_page()
        page.goto(site.link("Anna"))
        page.get_by_role("checkbox", name="Keys").uncheck()
        page.reload()
        assert not page.get_by_role("checkbox", name="Keys").is_checked()
        page.keyboard.press("1")
        page.keyboard.press("s")
        assert chosen(page) == "" and page.locator("#skip[open]").count() == 0


def test_best_of_five(context: BrowserContext, tmp_path: Path) -> None:
    with live(tmp_path / "s", study("best", 5)) as site:
        page = context.new_page()
        page.goto(site.link("Anna"))
        assert page.get_by_role("radio").count() == 5
        page.keyboard.press("2")
        page.keyboard.press("5")
        assert chosen(page) == "best 5"
        page.keyboard.press("Enter")
        assert "best 5" in saved(page, 1)
        (record,) = site.store.records()
        assert record.answer.best == record.order[4] and record.answer.worst is None


def test_pairs_and_no_preference(context: BrowserContext, tmp_path: Path) -> None:
    with live(tmp_path / "s", study("pair", 2)) as site:
        page = context.new_page()
        page.goto(site.link("Anna"))
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        saved(page, 1)
        page.keyboard.press("0")
        assert chosen(page) == "no preference"
        page.keyboard.press("Enter")
        assert "no preference" in saved(page, 2)
        first, second = site.store.records()
        assert first.answer.best == first.order[1]
        assert (second.answer.tie, second.answer.best) == (True, None)


def test_ratings_by_criterion(context: BrowserContext, tmp_path: Path) -> None:
    criteria = ("grammar", "plot coherence")
    with live(tmp_path / "s", study("rating", 2, criteria=criteria, points=7)) as site:
        page = context.new_page()
        page.goto(site.link("Anna"))
        for key in "73":
            page.keyboard.press(key)
        assert chosen(page) == "2 of 4 rated"
        page.keyboard.press("8")  # above the scale
        assert chosen(page) == "2 of 4 rated"
        page.keyboard.press("1")
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        assert "grammar 7, 1; plot coherence 3, 2" in saved(page, 1)
        (record,) = site.store.records()
        on_screen = [[row[index] for index in record.order] for row in record.answer.ratings or ()]
        assert on_screen == [[7, 1], [3, 2]]


def test_two_tabs_give_one_answer(context: BrowserContext, tmp_path: Path) -> None:
    with live(tmp_path / "s", study("bws", 3)) as site:
        link = site.link("Anna")
        here, there = context.new_page(), context.new_page()
        for page in (here, there):
            page.goto(link)
            page.keyboard.press("1")
        assert here.locator(".text").all_inner_texts() == there.locator(".text").all_inner_texts()
        here.keyboard.press("2")
        here.keyboard.press("Enter")
        saved(here, 1)
        there.keyboard.press("3")
        there.keyboard.press("Enter")
        problem = there.locator("#problem")
        problem.wait_for()
        assert problem.inner_text().startswith("You have judged this one already, at ")
        assert "that stands and this was not saved" in problem.inner_text()
        (record,) = site.store.records()
        assert record.answer.worst == record.order[1]
        assert there.evaluate("document.activeElement.textContent") == "Go on"
        there.keyboard.press("Enter")
        assert "best 1, worst 2" in saved(there, 1)
        assert there.locator(".text").all_inner_texts() == here.locator(".text").all_inner_texts()


def test_a_server_that_stops_and_comes_back(context: BrowserContext, tmp_path: Path) -> None:
    with live(tmp_path / "s", study("bws", 3)) as site:
        page = context.new_page()
        page.goto(site.link("Anna"))
        site.stop()
        page.keyboard.press("3")
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        page.locator("#problem").wait_for()
        assert page.locator("#problem").inner_text().startswith("Not saved yet: the server does not answer.")
        assert chosen(page) == "best 3, worst 1" and site.store.history() == []
        site.start()
        assert "best 3, worst 1" in saved(page, 1)
        assert len(site.store.history()) == 1


def fill_the_disk(site: Live) -> None:
    """Allows the database no further page, and uses up what is free in those it has."""
    connection = site.store._journal._connection
    connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")
    token = site.link("Ben").split("/a/")[1]
    task = site.store.next_task(token)
    assert task is not None
    number = 0
    for size in (500, 1):
        with pytest.raises(NotSavedError, match="the disk is full"):
            while True:
                number += 1
                if site.store.last_action(token) is None:
                    site.store.skip(token, task.task_id, f"skip-{number}", "x" * size)
                else:
                    site.store.undo(token, f"undo-{number}")


def test_a_full_disk(context: BrowserContext, tmp_path: Path) -> None:
    with live(tmp_path / "s", study("bws", 3)) as site:
        page = context.new_page()
        page.goto(site.link("Anna"))
        fill_the_disk(site)
        before = len(site.store.history())
        page.keyboard.press("1")
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        page.locator("#problem").wait_for()
        assert page.locator("#problem").inner_text().startswith("Not saved: the disk is full; make room")
        assert str(tmp_path) not in page.content()
        assert chosen(page) == "best 1, worst 2" and len(site.store.history()) == before
        site.store._journal._connection.execute("PRAGMA max_page_count = 1000000")
        page.keyboard.press("Enter")
        assert "best 1, worst 2" in saved(page, 1)
        assert len(site.store.judgements()) == 1


def test_without_script(browser: Browser, tmp_path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    with live(tmp_path / "s", study("bws", 3)) as site:
        page = context.new_page()
        page.goto(site.link("Anna"))
        page.get_by_role("radio", name="Best is text 1").check(force=True)
        page.get_by_role("radio", name="Worst is text 1").check(force=True)
        page.get_by_role("button", name="Save and go on").click()
        problem = page.locator("#problem")
        assert problem.inner_text() == "Best and worst are the same one; choose two different ones."
        # What was chosen is still there.
        assert page.get_by_role("radio", name="Best is text 1").is_checked()
        page.get_by_role("radio", name="Worst is text 3").check(force=True)
        page.get_by_role("button", name="Save and go on").click()
        assert "best 1, worst 3" in page.locator("#status").inner_text()
        assert page.url == site.link("Anna")  # a reload sends nothing again
        (record,) = site.store.records()
        assert (record.answer.best, record.answer.worst) == (record.order[0], record.order[2])
        assert record.answer.seconds is not None and record.answer.seconds < 60
        page.get_by_role("button", name="Undo last").click()
        assert page.locator("#count").inner_text() == "0 judged · 3 to go"
        page.locator("#skip summary").click()
        page.get_by_label("In your words").fill("cut in the middle")
        page.get_by_role("button", name="Skip this one").click()
        assert "skipped (I cannot decide: cut in the middle)" in page.locator("#status").inner_text()
        page.go_back()  # to the page of before, which is answered meanwhile
        page.get_by_role("radio", name="Best is text 1").check(force=True)
        page.get_by_role("radio", name="Worst is text 2").check(force=True)
        page.get_by_role("button", name="Save and go on").click()
        assert len(site.store.judgements()) == 1 and len(site.store.history()) == 4
    context.close()


def test_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    context = browser.new_context(**PHONE)
    with live(tmp_path / "s", study("bws", 4)) as site:
        page = context.new_page()
        page.goto(site.link("Anna"))
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        for label in page.locator("label.choice, .send, #skip summary").all():
            box = label.bounding_box()
            assert box is not None and box["height"] >= 44 and box["width"] >= 44
        page.locator("label.choice.best").nth(3).tap()
        page.locator("label.choice.worst").nth(0).tap()
        assert chosen(page) == "best 4, worst 1"
        page.locator(".send").tap()  # always in sight, wherever the text is
        assert "best 4, worst 1" in saved(page, 1)
        page.locator("#undo button").tap()
        saved(page, 0)
        page.locator("#skip summary").tap()
        page.locator("#skip form button").tap()
        assert "skipped (I cannot decide)" in saved(page, 1)
    context.close()


def test_waiting_for_others_is_not_the_end(context: BrowserContext, tmp_path: Path) -> None:
    with live(tmp_path / "s", Study(kind="pair", tuples=(make_tuple("Once", ["a", "b"]),))) as site:
        page = context.new_page()
        anna, ben = site.link("Anna"), site.link("Ben")
        token = anna.split("/a/")[1]
        held = site.store.next_task(token)
        assert held is not None
        page.goto(ben)
        assert page.locator("h1").inner_text() == "Nothing to judge just now"
        site.store.skip(token, held.task_id, "one", "broken")
        page.get_by_role("link", name="Look again").click()
        assert page.locator("h1").inner_text() == "Which of the two is better?"
        assert site.store.progress(token) == Progress(answered=0, skipped=1, left=0, waiting=0)


def test_a_long_prompt_stands_above_and_sources_nowhere(context: BrowserContext, tmp_path: Path) -> None:
    item = make_tuple("TITLE: " + STORY, [" yes", " no"], ["secret-model-a", "secret-model-b"])
    with live(tmp_path / "s", Study(kind="pair", tuples=(item,))) as site:
        page = context.new_page()
        page.goto(site.link("Anna"))
        assert page.get_by_role("region", name="What was given").inner_text() == "TITLE: " + STORY
        assert sorted(page.locator(".story .text").all_text_contents()) == [" no", " yes"]
        assert page.locator(".given").count() == 0
        assert "secret" not in page.content()
        assert site.store.records() == []
        token = site.link("Anna").split("/a/")[1]
        task = site.store.next_task(token)
        assert task is not None
        site.store.answer(token, task.task_id, "one", Answer(best=0))
        assert site.store.records()[0].item.sources == ("secret-model-a", "secret-model-b")
