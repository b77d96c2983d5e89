"""Variety of texts, counted by hand, and the summary of samples."""

import math

import pytest
import torch

from talltree.evals.diversity import distinct_n, diversity, near_duplicates
from talltree.evals.samples import interval, summarise
from talltree.types import Prompt, Rollout, Scored


def test_distinct_n_by_hand():
    texts = ["a b a b", "a b c"]
    assert distinct_n(texts, 1) == 3 / 7  # a b c of 7 words
    assert distinct_n(texts, 2) == 3 / 5  # ab ba ab | ab bc: three different of five
    assert distinct_n(texts, 3) == 3 / 3  # aba bab | abc
    assert distinct_n(texts, 4) == 1.0
    assert distinct_n(texts, 5) == 0.0  # there is none


def test_pairs_do_not_reach_across_texts():
    assert distinct_n(["a b", "c d"], 2) == 1.0
    assert distinct_n(["a", "b"], 2) == 0.0


def test_diversity_by_hand():
    assert diversity(["a b", "a b", "b c"]) == (3 / 6, 2 / 3, 2 / 3)
    assert diversity([]) == (0.0, 0.0, 0.0)
    assert diversity([""]) == (0.0, 0.0, 1.0)


def test_white_space_and_case():
    assert distinct_n(["a  a\na\ta"], 1) == 1 / 4
    assert distinct_n(["Tree tree"], 1) == 1.0
    assert diversity(["a b", "a  b"]).unique == 1.0  # different as texts


def test_near_duplicates_by_hand():
    # Three-word runs: abc bcd cde | abc bcd cdx | p q r: two of three are shared.
    texts = ["a b c d e", "a b c d x", "p q r s t"]
    assert near_duplicates(texts) == 2 / 3
    assert near_duplicates(texts, threshold=0.7) == 0.0
    assert near_duplicates(texts, n=6) == 0.0


def test_near_duplicates_is_about_one_other_text():
    """Runs found in several texts, but never half of them in a single one, make no twin."""
    text = "a b c d e f"  # abc bcd cde def
    assert near_duplicates([text, "a b c x y z", "u v w d e f"]) == 0.0
    # A short text within a long one is a twin of it; the long one is not its.
    assert near_duplicates([text, "a b c"]) == 1 / 2


def test_exact_duplicates_count_even_when_short():
    assert near_duplicates(["a", "a", "b"]) == 2 / 3
    assert near_duplicates(["a", "b"]) == 0.0
    assert near_duplicates([]) == 0.0


def test_interval_by_hand():
    # Mean 2, deviation 1, so a standard error of 1 / sqrt(3); t with 2 degrees of freedom: 4.3027.
    found = interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)
    assert found == {
        "mean": 2.0,
        "low": pytest.approx(2.0 - half, abs=1e-9),
        "high": pytest.approx(2.0 + half, abs=1e-9),
    }
    assert interval([5.0, 5.0]) == {"mean": 5.0, "low": 5.0, "high": 5.0}
    assert interval([5.0]) == {"mean": 5.0, "low": None, "high": None}


def test_summary_by_hand():
    mask_NT = torch.tensor([[True, True, True], [True, False, False]])
    logp_NT = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, 0.0, 0.0]])
    ref_logp_NT = torch.tensor([[-2.0, -2.5, -1.0], [-0.5, 0.0, 0.0]])
    rollout = Rollout(
        [Prompt("p")] * 2, [[1]] * 2, ["a b c", "a b"], mask_NT.long(), mask_NT, logp_NT,
        torch.tensor([False, True]),
    )  # fmt: skip
    scored = Scored(
        rollout, torch.tensor([4.0, 0.0]), torch.tensor([True, False]), {}, ref_logp_NT, torch.zeros(2, 3)
    )
    found = summarise(scored)
    # KL 2 and -0.5 nats a sequence, 1.5 nats on 4 tokens; the second reward was not scored.
    assert found["reward"] == {"mean": 4.0, "low": None, "high": None}
    assert found["kl"]["mean"] == pytest.approx(0.75)
    assert found["kl_per_token"]["mean"] == pytest.approx(0.375)
    assert found["length"]["mean"] == 2.0
    assert found["ended"] == 0.5
    assert (found["distinct_1"], found["distinct_2"], found["unique"]) == (3 / 5, 2 / 3, 1.0)
    assert found["samples"] == 2


def test_the_interval_of_a_ratio_by_hand() -> None:
    from talltree.evals.samples import ratio_interval

    # 6 / 8; residuals (a - 0.75 b) / 4 are +-0.125, their standard error 0.125; t(1 df, 97.5%) = 12.7062.
    found = ratio_interval([2.0, 4.0], [2.0, 6.0])
    assert found["mean"] == 0.75
    assert found["low"] == pytest.approx(0.75 - 12.7062 * 0.125, abs=1e-4)
    assert found["high"] == pytest.approx(0.75 + 12.7062 * 0.125, abs=1e-4)
    assert ratio_interval([3.0], [2.0]) == {"mean": 1.5, "low": None, "high": None}
