"""People's judgements of two or more sources: read from a study or an export, and compared."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from talltree.annotation import database
from talltree.annotation.store import Store
from talltree.data.documents import jsonl_rows
from talltree.data.preferences import Judgement, pairs, read_preferences
from talltree.errors import DataError
from talltree.evals import significance
from talltree.evals.comparison import LEVEL
from talltree.evals.people import Choice, Rating, WinRate, mean_rating, rating_difference, win_rate
from talltree.evals.results import Metric
from talltree.evals.verdict import figure, probability, with_interval

OVERALL = "rating"
"""The name of a rating whose criterion an export does not tell."""


class Judged(NamedTuple):
    """One answer with the source of each candidate; ratings by criterion, one value a candidate."""

    judgement: Judgement
    sources: tuple[str, ...]
    ratings: dict[str, tuple[float, ...]]


class Study(NamedTuple):
    """What was judged, in which order the sources came, and what had to be left out and why."""

    judged: list[Judged]
    sources: list[str]
    notes: list[str]


def read(given: str, samples: str | None, order: Sequence[str] = ()) -> Study:
    """A study folder, or an export with the sources in a column of its own or in a file of samples.

    Sources stand in `order`, those that are not in it after it by their names. Hidden repeats are left out:
    they are the same person's opinion once more. Raises DataError where there are not two sources, and what
    the store raises.
    """
    path = Path(given).expanduser()
    if (path / database.FILE).is_file():
        judged, notes = _from_store(path)
    else:
        judged, notes = _from_file(path, samples)
    sources = list(dict.fromkeys(source for each in judged for source in each.sources))
    if len(sources) < 2:
        raise DataError(
            f"people {given}: {len(sources)} source is named in {len(judged)} judgements, and a comparison "
            "needs two; make the study from samples with a column source, or give people_samples"
        )
    places = {name: place for place, name in enumerate(order)}
    return Study(judged, sorted(sources, key=lambda name: (places.get(name, len(places)), name)), notes)


def _from_store(folder: Path) -> tuple[list[Judged], list[str]]:
    with Store.open(folder) as store:
        criteria, records = store.study.criteria, store.records()
        repeats = sum(record.repeat for record in records)
        judged = []
        for record in records:
            if record.repeat or not record.item.sources:
                continue
            given = record.answer.ratings or ()
            ratings = {
                name: tuple(map(float, row))
                for name, row in zip(criteria if given else (), given, strict=True)
            }
            answer = record.answer
            if not ratings and answer.best is None and not answer.tie:
                continue
            judged.append(
                Judged(
                    Judgement(
                        prompt=record.item.prompt,
                        candidates=record.item.candidates,
                        best=None if answer.ranking else answer.best,
                        worst=None if answer.ranking else answer.worst,
                        ranking=answer.ranking,
                        ratings=next(iter(ratings.values()), None),
                        tie=answer.tie,
                        annotator=record.annotator,
                        tuple_id=record.item.tuple_id,
                    ),
                    record.item.sources,
                    ratings,
                )
            )
    notes = [f"Hidden repeats left out of the win rates and means: {repeats}."] if repeats else []
    return judged, notes


def _from_file(path: Path, samples: str | None) -> tuple[list[Judged], list[str]]:
    judgements = read_preferences(path, ignore=("sources", "criterion", "repeat"))
    rows = [row for _, row in jsonl_rows(path)]
    known = {} if samples is None else _sources(Path(samples).expanduser())
    judged: list[Judged] = []
    seen: set[tuple[str, str, str]] = set()
    unknown = repeats = 0
    for judgement, row in zip(judgements, rows, strict=True):
        sources = row.get("sources")
        if sources is None:
            sources = [known.get((judgement.prompt, text)) for text in judgement.candidates]
        if len(sources) != len(judgement.candidates) or not all(isinstance(each, str) for each in sources):
            unknown += 1
            continue
        criterion = str(row.get("criterion") or OVERALL)
        # One tuple twice before one person is a hidden repeat; the first answer counts.
        mark = (judgement.annotator, judgement.tuple_id, criterion)
        if judgement.tuple_id and mark in seen:
            repeats += 1
            continue
        seen.add(mark)
        ratings = {} if judgement.ratings is None else {criterion: judgement.ratings}
        judged.append(Judged(judgement, tuple(sources), ratings))
    notes = []
    if unknown:
        notes.append(
            f"Judgements left out because a candidate has no known source: {unknown} of {len(rows)}."
        )
    if repeats:
        notes.append(f"Hidden repeats left out of the win rates and means: {repeats}.")
    return judged, notes


def _sources(path: Path) -> dict[tuple[str, str], str]:
    """(prompt, completion) -> source; a text that two sources wrote tells nothing and is left out."""
    if not path.is_file():
        raise DataError(f"people_samples {path} not found; give the .jsonl that the study was made from")
    found: dict[tuple[str, str], set[str]] = {}
    for where, row in jsonl_rows(path):
        for column in ("prompt", "completion", "source"):
            if not isinstance(row.get(column), str):
                raise DataError(f"{where}: {column} {str(row.get(column))[:40]!r} is no text")
        found.setdefault((row["prompt"], row["completion"]), set()).add(row["source"])
    return {text: sources.pop() for text, sources in found.items() if len(sources) == 1}


def compare(study: Study) -> dict[str, Any]:
    """Win rates of every two sources and ratings per criterion, Holm's correction over all their tests."""
    wins = {
        (first, second): win_rate(choices)
        for first, second in itertools.combinations(study.sources, 2)
        if (choices := _choices(study.judged, first, second))
    }
    ratings = _ratings(study.judged)
    rated = {
        (criterion, first, second): rating_difference(of_source[first], of_source[second])
        for criterion, of_source in ratings.items()
        for first, second in itertools.combinations(study.sources, 2)
        if first in of_source and second in of_source
    }
    tests = [each.p_value for each in wins.values()] + [p_value for _, p_value in rated.values()]
    adjusted = iter(significance.holm([each for each in tests if each is not None]))
    holm = [None if each is None else next(adjusted) for each in tests]
    found_wins = [
        _win_json(first, second, each, p_holm)
        for ((first, second), each), p_holm in zip(wins.items(), holm[: len(wins)], strict=True)
    ]
    found_ratings = [
        {"criterion": criterion, "left": first, "right": second, "difference": apart.as_json(),
         "p_value": p_value, "p_holm": p_holm}
        for ((criterion, first, second), (apart, p_value)), p_holm in zip(
            rated.items(), holm[len(wins) :], strict=True
        )
    ]  # fmt: skip
    raters = sorted({each.judgement.annotator for each in study.judged})
    return {
        "sources": study.sources,
        "judgements": len(study.judged),
        "prompts": len({each.judgement.prompt for each in study.judged}),
        "raters": len(raters),
        "win_rates": found_wins,
        "means": {
            criterion: {source: mean_rating(given).as_json() for source, given in of_source.items()}
            for criterion, of_source in ratings.items()
        },
        "ratings": found_ratings,
        "verdict": [*map(_win_words, found_wins), *map(_rating_words, found_ratings)],
        "notes": [*study.notes, *_notes(len(raters))],
    }


def _choices(judged: Sequence[Judged], first: str, second: str) -> list[Choice]:
    """Every settled pair of candidates of the two sources, and every tie between two of them."""
    found = []
    for each in judged:
        if each.ratings:
            continue
        judgement, sources = each.judgement, each.sources
        if judgement.tie and set(sources) == {first, second}:
            found.append(Choice(judgement.prompt, judgement.annotator, 0.5))
        for winner, loser in pairs(judgement):
            if {sources[winner], sources[loser]} == {first, second}:
                won = float(sources[winner] == second)
                found.append(Choice(judgement.prompt, judgement.annotator, won))
    return found


def _ratings(judged: Sequence[Judged]) -> dict[str, dict[str, list[Rating]]]:
    found: dict[str, dict[str, list[Rating]]] = {}
    for each in judged:
        for criterion, values in each.ratings.items():
            for source, value in zip(each.sources, values, strict=True):
                rating = Rating(each.judgement.prompt, each.judgement.annotator, value)
                found.setdefault(criterion, {}).setdefault(source, []).append(rating)
    return found


def _win_json(first: str, second: str, each: WinRate, p_holm: float | None) -> dict[str, Any]:
    return {
        "left": first,
        "right": second,
        **each._asdict(),
        "rate": each.rate.as_json(),
        "raters": {name: {"rate": rate, "answers": n} for name, (rate, n) in each.raters.items()},
        "rater_spread": each.rater_spread,
        "p_holm": p_holm,
    }


def _win_words(each: dict[str, Any]) -> str:
    rate = Metric(**each["rate"])
    counts = f"{each['wins']} wins, {each['losses']} losses, {each['ties']} ties"
    start = f"{each['right']} against {each['left']}: win rate {with_interval(rate)}, {counts}"
    if rate.low is None or rate.high is None:
        return f"{start}; one rater and one prompt give no interval."
    if rate.low <= 0.5 <= rate.high:
        return f"{start}; no preference could be shown, for the interval has 0.5 in it."
    if each["p_holm"] is None or each["p_holm"] > LEVEL:
        return f"{start}; only hinted at (p {probability(each['p_holm'])} after Holm's correction)."
    return f"{start}; people prefer {each['right'] if rate.value > 0.5 else each['left']}."


def _rating_words(each: dict[str, Any]) -> str:
    apart = Metric(**each["difference"])
    start = f"{each['criterion']}: {each['right']} less {each['left']} is {with_interval(apart, True)} points"
    if apart.low is None or apart.high is None:
        return f"{start}; one rater and one prompt give no interval."
    if apart.low <= 0 <= apart.high:
        return f"{start}; no difference could be shown."
    if each["p_holm"] is None or each["p_holm"] > LEVEL:
        return f"{start}; only hinted at (p {probability(each['p_holm'])} after Holm's correction)."
    return f"{start}: {figure(abs(apart.value))} {'higher' if apart.value > 0 else 'lower'}."


def _notes(raters: int) -> list[str]:
    notes = [
        (
            "A tie counts as half a win. Intervals are 95%, over prompts and raters as crossed random "
            "effects; p-values are corrected by Holm over all tests of these judgements."
        )
    ]
    if raters == 1:
        notes.append("There is one rater: the intervals say nothing of what other people would prefer.")
    return notes
