"""Stories side by side, setting after setting, from the same prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from talltree.report.gallery import KINDS
from talltree.report.html import text
from talltree.report.study_facts import StudyFacts, decided_by, setting_label, stories
from talltree.report.words import nats, number

PROMPTS = 4
STARTS = ("model_name_or_path", "reward")
"""Options that make settings differ before training."""
LONGEST = 1200
"""Characters of a story that are shown."""


class Shelf(NamedTuple):
    """One row of the gallery: what it shows, and (setting, story) side by side."""

    title: str
    note: str
    cards: Sequence[tuple[str, Mapping[str, Any]]]


def shelves(facts: StudyFacts) -> list[Shelf]:
    """Rows of stories before and after training, all from fresh samples of each setting's first seed.

    Before: once for each model that settings start from, and for each reward, which the story is scored by.

    Several prompts: up to PROMPTS of those that every setting has, each with its story of median reward. One
    prompt: its typical, good and weak story.
    """
    first: dict[str, list[Mapping[str, Any]]] = {}
    after: list[tuple[str, list[Mapping[str, Any]]]] = []
    deciding = {name: None for key in STARTS for name in decided_by(facts, key)}
    for setting in facts.settings:
        if setting.finished and (rows := stories(setting.finished[0], "after")):
            start = setting_label(setting.levels, deciding) if deciding else "the model as it came"
            if start not in first and (before := stories(setting.finished[0], "before")):
                first[start] = before
            after.append((setting.label, rows))
    pools = [(f"Before: {start}", rows) for start, rows in first.items()] + after
    if not pools:
        return []
    prompts = _shared([rows for _, rows in pools])
    if not prompts:
        return []
    if len(prompts) == 1:
        return [
            Shelf(title, f"{note}; from “{prompts[0]}”", _cards(pools, prompts[0], quantile))
            for title, note, quantile in KINDS
        ]
    return [Shelf(f"“{prompt}”", "median reward", _cards(pools, prompt, 0.5)) for prompt in prompts[:PROMPTS]]


def _shared(pools: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Prompts that every setting has, in the order of the first one."""
    counts = Counter(prompt for rows in pools for prompt in {row["prompt"] for row in rows})
    first = dict.fromkeys(row["prompt"] for row in pools[0])
    return [prompt for prompt in first if counts[prompt] == len(pools)]


def _cards(
    pools: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], prompt: str, quantile: float
) -> list[tuple[str, Mapping[str, Any]]]:
    found = []
    for label, rows in pools:
        mine = [row for row in rows if row["prompt"] == prompt]
        scored = [row for row in mine if isinstance(row.get("reward"), int | float)]
        ranked = sorted(scored, key=lambda row: row["reward"]) or mine
        found.append((label, ranked[round(quantile * (len(ranked) - 1))]))
    return found


def html(shelf: Shelf) -> str:
    """A row of cards as HTML; every text of a model is escaped."""
    cards = "".join(
        f'<article class="card"><h4>{text(label)}</h4><dl class="facts">{_facts(story)}</dl>'
        f'<p class="story" dir="auto">{_story(story)}</p></article>'
        for label, story in shelf.cards
    )
    head = f'<h3>{text(shelf.title)} <span class="unit">{text(shelf.note)}</span></h3>'
    return f'{head}<div class="side-by-side">{cards}</div>'


def _facts(story: Mapping[str, Any]) -> str:
    found = []
    if isinstance(reward := story.get("reward"), int | float):
        found.append(("Reward", number(reward), "lead"))
    if isinstance(kl := story.get("kl"), int | float):
        found.append(("KL, nats", nats(kl), ""))
    if story.get("ended") is False:
        found.append(("End", "cut off", "cut"))
    return "".join(
        f'<div class="{name}"><dt>{text(label)}</dt><dd>{text(value)}</dd></div>'
        for label, value, name in found
    )


def _story(story: Mapping[str, Any]) -> str:
    """Prompt and completion, with the spans that earned the reward marked."""
    prompt, completion = str(story["prompt"]), str(story["completion"])
    whole = (prompt + completion)[:LONGEST]
    spans = [span for span in story.get("spans") or () if isinstance(span, list | tuple) and len(span) == 2]
    edges = {min(max(int(edge), 0), len(whole)) for span in spans for edge in span}
    cuts = sorted({0, min(len(prompt), len(whole)), len(whole), *edges})
    pieces = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        piece = text(whole[start:end])
        if any(low <= start < high for low, high in spans):
            piece = f"<mark>{piece}</mark>"
        pieces.append(f'<span class="prompt">{piece}</span>' if start < len(prompt) else piece)
    if not completion:
        pieces.append('<span class="nothing"> (nothing)</span>')
    if len(prompt + completion) > LONGEST:
        pieces.append("…")
    return "".join(pieces)
