"""Labels, groups, focus and contrast, measured on the page as Chromium shows it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from talltree.annotation.study import Kind, Study, make_tuple
from tests.web.serving import live

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Every visible text with its colour, what lies behind it, and its size; opacity counts.
TEXTS = """() => [...document.querySelectorAll('body *')].filter((each) =>
    [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())
    && each.checkVisibility() && !each.closest('.hidden')).map((each) => {
  let opacity = 1, background = null;
  for (let up = each; up; up = up.parentElement) {
    const style = getComputedStyle(up);
    opacity *= Number(style.opacity);
    if (!background && !style.backgroundColor.endsWith(', 0)')) background = style.backgroundColor;
  }
  return [each.textContent.trim().slice(0, 30), getComputedStyle(each).color, background, opacity];
})"""

NAMELESS = """() => [...document.querySelectorAll('input:not([type=hidden]), select, button')]
  .filter((each) => !(each.labels?.length || each.textContent.trim())).map((each) => each.outerHTML)"""

# What Tab reaches, in its order, and whether the focus can be seen there.
FOCUS = """() => {
  const each = document.activeElement;
  const seen = each.matches('.choice input, .point input') ? each.nextElementSibling : each;
  const { outlineStyle, outlineWidth } = getComputedStyle(seen);
  if (each === document.body) return ['BODY', false];
  return [each.name || each.id || each.textContent.trim(), outlineStyle !== 'none' && outlineWidth !== '0px'];
}"""


def luminance(colour: str) -> float:
    """Relative luminance of rgb(r, g, b), WCAG 2.2."""
    parts = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
    return sum(share * each for share, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_as_the_guidelines_compute_it() -> None:
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["bws", "rating"])
def test_everything_can_be_read_reached_and_named(
    browser: Browser, tmp_path: Path, kind: Kind, scheme: str
) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1000, "height": 800})
    tuples = tuple(make_tuple("Once " * 40 * i, ["one", "two", "three"]) for i in range(2))
    with live(tmp_path / "s", Study(kind=kind, tuples=tuples)) as site:
        page = context.new_page()
        link = site.link("Anna")
        token = link.split("/a/")[1]
        task = site.store.next_task(token)
        assert task is not None
        site.store.skip(token, task.task_id, "one", "broken")
        page.goto(link)
        page.keyboard.press("1")
        page.keyboard.press("2")
        page.keyboard.press("s")
        page.evaluate(
            "const p = document.getElementById('problem'); p.hidden = false; p.textContent = 'Not saved'"
        )
        texts = page.evaluate(TEXTS)
        assert len(texts) > 15
        poor = [each for each in texts if each[3] < 1 or contrast(each[1], each[2]) < 4.5]
        assert poor == []
        assert page.evaluate(NAMELESS) == []
        assert page.locator("h1").count() == 1 and page.locator("main").count() == 1
        assert page.locator("html").get_attribute("lang") == "en"
        fieldsets = page.locator("fieldset").count()
        assert fieldsets == page.locator("fieldset > legend").count() == (4 if kind == "rating" else 1)
        named = "quality of text 2" if kind == "rating" else "Which of these is best, and which is worst?"
        assert page.get_by_role("group", name=named, exact=True).count() == 1
        assert page.locator("#status[role=status][aria-live=polite]").count() == 1
        assert page.locator("#problem[role=alert]").count() == 1
        assert page.get_by_role("progressbar", name="Progress").count() == 1
        page.keyboard.press("Escape")
        reached = []
        for _ in range(14):
            page.keyboard.press("Tab")
            name, is_seen = page.evaluate(FOCUS)
            if name == "BODY":
                break
            assert is_seen, name
            reached.append(name)
        rows = [f"rating-0-{position}" for position in range(3)] if kind == "rating" else ["best", "worst"]
        wanted = [*rows, "Save and go on", "Undo last", "Skip", "keys"]
        assert [name for name in reached if name in wanted] == wanted, reached
    context.close()
