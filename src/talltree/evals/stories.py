"""What a model's stories are like: variety, repetition, length, readability, fluency to a judge, and copying.

Means over stories have intervals by a bootstrap over prompts, measures of the whole set by a jackknife over
prompts. With a single prompt both go over its stories instead, and a note says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from talltree.evals.diversity import distinct_n
from talltree.evals.heldout import windows
from talltree.evals.likelihood import Heard, Passage, token_logprobs, with_start
from talltree.evals.novelty import Copied, copied_from_prompt
from talltree.evals.readability import readability
from talltree.evals.results import Metric, TaskResult
from talltree.evals.statistics import cluster_mean, jackknife, ratio, within_0_and_1
from talltree.evals.variety import near_duplicate_share, repetition, self_bleu
from talltree.models.load import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Row = dict[str, Any]

SETS = {
    "distinct_1": lambda texts: distinct_n(texts, 1),
    "distinct_2": lambda texts: distinct_n(texts, 2),
    "distinct_3": lambda texts: distinct_n(texts, 3),
    "self_bleu": self_bleu,
    "unique": lambda texts: len(set(texts)) / len(texts),
    "near_duplicates": near_duplicate_share,
}
"""Measures of all completions together, each a share from 0 to 1."""

SET_UNITS = {
    "distinct_1": "share of words",
    "distinct_2": "share of word pairs",
    "distinct_3": "share of word triples",
    "self_bleu": "BLEU, 0 to 1",
    "unique": "share of stories",
    "near_duplicates": "share of stories",
}


def describe(
    rows: Sequence[Row], copied: Sequence[Copied] | None, ngram: int, prompt_ngram: int
) -> list[Row]:
    """The rows (prompt, completion, seed, tokens, ended) with what is measured of each story by itself.

    A value is None where a completion is too short to have one. ngram is for `copied`, what each copies from
    the training text; prompt_ngram for what it copies from its prompt.
    """
    found = []
    for at, row in enumerate(rows):
        # A completion begins within a sentence, so readability is that of the whole text.
        ease = readability(row["prompt"] + row["completion"])
        measured: Row = {
            "words": len(row["completion"].split()),
            "repetition": repetition(row["completion"]),
            "grade": None if ease is None else ease.grade,
            "reading_ease": None if ease is None else ease.ease,
            "copied_from_prompt": copied_from_prompt(row["prompt"], row["completion"], prompt_ngram),
        }
        if copied is not None:
            measured |= {"longest_copied": copied[at].longest, "copied_from_corpus": copied[at].share(ngram)}
        found.append(row | measured)
    return found


def judged(
    judge: PreTrainedModel, tokenizer: Any, rows: Sequence[Row], heard: Heard | None = None
) -> Iterator[Row]:
    """The rows with judge_nats, judge_tokens and judge_bytes of each completion after its prompt.

    A token that straddles the border belongs to the completion. What is longer than the judge's context is
    read in windows that go on half of it at a time.
    """
    context = context_length(judge)
    vocabulary = judge.config.vocab_size
    whole = with_start(tokenizer, [row["prompt"] + row["completion"] for row in rows], vocabulary)
    alone = with_start(tokenizer, [row["prompt"] for row in rows], vocabulary)
    cut: list[list[Passage]] = []
    for text, prompt in zip(whole, alone, strict=True):
        ids, read = [*text.before, *text.scored], [*prompt.before, *prompt.scored]
        border = max(_common(ids, read), 1)
        cut.append(
            [
                Passage(ids[each.begin : max(each.first, border)], ids[max(each.first, border) : each.end])
                for each in windows(len(ids), context, max(context // 2, 1))
                if each.end > border
            ]
        )
    found = token_logprobs(judge, [passage for places in cut for passage in places], heard)
    for row, places in zip(rows, cut, strict=True):
        logp = [value for _ in places for value in next(found)]
        yield row | {
            "judge_nats": -math.fsum(logp),
            "judge_tokens": len(logp),
            "judge_bytes": len(row["completion"].encode()),
            "judge_windows": len(places),
        }


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens at the start that are the same in both."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


MEANS = {
    "words": "words",
    "tokens": "tokens",
    "ended": "share of stories",
    "repetition": "share of 4-grams",
    "grade": "US school grade",
    "reading_ease": "Flesch's points",
    "copied_from_prompt": "share of n-grams",
    "longest_copied": "words",
    "copied_from_corpus": "share of n-grams",
}
"""What is a mean over stories, with its unit."""


def summarise(rows: Sequence[Row]) -> TaskResult:
    """Every measure over the rows of `describe` and perhaps `judged`, with its interval.

    Raises ValueError for no rows.
    """
    if not rows:
        raise ValueError("there are no stories to measure")
    clusters = by_prompt(rows)
    has_prompts = len(clusters) > 1
    if not has_prompts:
        clusters = [[row] for row in clusters[0]]
    texts = [[row["completion"] for row in cluster] for cluster in clusters]
    metrics = {
        name: within_0_and_1(jackknife(measure, texts, SET_UNITS[name])) for name, measure in SETS.items()
    }
    notes = _notes(rows, has_prompts)
    for name, unit in MEANS.items():
        if name not in rows[0]:
            continue
        values = [[float(row[name]) for row in cluster if row[name] is not None] for cluster in clusters]
        values = [each for each in values if each]
        if values:
            metrics[name] = cluster_mean(values, unit)
        short = len(rows) - sum(map(len, values))
        if short:
            notes.append(f"{name}: {short:,} of {len(rows):,} completions are too short for it and left out.")
    if "judge_nats" in rows[0]:
        metrics |= _judge(clusters, len(rows))
    return TaskResult(metrics, list(rows), tuple(notes))


def by_prompt(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each prompt, in the order in which the prompts first come."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["prompt"], []).append(row)
    return list(found.values())


def _judge(clusters: Sequence[Sequence[Row]], n: int) -> dict[str, Metric]:
    sums = [[sum(row[key] for row in cluster) for cluster in clusters] for key in _JUDGED]
    nats, tokens, size = ([each for each, count in zip(part, sums[1], strict=True) if count] for part in sums)
    if not tokens:
        return {}
    loss = ratio(nats, tokens, "nats / token of the judge", n)
    low, high = loss.low, loss.high
    perplexity = Metric(
        math.exp(loss.value),
        None if low is None else math.exp(low),
        None if high is None else math.exp(high),
        n,
        "perplexity",
    )
    found = {"judge/nats_per_token": loss, "judge/perplexity": perplexity}
    if all(size):
        found["judge/bits_per_byte"] = ratio([each / math.log(2) for each in nats], size, "bits / byte", n)
    return found


_JUDGED = ("judge_nats", "judge_tokens", "judge_bytes")


def _notes(rows: Sequence[Mapping[str, Any]], has_prompts: bool) -> list[str]:
    seeds = {row["seed"] for row in rows}
    notes = []
    if not has_prompts:
        notes.append(
            "There is one prompt: intervals are over its stories and say nothing about other prompts."
        )
    if len(seeds) == 1:
        notes.append("One seed was drawn: the intervals leave out what another seed would change.")
    return notes
