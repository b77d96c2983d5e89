"""Differences of two models: hand-worked means and tests, planted effects, corrections, and words."""

import math

import numpy as np
import pytest
from scipy import stats

from talltree.evals import comparison
from talltree.evals.comparison import Difference, corrected, is_hinted, is_shown
from talltree.evals.diversity import distinct_n
from talltree.evals.results import Metric
from talltree.evals.seeds import over_seeds
from talltree.evals.significance import within_prompts
from talltree.evals.verdict import figure, probability, verdict, with_interval


def grouped(values):
    return {f"p{i}": list(row) for i, row in enumerate(values)}


def test_prompts_weigh_alike_however_many_completions_they_have() -> None:
    found = comparison.of_completions(
        "words", "words", {"a": [1.0, 3.0], "b": [10.0]}, {"a": [4.0], "b": [10.0, 12.0, 14.0]}
    )
    # Prompt a: 4 - 2; prompt b: 12 - 10.
    assert found.difference.value == 2.0
    assert (found.left.value, found.right.value, found.clusters) == (6.0, 8.0, 2)


def test_many_prompts_are_paired_and_drawn_anew() -> None:
    rng = np.random.default_rng(0)
    level = rng.normal(0, 10, (40, 1))  # prompts differ far more than the models do
    left, right = level + rng.normal(0, 1, (40, 3)), level + 0.8 + rng.normal(0, 1, (40, 3))
    found = comparison.of_completions("reward", "reward", grouped(left), grouped(right))
    apart = right.mean(1) - left.mean(1)
    assert found.difference.value == pytest.approx(apart.mean())
    low, high = stats.t.interval(0.95, 39, apart.mean(), stats.sem(apart))
    assert found.difference.low == pytest.approx(low, abs=0.06)
    assert found.difference.high == pytest.approx(high, abs=0.06)
    assert found.over == "prompts" and found.p_value < 0.005
    # Each side by itself is far less certain.
    assert found.left.high - found.left.low > 4 * (high - low)


def test_one_prompt_compares_its_completions_and_says_so() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.normal(0, 1, 50), rng.normal(1, 1, 50)
    found = comparison.of_completions("reward", "reward", {"p": left.tolist()}, {"p": right.tolist()})
    test = stats.ttest_ind(right, left)
    assert found.over == "completions of this one prompt"
    low, high = test.confidence_interval()
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), abs=0.06)
    assert found.p_value == pytest.approx(test.pvalue, abs=0.002)


def test_one_completion_of_one_prompt_has_neither_interval_nor_test() -> None:
    found = comparison.of_completions("reward", "reward", {"p": [1.0]}, {"p": [2.0]})
    assert (found.difference.value, found.difference.low, found.p_value) == (1.0, None, None)
    assert not is_shown(corrected([found])[0])


def test_a_prompt_without_values_on_one_side_is_left_out() -> None:
    found = comparison.of_completions("grade", "", {"a": [1.0], "b": [9.0]}, {"a": [2.0], "b": []})
    assert (found.difference.value, found.clusters) == (1.0, 1)
    with pytest.raises(ValueError, match="no prompt"):
        comparison.of_completions("grade", "", {"a": [1.0]}, {"a": []})


def test_intervals_of_fixed_prompts_cover_the_truth() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        left, right = rng.normal(0, 1, (3, 8)).tolist(), rng.normal(0.5, 1, (3, 8)).tolist()
        low, high = within_prompts(left, right, 1000, 0.95)
        covered += low <= 0.5 <= high
    assert 0.91 <= covered / 300 <= 0.985


def test_a_set_measure_is_compared_on_the_same_prompts() -> None:
    def distinct(texts):
        return distinct_n(texts, 1)

    left = {f"p{i}": ["a b", "a c"] for i in range(20)}
    right = {f"p{i}": ["a b", f"a w{i}"] for i in range(20)}
    found = comparison.of_sets("distinct_1", "share", distinct, left, right)
    # 3 of 80 words differ on the left; a, b and w0 to w19 on the right.
    assert found.left.value == 3 / 80
    assert found.right.value == 22 / 80
    assert found.difference.value == pytest.approx(19 / 80)
    same = comparison.of_sets("distinct_1", "share", distinct, left, left)
    assert (same.difference.value, same.p_value) == (0.0, 1.0)
    with pytest.raises(ValueError, match="same prompts"):
        comparison.of_sets("distinct_1", "share", distinct, left, {"p0": ["x", "y"]})


def test_the_jackknifes_test_is_a_t_test_for_a_mean() -> None:
    rng = np.random.default_rng(4)
    numbers = (
        {f"p{i}": [str(rng.normal())] for i in range(15)},
        {f"p{i}": [str(rng.normal(1))] for i in range(15)},
    )

    def mean(texts):
        return sum(map(float, texts)) / len(texts)

    found = comparison.of_sets("mean", "", mean, *numbers)
    pairs = [[float(side[f"p{i}"][0]) for i in range(15)] for side in numbers]
    assert found.p_value == pytest.approx(stats.ttest_rel(*pairs).pvalue)


def test_items_of_one_group_are_mcnemars() -> None:
    left = {"binding": [1.0] * 6 + [0.0] * 5 + [1.0] * 9}
    right = {"binding": [1.0] * 5 + [0.0] + [1.0] * 5 + [1.0] * 9}
    found = comparison.of_items("binding", left, right)
    # 5 gained, 1 lost.
    assert found.difference.value == pytest.approx(4 / 20)
    assert found.p_value == pytest.approx(14 / 64) and found.test == "McNemar"


def test_groups_weigh_alike_however_many_items_they_have() -> None:
    left = {"a": [0.0, 0.0], "b": [1.0] * 10}
    right = {"a": [1.0, 0.0], "b": [1.0] * 5 + [0.0] * 5}
    found = comparison.of_items("overall", left, right)
    # +1/2 in a, -1/2 in b.
    assert found.difference.value == pytest.approx(0.0)
    assert (found.left.value, found.right.value) == (0.5, 0.5)
    with pytest.raises(ValueError, match="same items"):
        comparison.of_items("overall", left, {"a": [1.0], "b": [1.0] * 10})


def test_ratios_pool_their_clusters() -> None:
    found = comparison.of_ratios("bits", "bits / byte", [10.0, 30.0], [12.0, 20.0], [10, 30], "documents")
    assert (found.left.value, found.right.value) == (1.0, 32 / 40)
    assert found.difference.value == pytest.approx(-8 / 40)
    assert found.p_value == 1.0  # +2 and -10: all four sign patterns are at least 8 away


def made(measure, value, low, high, p_value):
    side = Metric(1.0, 0.9, 1.1, 40, "points")
    return Difference(
        measure, side, side, Metric(value, low, high, 80, "points"), p_value, None, 40, "prompts", "t"
    )


def test_holm_runs_over_all_that_have_a_test() -> None:
    found = corrected(
        [made("a", 1, 0.5, 1.5, 0.01), made("b", 1, None, None, None), made("c", 1, 0.1, 2, 0.04)]
    )
    assert [each.p_holm for each in found] == [0.02, None, 0.04]


def test_a_verdict_claims_no_more_than_intervals_and_tests_allow() -> None:
    differences = corrected(
        [
            made("alliteration", 6.2, 5.5, 6.9, 0.0001),
            made("repetition", -0.5, -0.9, -0.1, 0.0002),
            made("grade", 0.3, 0.01, 0.6, 0.04),
            made("words", 1.0, -2.0, 4.0, 0.5),
            made("unique", -0.1, None, None, None),
            made("kl", 0.0, 0.0, 0.0, 1.0),
        ]
    )
    assert [is_shown(each) for each in differences] == [True, True, False, False, False, False]
    assert [is_hinted(each) for each in differences] == [False, False, True, False, False, False]
    said = verdict("before", "after", differences)
    assert said == [
        "alliteration is higher in after than in before: +6.20 (5.50 to 6.90) points, from 1.00 to 1.00.",
        "repetition is lower in after than in before: −0.500 (−0.900 to −0.100) points, from 1.00 to 1.00.",
        "Only hinted at, not holding at 0.05 after Holm's correction: grade +0.300 (0.0100 to 0.600).",
        "No difference could be shown in words (the interval runs from −2.00 to 4.00); there may be one.",
        "Equal in every sample: KL from the reference.",
        "Too few completions for an interval, so nothing is said of unique −0.100.",
    ]


def test_a_verdict_without_a_shown_difference_says_so_first() -> None:
    said = verdict("a", "b", corrected([made("words", 1.0, -2.0, 4.0, 0.5)]))
    assert said[0] == "No difference between b and a is shown."
    with pytest.raises(ValueError, match="nothing to say"):
        verdict("a", "b", [])


def test_many_differences_are_counted() -> None:
    made_ = [made(f"up_{i}", 1.0 + i, 1.0, 9.0, 1e-6) for i in range(4)]
    made_ += [made("down", -2.0, -3.0, -1.0, 1e-6)]
    made_ += [made(f"same_{i}", 0.1, -1.0, 1.0, 0.5) for i in range(25)]
    assert verdict("a", "b", corrected(made_)) == [
        "Of 30, 4 are higher and 1 lower in b than in a; no difference could be shown in the other 25.",
        "Furthest higher: up 3 +4.00 (1.00 to 9.00), up 2 +3.00 (1.00 to 9.00), up 1 +2.00 (1.00 to 9.00).",
        "Furthest lower: down −2.00 (−3.00 to −1.00).",
    ]


def test_null_comparisons_are_rarely_called_different() -> None:
    rng = np.random.default_rng(6)
    false = 0
    for _ in range(50):
        sides = [[grouped(rng.normal(0, 1, (20, 2))) for _ in range(4)] for _ in range(2)]
        found = corrected([comparison.of_completions("m", "", a, b) for a, b in zip(*sides, strict=True)])
        false += any(map(is_shown, found))
    assert false <= 7  # 5% of 50 families of four, and three standard errors


def test_figures_in_words() -> None:
    assert figure(6.2, True) == "+6.20" and figure(-0.04) == "−0.0400" and figure(0.0, True) == "0"
    assert figure(1234.0) == "1,234" and figure(2.1e-6) == "2.1e−6" and figure(None) == "not measured"
    assert figure(math.nan) == "not measured"
    assert with_interval(Metric(-3e-6, -9e-6, 1e-6, 9, "nats / sequence")) == "0.0 (0.0 to 0.0)"
    assert with_interval(Metric(0.5, None, None, 1, "")) == "0.500"
    assert (probability(None), probability(0.0004), probability(0.032)) == ("no test", "< 0.001", "0.032")


# --- training seeds ----------------------------------------------------------------------------------------


def seeds(*values):
    return {f"s{i}": value for i, value in enumerate(values)}


def test_two_settings_of_several_seeds_are_welchs_t() -> None:
    left, right = [1.0, 1.4, 0.9], [2.1, 2.4, 1.7, 2.6]
    found = comparison.of_seeds("reward", "reward", seeds(*left), seeds(*right))
    test = stats.ttest_ind(right, left, equal_var=False)
    assert (found.difference.low, found.difference.high) == pytest.approx(test.confidence_interval())
    assert found.p_value == pytest.approx(test.pvalue)
    assert found.left[:3] == pytest.approx((1.1, *stats.t.interval(0.95, 2, 1.1, stats.sem(left))))
    assert found.seeds.apart.kind == "t" and found.over == "training seeds"
    assert is_shown(corrected([found])[0])


def test_one_model_against_seeds_is_taken_as_it_is() -> None:
    found = comparison.of_seeds("reward", "reward", seeds(1.0), seeds(1.5, 2.5, 2.0))
    test = stats.ttest_1samp([1.5, 2.5, 2.0], 1.0)
    bounds = test.confidence_interval()
    assert found.difference[:3] == pytest.approx((1.0, bounds.low - 1, bounds.high - 1))
    assert found.p_value == pytest.approx(test.pvalue)
    assert (found.left.low, found.left.n) == (None, 1)


@pytest.mark.parametrize(
    ("left", "right"), [((1.0,), (2.0,)), ((1.0,), (2.0, 2.1)), ((1.0, 1.1, 1.2), (2.0, 2.1))]
)
def test_too_few_seeds_have_no_interval_and_no_claim(left, right) -> None:
    found = corrected([comparison.of_seeds("reward", "reward", seeds(*left), seeds(*right))])[0]
    assert (found.difference.low, found.p_value, found.p_holm) == (None, None, None)
    assert not is_shown(found) and not is_hinted(found)
    said = " ".join(verdict("a", "b", [found]))
    assert "No difference between b and a is shown." in said and "Too few seeds for an interval" in said


def test_seeds_that_are_all_equal() -> None:
    same = comparison.of_seeds("ended", "share", seeds(1.0, 1.0, 1.0), seeds(1.0, 1.0, 1.0))
    assert (same.difference[:3], same.p_value) == ((0.0, 0.0, 0.0), 1.0)
    apart = corrected([comparison.of_seeds("ended", "share", seeds(1.0, 1.0, 1.0), seeds(0.0, 0.0, 0.0))])[0]
    assert apart.difference[:3] == (-1.0, -1.0, -1.0) and not is_shown(apart)  # no spread, so no test


def test_what_seeds_do_not_bear_out_is_only_hinted_at() -> None:
    """The items say so, and the three fine-tuning seeds do not agree: 0.1 (-0.2 to 0.4) over seeds."""
    metric = Metric(0.1, 0.05, 0.15, 100, "share")
    spread = over_seeds([0.1, 0.22, -0.02])
    assert spread.low < 0 < spread.high
    found = Difference(
        "accuracy", metric, metric, metric, 0.001, 0.001, 100, "items", "exchanges",
        comparison.Seeds(seeds(0.5, 0.5, 0.5), seeds(0.6, 0.72, 0.48), spread),
    )  # fmt: skip
    assert not is_shown(found) and is_hinted(found)
    assert "Holm's correction or over seeds" in " ".join(verdict("a", "b", [found]))
    steady = found._replace(seeds=found.seeds._replace(apart=over_seeds([0.1, 0.11, 0.09])))
    assert is_shown(steady)


def test_names_for_people() -> None:
    assert comparison.named("judge_nats_per_token") == "judge nats per token"
    assert comparison.named("some/where/my_reward.py:hidden_utility") == "my_reward.py:hidden_utility"
    assert comparison.named("my_reward.py:hidden_utility") == "my_reward.py:hidden_utility"
    assert comparison.named("/a/b/runs/my_rm/final") == "my_rm/final"
    assert comparison.named("a/b.py:f - 0.1*length") == "a/b.py:f - 0.1*length"
