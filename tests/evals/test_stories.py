"""Story measures by hand, and the judge against plain forward passes."""

import math

import pytest

from talltree.evals.novelty import Copied
from talltree.evals.stories import describe, judged, summarise

from ..tiny import STOP, llama, tokenizer
from .test_heldout import nats


def story(prompt, completion, seed=0, tokens=2, ended=True):
    return {"prompt": prompt, "completion": completion, "seed": seed, "tokens": tokens, "ended": ended}


def test_each_story_by_hand():
    rows = [story("The cat", " sat on the cat sat on the"), story("A", "")]
    found = describe(rows, [Copied([0, 1, 2, 3, 1, 2, 3]), Copied([])], 3, 2)
    assert found[0]["words"] == 7
    assert found[0]["repetition"] == 0.0  # sat on the cat, on the cat sat, the cat sat on, cat sat on the
    assert found[0]["copied_from_prompt"] == 1 / 6  # "the cat" of six pairs
    assert found[0]["longest_copied"] == 3
    assert found[0]["copied_from_corpus"] == 2 / 5
    # Nine words, one sentence, nine syllables.
    assert found[0]["grade"] == pytest.approx(0.39 * 9 + 11.8 - 15.59)
    empty = ("repetition", "copied_from_prompt", "copied_from_corpus")
    assert [found[1][name] for name in empty] == [None, None, None]
    assert found[1]["grade"] == pytest.approx(0.39 + 11.8 - 15.59)  # of the prompt's one word


def test_the_summary_by_hand():
    rows = [
        story("p", " a b c d", 0, 5), story("p", " a b c d", 1, 5),
        story("q", " e f g h", 0, 7), story("q", " i j", 1, 3, ended=False),
    ]  # fmt: skip
    found = summarise(describe(rows, None, 8, 4))
    values = {name: metric.value for name, metric in found.metrics.items()}
    assert values["unique"] == 3 / 4
    assert values["distinct_1"] == 10 / 14
    assert values["near_duplicates"] == 2 / 4
    assert values["words"] == 14 / 4
    assert values["tokens"] == 5.0
    assert values["ended"] == 3 / 4
    # Prompts are what is drawn anew: means of 4 and 3 words give 3, 3.5 or 4.
    assert (found.metrics["words"].low, found.metrics["words"].high) == (3.0, 4.0)
    assert found.metrics["words"].n == 4
    assert values["repetition"] == 0.0
    assert found.metrics["repetition"].n == 3
    assert "repetition: 1 of 4 completions are too short for it and left out." in found.notes
    assert "longest_copied" not in values
    assert "judge/perplexity" not in values


def test_one_prompt_or_one_seed_is_said():
    many = [story("p", f" a b {at}", seed) for at in range(3) for seed in (0, 1)]
    assert any(note.startswith("There is one prompt") for note in summarise(describe(many, None, 8, 4)).notes)
    assert summarise(describe(many, None, 8, 4)).metrics["words"].low == 3.0  # over its six stories
    one_seed = [story("p", " a"), story("q", " b")]
    assert any(note.startswith("One seed") for note in summarise(describe(one_seed, None, 8, 4)).notes)
    alone = summarise(describe(many[:1], None, 8, 4)).metrics
    assert (alone["words"].low, alone["unique"].low) == (None, None)
    with pytest.raises(ValueError, match="no stories"):
        summarise([])


def test_the_judge_reads_the_completion_after_its_prompt():
    judge, words = llama(), tokenizer()
    long = " ".join(["w3"] * 80)
    rows = [story("w1 w2", " w3 w4"), story("w1", " w1"), story("w5", ""), story("w1 w2", f" {long}")]
    found = list(judged(judge, words, rows))
    assert found[0]["judge_nats"] == pytest.approx(nats(judge, [STOP, 1, 2, 3, 4], 3), abs=1e-5)
    assert found[1]["judge_nats"] == pytest.approx(nats(judge, [STOP, 1, 1], 2), abs=1e-5)
    assert [row["judge_tokens"] for row in found] == [2, 1, 0, 80]
    assert [row["judge_bytes"] for row in found[:3]] == [6, 3, 0]
    ids = [STOP, 1, 2, *[3] * 80]  # 83 tokens, context 64: 0-64, then 19-83 of which 64-83 count
    whole = nats(judge, ids[:64], 3) + nats(judge, ids[19:], 45)
    assert found[3]["judge_nats"] == pytest.approx(whole, abs=1e-4)
    assert found[3]["judge_windows"] == 2


def test_a_token_across_the_border_belongs_to_the_completion():
    # Without white space between them, "w1" and "2" become w12.
    judge, words = llama(), tokenizer()
    (row,) = judged(judge, words, [story("w3 w1", "2 w4")])
    assert row["judge_tokens"] == 2
    assert row["judge_nats"] == pytest.approx(nats(judge, [STOP, 3, 12, 4], 2), abs=1e-5)


def test_perplexity_by_hand():
    row = {"repetition": None, "words": 1, "grade": 0.0, "reading_ease": 0.0, "copied_from_prompt": None}
    part = {"judge_tokens": 2, "judge_bytes": 4, "judge_windows": 1}
    rows = [
        story("p", " a") | row | part | {"judge_nats": 2.0},
        story("q", " b") | row | part | {"judge_nats": 4.0},
    ]
    found = summarise(rows).metrics
    assert found["judge/nats_per_token"].value == 1.5
    assert found["judge/perplexity"].value == pytest.approx(math.exp(1.5))
    assert found["judge/perplexity"].high == pytest.approx(math.exp(found["judge/nats_per_token"].high))
    assert found["judge/bits_per_byte"].value == pytest.approx(6 / math.log(2) / 8)
