"""The held-out figures by hand."""

import itertools
import math

import pytest

from talltree.stages.reward.accuracy import (
    Pair,
    accuracy,
    agreement,
    by_annotator,
    by_difference,
    by_margin,
    calibration,
    cluster_share,
    length,
)


def pair(difference, cluster=0, annotator="a", margin=None, tokens=0, texts=(0, 1)):
    return Pair(difference, (cluster,), annotator, margin, tokens, texts)


def test_accuracy_counts_a_draw_half_and_draws_whole_clusters():
    found = accuracy([pair(1.0, 0), pair(-1.0, 0), pair(0.0, 1), pair(2.0, 1)])
    assert (found["mean"], found["n"], found["clusters"]) == (2.5 / 4, 4, 2)
    # Clusters of 1/2 and 3/4 of two pairs each: what is drawn is 1/2, 5/8 or 3/4.
    assert (found["low"], found["high"]) == (0.5, 0.75)
    one = accuracy([pair(1.0), pair(1.0)])
    assert (one["mean"], one["low"], one["high"]) == (1.0, None, None)
    assert cluster_share([], [])["mean"] is None


def test_the_interval_widens_with_what_hangs_together():
    values = [1.0, 0.0] * 100
    alone = cluster_share(values, [(n,) for n in range(200)])
    # Independent: 1.96 * sqrt(1/4 / 200) = 0.069 to either side; the bootstrap has noise of its own.
    assert alone["high"] - alone["low"] == pytest.approx(2 * 0.0693, rel=0.1)
    # Twenty clusters of ten equal values: the deviation is sqrt(10) times as large.
    blocks = cluster_share([float(n // 10 % 2) for n in range(200)], [(n // 10,) for n in range(200)])
    assert blocks["high"] - blocks["low"] == pytest.approx(2 * 0.219, rel=0.15)


def test_pairs_that_share_items_are_no_more_than_the_items_say():
    """Every pair of 40 items, and its value is the mean of a coin for each item: 780 pairs, 40 coins."""
    coin = [float(n % 2) for n in range(40)]
    pairs = list(itertools.combinations(range(40), 2))
    found = cluster_share([(coin[i] + coin[j]) / 2 for i, j in pairs], pairs)
    assert found["mean"] == pytest.approx(0.5) and (found["n"], found["clusters"]) == (780, 40)
    # The mean over the pairs is the mean of the coins: 1.96 * 0.5 / sqrt(40) to either side. Drawing pairs
    # one by one would give 1.96 * sqrt(1/8 / 780), a sixth of it.
    assert found["high"] - found["low"] == pytest.approx(2 * 0.155, rel=0.15)


def test_the_draws_of_items_by_enumeration():
    """Five items drawn from five, 3,125 ways; a pair counts the product of how often its items were drawn."""
    value = {(0, 1): 1.0, (1, 2): 1.0, (2, 3): 0.0, (3, 4): 1.0, (0, 4): 0.0}
    shares = []
    for draw in itertools.product(range(5), repeat=5):
        weight = {(i, j): draw.count(i) * draw.count(j) for i, j in value}
        if any(weight.values()):
            shares.append(sum(weight[p] * value[p] for p in value) / sum(weight.values()))
    found = cluster_share(list(value.values()), list(value))
    assert found["mean"] == 0.6
    for edge, beyond in ((found["low"], 0.025), (found["high"], 0.975)):
        # The edge lies between the exact shares below it and up to it, but for the noise of the draws.
        below = sum(share < edge - 1e-9 for share in shares) / len(shares)
        up_to = sum(share <= edge + 1e-9 for share in shares) / len(shares)
        assert below - 0.012 <= beyond <= up_to + 0.012
    # Two pairs that share an item say nothing of how other items would do.
    assert cluster_share([1.0, 0.0], [(0, 1), (1, 2)])["low"] is None


def test_bins_of_margin_and_difference():
    pairs = [pair(1.0, n, margin=m) for n, m in enumerate([1, 1, 2, 2])] + [
        pair(-1.0, 9, margin=1),
        pair(3.0),
    ]
    rows = by_margin(pairs)
    assert [(r["from"], r["to"], r["n"]) for r in rows] == [(1, 1, 3), (2, 2, 2)]
    assert [r["mean"] for r in rows] == [pytest.approx(2 / 3), 1.0]
    assert by_margin([pair(1.0, margin=2), pair(1.0)]) == []
    quarters = by_difference([pair((n + 1) * (1 if n >= 10 else -1), n) for n in range(40)])
    assert [r["n"] for r in quarters] == [10, 10, 10, 10]
    assert [r["mean"] for r in quarters] == [0.0, 1.0, 1.0, 1.0]
    assert by_difference([pair(0.0)] * 5)[0]["mean"] == 0.5


def test_calibration_by_hand():
    # p = 3/4 three times, of which two are right, and 23/25 once, right.
    sure = math.log(11.5) / math.log(3)
    found = calibration([pair(1.0), pair(1.0), pair(-1.0), pair(sure)], math.log(3))
    assert [(r["from"], r["to"], r["pairs"]) for r in found["bins"]] == [(0.75, 0.8, 3), (0.9, 0.95, 1)]
    assert [r["confidence"] for r in found["bins"]] == [pytest.approx(0.75), pytest.approx(0.92)]
    assert found["ece"] == pytest.approx(3 / 4 * (0.75 - 2 / 3) + 1 / 4 * 0.08)
    nats = 2 * math.log(4 / 3) + math.log(4) + math.log(25 / 23)
    assert found["nats"] == pytest.approx(nats / 4)
    assert calibration([pair(0.0)], 1.0)["nats"] == pytest.approx(math.log(2))
    assert calibration([pair(-900.0)], 1.0)["nats"] == pytest.approx(900.0)


def test_length_by_hand():
    pairs = [pair(1.0, tokens=3), pair(-1.0, tokens=2), pair(1.0, tokens=-1), pair(1.0, tokens=0)]
    found = length([1.0, 2.0, 3.0], [5, 9, 7], pairs, 0.6)
    # Ranks 1 2 3 against 1 3 2: 1 - 6 * 2 / (3 * 8).
    assert found["spearman"] == pytest.approx(0.5)
    assert (found["baseline"], found["baseline_accuracy"]) == ("longer", 2.5 / 4)
    assert found["winner_is_longer"] == 2.5 / 4
    # The model prefers the longer text in the first pair only; once it is no longer, a draw.
    assert found["model_prefers_longer"] == 1.5 / 4
    assert length([1.0, 2.0], [5, 9], pairs, 0.4)["baseline_accuracy"] == 1.5 / 4
    assert length([1.0, 2.0], [5, 5], pairs, 0.4)["spearman"] is None


def test_agreement_is_between_different_annotators_of_the_same_texts():
    pairs = [
        pair(1.0, annotator="a", texts=(0, 1)), pair(1.0, annotator="b", texts=(0, 1)),
        pair(-1.0, annotator="c", texts=(1, 0)), pair(1.0, annotator="a", texts=(2, 3)),
        pair(1.0, annotator="a", texts=(2, 3)),
    ]  # fmt: skip
    # a-b agree, a-c and b-c do not; a's own repeat is no encounter.
    assert agreement(pairs) == {"mean": pytest.approx(1 / 3), "encounters": 3, "pairs_judged_again": 1}
    rows = {row["annotator"]: row for row in by_annotator(pairs)}
    assert list(rows) == ["a", "b", "c"]
    assert (rows["a"]["pairs"], rows["a"]["accuracy"], rows["a"]["agreement"]) == (3, 1.0, 0.5)
    assert (rows["c"]["accuracy"], rows["c"]["agreement"], rows["c"]["encounters"]) == (0.0, 0.0, 2)
    assert by_annotator(pairs[:1]) == []
    assert agreement(pairs[3:])["mean"] is None
