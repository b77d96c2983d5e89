"""Win rates and ratings: hand-worked studies, and simulated ones whose truth the intervals must cover."""

import math

import numpy as np
import pytest
from scipy import stats

from talltree.evals.people import Choice, Rating, crossed_spread, mean_rating, rating_difference, win_rate
from talltree.evals.statistics import wilson


def test_a_small_study_by_hand() -> None:
    choices = [
        Choice("p1", "ann", 1.0), Choice("p1", "bob", 0.5),
        Choice("p2", "ann", 0.0), Choice("p2", "bob", 1.0),
    ]  # fmt: skip
    found = win_rate(choices)
    assert found.rate.value == 2.5 / 4
    assert (found.wins, found.losses, found.ties, found.prompts) == (2, 1, 1, 2)
    assert found.raters == {"ann": (0.5, 2), "bob": (0.75, 2)}
    assert found.rater_spread == pytest.approx(0.25 / math.sqrt(2))


def test_the_spread_by_hand() -> None:
    # Influences .3, -.1 | -.1, -.1: prompts sum to .2 and -.2, raters to .2 and -.2, cells stand alone.
    found = crossed_spread([0.3, -0.1, -0.1, -0.1], ["p", "p", "q", "q"], ["a", "b", "a", "b"])
    by_prompt, by_rater = 2 * (0.04 + 0.04), 2 * (0.04 + 0.04)
    by_cell = 4 / 3 * (0.09 + 0.01 + 0.01 + 0.01)
    # Neither prompts nor raters add anything to the cells' own 0.16.
    assert by_prompt == pytest.approx(by_cell)
    assert found.error == pytest.approx(math.sqrt(0.16))
    assert found.freedom == pytest.approx(0.16**2 / (by_prompt**2 + by_rater**2))


def test_one_rater_is_the_ordinary_t_interval_over_prompts() -> None:
    values = [1.0, 0.0, 1.0, 0.5, 1.0, 1.0]
    found = win_rate([Choice(f"p{i}", "ann", value) for i, value in enumerate(values)])
    low, high = stats.t.interval(0.95, 5, np.mean(values), stats.sem(values))
    assert (found.rate.low, found.rate.high) == pytest.approx((low, min(high, 1.0)))
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0.5).pvalue)
    assert found.rater_spread is None


def test_one_prompt_is_the_ordinary_t_interval_over_raters() -> None:
    values = [3.0, 4.0, 5.0, 3.0]
    found = mean_rating([Rating("p", f"r{i}", value) for i, value in enumerate(values)])
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 3, 3.75, stats.sem(values)))


def test_one_answer_has_no_interval() -> None:
    found = win_rate([Choice("p", "ann", 1.0)])
    assert (found.rate.value, found.rate.low, found.p_value) == (1.0, None, None)
    assert mean_rating([Rating("p", "ann", 4.0)]).low is None
    with pytest.raises(ValueError, match="at least one"):
        win_rate([])


def test_a_unanimous_study_is_not_certain() -> None:
    choices = [Choice(f"p{i}", rater, 1.0) for i in range(10) for rater in ("ann", "bob")]
    found = win_rate(choices)
    # Every prompt counts once: ten of ten by Wilson, and 2 / 2^10 against a coin.
    assert (found.rate.low, found.rate.high) == pytest.approx(wilson(10, 10))
    assert found.p_value == pytest.approx(2 / 1024)


def test_paired_ratings_equal_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.integers(1, 6, 12).astype(float), rng.integers(1, 6, 12).astype(float)
    found, p_value = rating_difference(
        [Rating(f"p{i}", "ann", value) for i, value in enumerate(left)],
        [Rating(f"p{i}", "ann", value) for i, value in enumerate(right)],
    )
    test = stats.ttest_rel(right, left)
    assert found.value == pytest.approx(np.mean(right - left))
    assert p_value == pytest.approx(test.pvalue)
    low, high = test.confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high))


def simulate(rng, prompts, raters, each, by_prompt, by_rater, value):
    """One study: `each` of the raters judge every prompt; value(effect of prompt + rater, rng) -> answers."""
    of_prompt, of_rater = rng.normal(0, by_prompt, prompts), rng.normal(0, by_rater, raters)
    prompt = np.repeat(np.arange(prompts), each)
    rater = np.argsort(rng.random((prompts, raters)), 1)[:, :each].ravel()
    return prompt.astype(str), rater.astype(str), value(of_prompt[prompt] + of_rater[rater], rng)


@pytest.mark.parametrize(
    ("prompts", "raters", "each", "by_prompt", "by_rater"),
    [(40, 5, 3, 0.8, 0.4), (60, 3, 3, 0.5, 0.5), (30, 10, 4, 1.0, 0.3), (100, 7, 2, 0.8, 0.3)],
)
def test_win_rate_intervals_cover_the_truth(prompts, raters, each, by_prompt, by_rater) -> None:
    rng = np.random.default_rng(1)
    truth = np.mean(1 / (1 + np.exp(-(0.4 + rng.normal(0, math.hypot(by_prompt, by_rater), 400_000)))))

    def votes(effect, rng):
        return (rng.random(len(effect)) < 1 / (1 + np.exp(-(0.4 + effect)))).astype(float)

    covered = 0
    for _ in range(300):
        answers = simulate(rng, prompts, raters, each, by_prompt, by_rater, votes)
        found = win_rate([Choice(str(p), str(r), float(v)) for p, r, v in zip(*answers, strict=True)])
        covered += found.rate.low <= truth <= found.rate.high
    assert 0.92 <= covered / 300 <= 0.985


def test_rating_differences_cover_the_truth() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        # Raters differ in how much they like the right source, prompts too; 0.5 points on average.
        prompt, rater, apart = simulate(rng, 40, 6, 3, 0.5, 0.3, lambda effect, rng: 0.5 + effect)
        level = rng.normal(3, 1, 40)[prompt.astype(int)]
        left, right = level + rng.normal(0, 0.7, len(level)), level + apart + rng.normal(0, 0.7, len(level))
        found, _ = rating_difference(
            [Rating(*row) for row in zip(prompt, rater, left, strict=True)],
            [Rating(*row) for row in zip(prompt, rater, right, strict=True)],
        )
        covered += found.low <= 0.5 <= found.high
    assert 0.92 <= covered / 300 <= 0.985


def test_a_bootstrap_over_prompts_alone_would_not_cover() -> None:
    """Why raters are drawn, too: leaving them out covers far less than 95% where raters differ."""
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        answers = simulate(
            rng, 60, 3, 3, 0.5, 0.8, lambda effect, rng: effect + rng.normal(0, 0.5, len(effect))
        )
        values = answers[2]
        spread = crossed_spread(
            (values - values.mean()) / len(values), list(answers[0]), ["one"] * len(values)
        )
        half = stats.t.ppf(0.975, spread.freedom) * spread.error
        covered += abs(values.mean()) <= half
    assert covered / 200 < 0.8
