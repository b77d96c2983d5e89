from __future__ import annotations

import math
import re
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from talltree import rewards
from talltree.errors import RewardError
from talltree.rewards import Term, WeightedSum, score
from talltree.rewards.alliteration import Alliteration
from talltree.types import Reward

PROMPTS = ["Once upon a time", "One day"]
COMPLETIONS = [" tall trees\ntalked\x1b[31m", " a cat ran " + "x" * 60]


def returning(value: object) -> Reward:
    def fixed(prompts: list[str], completions: list[str], **columns: Any) -> Any:
        return value

    return fixed


@pytest.mark.parametrize(
    "values",
    [
        [1, -2.5],
        (1.0, -2.5),
        np.array([1, -2.5]),
        np.array([1, -2.5], dtype=np.float32),
        [np.float32(1), np.array(-2.5)],
        [np.int64(1), -2.5],
        torch.tensor([1, -2.5]),
        torch.tensor([1, -2.5], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(1), torch.tensor(-2.5)],
    ],
)
def test_numbers_of_every_kind_become_floats(values: object) -> None:
    totals, components = score(returning(values), PROMPTS, COMPLETIONS, {})
    assert totals == [1.0, -2.5]
    assert all(type(value) is float for value in totals)
    assert components == {"fixed": [1.0, -2.5]}


def test_none_is_not_scored() -> None:
    assert score(returning([None, 0]), PROMPTS, COMPLETIONS, {})[0] == [None, 0.0]


def test_an_empty_batch() -> None:
    assert score(returning([]), [], [], {"answer": []}) == ([], {"fixed": []})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "reward fixed returned NoneType; it must return a list of numbers or None"),
        (1.0, "reward fixed returned a float; it must return a list"),
        ("ab", "reward fixed returned a str; it must"),
        ({"a": 1, "b": 2}, "reward fixed returned a dict; it must"),
        ({1.0, 2.0}, "reward fixed returned a set; it must"),
        ((x for x in (1, 2)), "reward fixed returned a generator; it must"),
        (np.ones((2, 1)), "reward fixed returned a ndarray of 2 dimensions; it must"),
        (torch.tensor(1.0), "reward fixed returned a Tensor of 0 dimensions; it must"),
        ([1.0], "reward fixed returned 1 values for 2 completions; it must return one for each"),
        ([], "reward fixed returned 0 values for 2 completions"),
        (np.ones(3), "reward fixed returned 3 values for 2 completions"),
        (
            [math.nan, 1],
            r"reward fixed returned nan for completion 0 (' tall trees\ntalked\x1b[31m'); return a finite",
        ),
        ([1, math.inf], "reward fixed returned inf for completion 1 (' a cat ran " + "x" * 49 + "'...)"),
        ([1, -math.inf], "reward fixed returned -inf for completion 1"),
        (torch.tensor([1, math.nan]), "reward fixed returned nan for completion 1"),
        ([1, np.float32("nan")], "reward fixed returned nan for completion 1"),
        ([1, 10**400], "reward fixed returned inf for completion 1"),
        ([1, -(10**400)], "reward fixed returned -inf for completion 1"),
        ([True, 1], "reward fixed returned True (bool), not a number or None, for completion 0"),
        ([1, np.bool_(True)], "reward fixed returned True (bool), not a number or None, for completion 1"),
        (
            np.array([True, False]),
            "reward fixed returned True (bool), not a number or None, for completion 0",
        ),
        (["1", 2], "reward fixed returned '1' (str), not a number or None, for completion 0"),
        ([1, [2.0]], "reward fixed returned [2.0] (list), not a number or None, for completion 1"),
        ([1, 2j], "reward fixed returned 2j (complex), not a number"),
        ([1, Decimal(2)], "reward fixed returned Decimal('2') (Decimal), not a number"),
        ([1, np.array([2.0])], "reward fixed returned array([2.]) (ndarray), not a number"),
        ([1, "a\nb"], r"reward fixed returned 'a\nb' (str), not a number"),
    ],
)
def test_a_wrong_return_gives_one_clear_line(returned: object, message: str) -> None:
    with pytest.raises(RewardError, match=re.escape(message)) as caught:
        score(returning(returned), PROMPTS, COMPLETIONS, {})
    assert str(caught.value).isprintable()


def test_an_exception_is_named_with_its_place_and_kept_as_the_cause() -> None:
    def picky(prompts: list[str], completions: list[str]) -> list[float]:
        raise ValueError("no\nsuch \x1b[31mthing")

    line = picky.__code__.co_firstlineno + 1
    message = rf"reward picky raised ValueError: no such \x1b[31mthing (test_scoring.py:{line})"
    with pytest.raises(RewardError) as caught:
        score(picky, PROMPTS, COMPLETIONS, {})
    assert str(caught.value) == message
    assert isinstance(caught.value.__cause__, ValueError)


def test_the_place_of_an_exception_is_in_the_rewards_own_file() -> None:
    def deep(prompts: list[str], completions: list[str]) -> list[float]:
        return [re.compile("(").pattern]  # type: ignore[list-item]

    with pytest.raises(RewardError, match=rf"\(test_scoring.py:{deep.__code__.co_firstlineno + 1}\)"):
        score(deep, PROMPTS, COMPLETIONS, {})


def test_a_long_exception_is_cut() -> None:
    def wordy(prompts: list[str], completions: list[str]) -> list[float]:
        raise RuntimeError("x" * 5000)

    with pytest.raises(RewardError) as caught:
        score(wordy, PROMPTS, COMPLETIONS, {})
    assert len(str(caught.value)) < 300


def test_ctrl_c_inside_a_reward_is_not_swallowed() -> None:
    def slow(prompts: list[str], completions: list[str]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(slow, PROMPTS, COMPLETIONS, {})


COLUMNS = {"answer": [1.0, 2.0], "level": [10.0, 20.0]}


def by_two_names(prompts: Any, completions: Any) -> Any:
    return [len(prompts), len(completions)]


def by_completions_alone(completions: Any) -> Any:
    return [len(completions), 0]


def by_completions_and_answer(completions: Any, answer: Any) -> Any:
    return answer


def by_place(texts: Any, stories: Any, answer: Any) -> Any:
    return [a + (texts == PROMPTS) + (stories == COMPLETIONS) for a in answer]


def by_place_only(texts: Any, stories: Any, /, *, level: Any = None) -> Any:
    return level


def by_everything(**columns: Any) -> Any:
    return [sum(values) for values in zip(columns["answer"], columns["level"], strict=True)] + (
        [] if set(columns) == {"prompts", "completions", "answer", "level"} else [math.nan]
    )


def by_stars(*texts: Any, **columns: Any) -> Any:
    return [len(texts), len(columns)]


def with_a_default(prompts: Any, completions: Any, bonus: float = 5.0, answer: Any = None) -> Any:
    return [bonus + a for a in answer]


class Instance:
    def __call__(self, prompts: Any, completions: Any, level: Any) -> Any:
        return level


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (by_two_names, [2, 2]),
        (by_completions_alone, [2, 0]),
        (by_completions_and_answer, [1, 2]),
        (by_place, [3, 4]),
        (by_place_only, [10, 20]),
        (by_everything, [11, 22]),
        (by_stars, [2, 2]),
        (with_a_default, [6, 7]),
        (Instance(), [10, 20]),
        (partial(by_place, answer=[0, 0]), [3, 4]),
    ],
)
def test_a_reward_gets_the_columns_that_it_names(reward: Any, expected: list[float]) -> None:
    assert score(reward, PROMPTS, COMPLETIONS, COLUMNS)[0] == expected


def test_a_missing_column_is_named() -> None:
    message = (
        "reward by_completions_and_answer needs the column 'answer', which the data lacks; columns there: "
    )
    with pytest.raises(RewardError, match=message + "none$"):
        score(by_completions_and_answer, PROMPTS, COMPLETIONS, {})  # type: ignore[arg-type]
    with pytest.raises(RewardError, match=message + "ages, level$"):
        score(by_completions_and_answer, PROMPTS, COMPLETIONS, {"level": [1, 2], "ages": [1, 2]})  # type: ignore[arg-type]


def test_a_function_of_one_odd_argument_is_refused() -> None:
    def lonely(texts: Any) -> Any:
        return [0.0, 0.0]

    with pytest.raises(
        RewardError, match=r"reward lonely must take prompts and completions, as f\(prompts, "
    ):
        score(lonely, PROMPTS, COMPLETIONS, {})  # type: ignore[arg-type]


def test_a_column_named_like_an_argument_is_refused() -> None:
    with pytest.raises(RewardError, match="the data's column 'completions' clashes"):
        score(returning([1, 2]), PROMPTS, COMPLETIONS, {"completions": ["a", "b"]})


def test_a_caller_that_passes_unequal_lengths_is_told() -> None:
    with pytest.raises(ValueError, match="1 prompts, 2 completions"):
        score(returning([1, 2]), PROMPTS[:1], COMPLETIONS, {})
    with pytest.raises(ValueError, match="'answer': 1"):
        score(returning([1, 2]), PROMPTS, COMPLETIONS, {"answer": [1]})


def test_a_reward_cannot_change_the_batch() -> None:
    def greedy(prompts: Any, completions: Any, answer: Any) -> Any:
        completions.clear()
        answer.clear()
        return [0, 0]

    completions, columns = list(COMPLETIONS), {"answer": [1, 2]}
    score(greedy, PROMPTS, completions, columns)  # type: ignore[arg-type]
    assert (completions, columns) == (COMPLETIONS, {"answer": [1, 2]})


def test_a_weighted_sum_by_hand() -> None:
    # 1 * (2 pairs: time tall, tall tree) - 0.5 * (2 words) = 1; "one" alone: 0 - 0.5 * 1
    reward = rewards.load("alliteration - 0.5*length")
    totals, components = score(reward, ["a time", "one"], [" tall tree", " day"], {})
    assert totals == [1.0, -0.5]
    assert components == {"alliteration": [2.0, 0.0], "length": [2.0, 1.0]}
    assert reward(["a time", "one"], [" tall tree", " day"]) == totals


def sum_of(*values: object) -> WeightedSum:
    return WeightedSum(
        "sum", tuple(Term(2.0, f"part{i}", returning(value)) for i, value in enumerate(values))
    )


def test_a_part_that_is_not_scored_leaves_the_whole_unscored() -> None:
    totals, components = score(sum_of([1, None], [3, 4]), PROMPTS, COMPLETIONS, {})
    assert totals == [8.0, None]
    assert components == {"part0": [1.0, None], "part1": [3.0, 4.0]}


def test_a_bad_part_is_named() -> None:
    with pytest.raises(RewardError, match="reward part1 returned nan for completion 1"):
        score(sum_of([1, 2], [1, math.nan]), PROMPTS, COMPLETIONS, {})


def test_a_sum_that_overflows_is_refused() -> None:
    with pytest.raises(RewardError, match="reward sum adds up to inf for completion 0"):
        score(sum_of([1e308, 0]), PROMPTS, COMPLETIONS, {})


def test_parts_get_their_columns() -> None:
    reward = WeightedSum("sum", (Term(1, "a", by_completions_and_answer), Term(1, "b", Instance())))  # type: ignore[arg-type]
    assert score(reward, PROMPTS, COMPLETIONS, COLUMNS)[0] == [11, 22]
    assert reward(PROMPTS, COMPLETIONS, **COLUMNS) == [11, 22]


def test_a_sum_of_nothing_or_of_equal_names_is_a_defect() -> None:
    for terms in ((), (Term(1, "a", Alliteration()), Term(2, "a", Alliteration()))):
        with pytest.raises(ValueError, match="terms with different names"):
            WeightedSum("sum", terms)
