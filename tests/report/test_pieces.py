"""The figures, sentences and choices of a report, against values worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from talltree.report import words
from talltree.report.charts import smoothing
from talltree.report.draw import bins, moving_mean
from talltree.report.facts import Facts, kl_coefficient, value
from talltree.report.gallery import choose_pairs, columns, script_json, thin
from talltree.report.html import sha256_source, text


def facts(
    config: dict[str, Any] | None = None,
    rows: list[dict[str, Any]] | None = None,
    summary: dict[str, Any] | None = None,
) -> Facts:
    return Facts(Path("runs/a"), config or {}, "", {}, rows or [], pa.table({"step": []}), summary)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (12.5, "12.5"), (12, "12"), (1234567, "1.2e6"), (1234.5, "1,234"), (0.12345, "0.123"), (0.0, "0"),
        (-3.14159, "−3.14"), (2.1e-6, "2.1e−6"), (99.96, "100.0"), (None, "not measured"),
        (float("nan"), "not measured"), (float("inf"), "not measured"),
    ],
)  # fmt: skip
def test_number(given: Any, shown: str) -> None:
    assert words.number(given) == shown


def test_kl_below_the_contracts_rounding_is_zero() -> None:
    assert [words.nats(x) for x in (-1.4e-6, 0.0, 9e-5, 2e-4, -3.14159)] == [
        "0.0", "0.0", "0.0", "2.0e−4", "−3.14",
    ]  # fmt: skip
    assert words.nats(None) == "not measured"
    noise = {"mean": -1.4e-6, "low": -3e-6, "high": 2e-7}
    assert words.interval(noise, words.figure("nats / token")) == "0.0 (0.0 to 0.0)"
    assert words.interval(noise, words.figure("tokens")) == "−1.4e−6 (−3.0e−6 to 2.0e−7)"


def test_share_and_duration() -> None:
    assert [words.share(x) for x in (1, 0.984, 0.5, 0.0, None)] == [
        "100%",
        "98.4%",
        "50%",
        "0%",
        "not measured",
    ]
    shown = [words.duration(x) for x in (4.25, 59.4, 60, 250, 7500, None)]
    assert shown == ["4.25 s", "59.4 s", "1 min 0 s", "4 min 10 s", "2 h 5 min", "not measured"]


def test_interval_without_bounds_is_the_mean() -> None:
    assert words.interval({"mean": 4.5, "low": None, "high": None}) == "4.50"
    assert words.interval({"mean": 4.5, "low": 4.0, "high": 5.0}) == "4.50 (4.00 to 5.00)"
    assert words.interval(None) == words.interval({"mean": None}) == "not measured"


def test_value_of_a_dotted_key() -> None:
    assert value({"kl": {"coef": 0.1}}, "kl.coef") == 0.1
    assert value({"kl.coef": 0.2}, "kl.coef") == 0.2
    assert value({"kl": 3}, "kl.coef") is None and value({}, "kl") is None


def test_kl_coefficient_in_order_of_authority() -> None:
    # beta 99 is one reward per nat.
    assert kl_coefficient(facts({"beta": 99.0})) == 1.0
    assert kl_coefficient(facts({"beta": 99.0}, summary={"kl_coef": 0.5})) == 0.5
    assert kl_coefficient(facts({"kl": {"coef": 0.2}}, [{"step": 1, "kl/coef": 0.25}])) == 0.25
    assert kl_coefficient(facts()) is None


def test_adapted_coefficient_is_stated_at_both_ends_in_both_units() -> None:
    rows = [{"step": 1, "kl/coef": 0.1}, {"step": 2, "kl/coef": 0.2}]
    shown = dict(words.setting(facts({"kl": {"target": 6.0}}, rows)))["KL coefficient"]
    assert shown == (
        "0.1 per nat of sequence KL (the blog’s beta 9.9), adapted to 0.2 (beta 19.8), target 6 nats"
    )


def reward(before: tuple[float, float, float], after: tuple[float, float, float]) -> dict[str, Any]:
    sides = {"before": before, "after": after}
    return {"stop_reason": "steps"} | {
        side: {"reward": dict(zip(("mean", "low", "high"), bounds, strict=True))}
        for side, bounds in sides.items()
    }


def test_verdict_for_a_fall_an_overlap_and_no_change() -> None:
    fell = words.verdict(facts(summary=reward((5.0, 4.0, 6.0), (2.0, 1.0, 3.0))))
    assert fell[:2] == [
        "Reward fell from 5.00 to 2.00.",
        "95% intervals: 4.00 to 6.00 before, 1.00 to 3.00 after.",
    ]
    chance = words.verdict(facts(summary=reward((5.0, 4.0, 6.0), (5.5, 5.0, 6.0))))
    assert chance[0] == "Reward rose from 5.00 to 5.50, 1.1 times the base."
    assert chance[1].endswith("they overlap, so this may be chance.")
    near_zero = words.verdict(facts(summary=reward((0.2, 0.05, 0.35), (0.6, 0.5, 0.7))))
    assert near_zero[0] == "Reward rose from 0.200 to 0.600."
    same = words.verdict(facts(summary=reward((5.0, 4.0, 6.0), (5.0, 4.0, 6.0))))
    assert same[0] == "Reward stayed at 5.00."
    negative = words.verdict(facts(summary=reward((-2.0, -3.0, -1.0), (2.0, 1.0, 3.0))))
    assert negative[0] == "Reward rose from −2.00 to 2.00."


def test_unfinished_verdict_compares_the_first_and_last_tenth() -> None:
    rows = [{"step": step, "reward/mean": float(step)} for step in range(1, 21)]
    shown = words.verdict(facts(rows=rows))
    assert (
        shown[-1] == "In 20 steps the mean training reward went from 1.50 to 19.5 (first and last 2 steps)."
    )


def test_moving_mean_shrinks_evenly_at_the_ends() -> None:
    assert moving_mean([1, 2, 6, 4, 0], 3) == pytest.approx([1, 3, 4, 10 / 3, 0])
    assert moving_mean([1, 2, 6, 4, 0], 5) == pytest.approx([1, 3, 13 / 5, 10 / 3, 0])
    assert moving_mean([3.0], 5) == [3.0]
    assert [smoothing(n) for n in (1, 39, 40, 300)] == [1, 1, 3, 15]


def test_bins_of_whole_numbers_centre_on_them() -> None:
    assert bins(np.array([0.0, 1.0, 3.0])).tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]
    assert bins(np.array([2.0, 2.0])).tolist() == [1.5, 2.5]
    wide = bins(np.array([0.0, 99.0]))
    assert wide[1] - wide[0] == 3 and wide[0] < 0 and wide[-1] > 99
    assert len(bins(np.array([0.25, 1.0]))) == 31


def test_pairs_stand_at_the_same_quantile_of_their_steps() -> None:
    steps = [1] * 5 + [2] * 5 + [3] * 5
    rewards = [5.0, 1.0, 4.0, 2.0, 3.0] + [None] * 4 + [7.0] + [10.0, 50.0, 20.0, 40.0, 30.0]
    median, good, weak = choose_pairs(steps, rewards, None)
    # round(0.5 * 4) = 2, round(0.9 * 4) = 4 and round(0.1 * 4) = 0 of the ranked five.
    assert (median.before, median.after) == (4, 14)
    assert (good.before, good.after) == (0, 11)
    assert (weak.before, weak.after) == (1, 10)
    # The best step 2 has one story with a reward, so it is shown once.
    assert [(pair.before, pair.after) for pair in choose_pairs(steps, rewards, 2)] == [(4, 9)]
    # A best step that is the first, or has no samples, leaves the last one.
    assert choose_pairs(steps, rewards, 1) == choose_pairs(steps, rewards, 99) == [median, good, weak]
    assert choose_pairs([1, 1], [1.0, 2.0], 1) == []
    assert choose_pairs([1, 2], [None, None], None) == []


def test_columns_that_are_not_there_are_empty_and_no_number_is_lost() -> None:
    table = pa.table({"step": [1, 2], "reward": [0.1 + 0.2, float("nan")], "kl": [2.0, float("inf")]})
    found = columns(table)
    assert found["reward"] == [0.30000000000000004, None] and found["kl"] == [2, None]
    assert found["completion"] == found["length"] == found["ended"] == [None, None]
    assert found["spans"] == [[], []]


def test_thin_keeps_the_first_and_the_last_row() -> None:
    table = pa.table({"step": list(range(10))})
    assert thin(table, 4)["step"].to_pylist() == [0, 3, 6, 9]
    assert thin(table, 1)["step"].to_pylist() == [0]
    assert thin(table, 10) is table and thin(table, None) is table


def test_script_json_reads_back_and_holds_nothing_that_html_reads() -> None:
    content = {"a": "</script><!-- <script> ]]> & \u2028\u2029 \x00\x7f 🐢 \\u003c"}
    written = script_json(content)
    assert json.loads(written) == content
    assert not set("<>&\u2028\u2029\x00\x7f") & set(written)


def test_text_escapes_quotes_and_replaces_what_html_forbids() -> None:
    assert (
        text("<a b='c' d=\"e\">&\x00\x1b\ud800")
        == "&lt;a b=&#x27;c&#x27; d=&quot;e&quot;&gt;&amp;\ufffd\ufffd\ufffd"
    )
    assert text("two\nlines\tkept") == "two\nlines\tkept"


def test_hash_source_is_the_known_one_of_the_standard() -> None:
    # The example of Content Security Policy Level 3, section 2.3.1: alert('Hello, world.');
    assert sha256_source("alert('Hello, world.');") == "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='"
