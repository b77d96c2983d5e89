"""Automatic stops and the choice of the best checkpoint, on rows written by hand."""

import pytest

from talltree.stops import is_candidate, stop_reason, window_reward


def row(step, kl=1.0, unique=1.0, distinct_2=0.8, mean=3.0, std=1.0, twins=0.1):
    return {
        "step": step,
        "kl/sequence": kl,
        "diversity/unique": unique,
        "diversity/near_duplicates": twins,
        "diversity/distinct_2": distinct_2,
        "reward/mean": mean,
        "reward/std": std,
    }


def rows(count, **last):
    """Steps 1 to count; the keywords give the values of the last ones, from the back."""
    length = max([0, *map(len, last.values())])
    ends = [{key: values[index] for key, values in last.items()} for index in range(length)]
    return [row(step, **end) for step, end in enumerate([{}] * (count - length) + ends, 1)]


def reason(given, **options):
    bounds = {
        "kl_ceiling": 50.0,
        "min_unique": 0.5,
        "max_near_duplicates": 0.9,
        "min_distinct_2": 0.25,
        "constant_steps": 3,
        "patience": 2,
    }
    return stop_reason(given, **(bounds | options))


def test_a_healthy_run_goes_on():
    assert reason(rows(1)) is None
    assert reason(rows(30)) is None


def test_kl_ceiling():
    assert reason(rows(1, kl=[50.0])) is None
    assert reason(rows(4, kl=[50.1])) == "KL ceiling: 50.1 nats a sequence at step 4, above 50"
    # What is past is past; the last step decides.
    assert reason(rows(4, kl=[60.0, 1.0])) is None
    assert reason(rows(4, kl=[1e6]), kl_ceiling=None) is None
    # KL that rounding or sampling puts below zero is no ceiling's business.
    assert reason(rows(4, kl=[-60.0])) is None


def test_duplicates_for_as_long_as_patience_lasts():
    assert reason(rows(9, unique=[0.4, 0.45])) == "collapse: 45% of completions differ, below 50%"
    assert reason(rows(9, unique=[0.5, 0.4])) is None
    assert reason(rows(9, unique=[0.4, 0.5])) is None
    assert reason(rows(9, unique=[0.4, 0.4]), patience=3) is None
    assert reason(rows(9, unique=[0.4, 0.4, 0.4]), patience=3) is not None


def test_distinct_2_against_the_first_step():
    # The first step has 0.8; a quarter of that is 0.2.
    assert reason(rows(9, distinct_2=[0.19, 0.199])) == (
        "collapse: distinct-2 0.199 is below 0.200, 25% of the first step's"
    )
    assert reason(rows(9, distinct_2=[0.19, 0.2])) is None
    assert reason(rows(9, distinct_2=[0.2, 0.19])) is None


def test_the_first_steps_are_no_collapse():
    """A model that starts with little variety has not collapsed; it needs patience + 1 steps to say so."""
    low = rows(2, unique=[0.1, 0.1])
    assert reason(low) is None
    assert reason([*low, row(3, unique=0.1)]) is not None


def test_constant_reward():
    assert reason(rows(9, std=[0.0] * 3)) == (
        "constant reward: 3 for every completion of 3 steps, nothing to learn"
    )
    assert reason(rows(9, std=[0.0] * 2)) is None
    assert reason(rows(9, std=[0.0, 0.0, 0.1])) is None
    # Constant within each step, but not from step to step: prompts differ.
    assert reason(rows(9, std=[0.0] * 3, mean=[1.0, 2.0, 1.0])) is None
    assert reason(rows(2, std=[0.0] * 2)) is None
    assert reason(rows(2, std=[0.0] * 2), constant_steps=2) is not None


def test_the_ceiling_is_named_before_the_collapse():
    assert reason(rows(9, unique=[0.1, 0.1], kl=[90.0, 90.0])).startswith("KL ceiling")


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ([row(5)], True),
        ([row(5, kl=20.0)], True),
        ([row(5, kl=20.5)], False),
        ([row(5, kl=30.0), row(6, kl=10.0)], True),  # 20 on average
        ([row(5, distinct_2=0.4)], True),  # half the first step's 0.8
        ([row(5, distinct_2=0.39)], False),
        ([row(5, unique=0.9)], True),
        ([row(5, unique=0.89)], False),
        ([row(5, unique=0.8), row(6, unique=1.0)], True),
    ],
)
def test_candidates_keep_within_the_bounds_on_average(window, expected):
    assert is_candidate(window, row(1), max_kl=20.0, min_distinct_2=0.5, min_unique=0.9) is expected


def test_without_a_bound_any_kl_is_a_candidate():
    assert is_candidate([row(5, kl=1e9)], row(1), max_kl=None, min_distinct_2=0.5, min_unique=0.9)


def test_window_reward():
    assert window_reward([row(1, mean=1.0), row(2, mean=2.0), row(3, mean=6.0)]) == 3.0


def test_near_twins_are_a_collapse_unless_the_run_began_with_them():
    assert reason(rows(9, twins=[0.95, 0.91])) == "collapse: 91% of completions have a near twin, above 90%"
    assert reason(rows(9, twins=[0.95, 0.9])) is None
    began = [row(1, twins=0.92), *rows(9, twins=[0.95, 0.95])[1:]]
    assert reason(began) is None
