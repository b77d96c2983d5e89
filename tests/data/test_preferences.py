"""Judgements: what one settles, what is refused and how it is said, files there and back."""

from __future__ import annotations

import json
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest

from talltree.data.preferences import (
    Judgement,
    pairs,
    partial_orders,
    read_preferences,
    write_preferences,
)
from talltree.errors import DataError

ABCD = ("a", "b", "c", "d")


def judged(**answer: Any) -> Judgement:
    return Judgement(prompt="p", **{"candidates": ABCD, **answer})


# --- what a judgement settles ------------------------------------------------------------------------------


def test_best_and_worst_of_four_settle_five_of_six_pairs() -> None:
    found = pairs(judged(best=1, worst=3))
    assert sorted(found) == [(0, 3), (1, 0), (1, 2), (1, 3), (2, 3)]
    assert partial_orders(judged(best=1, worst=3)) == [((1,), (0, 2, 3)), ((0, 2), (3,))]


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_what_is_settled_is_what_every_order_of_the_candidates_with_that_answer_has(k: int) -> None:
    texts = ABCD[:k] if k <= 4 else (*ABCD, "e")
    for best, worst in permutations(range(k), 2):
        orders = [order for order in permutations(range(k)) if (order[0], order[-1]) == (best, worst)]
        settled = {
            (one, other)
            for one, other in permutations(range(k), 2)
            if all(order.index(one) < order.index(other) for order in orders)
        }
        found = pairs(judged(candidates=texts, best=best, worst=worst))
        assert (set(found), len(found)) == (settled, 2 * k - 3)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"best": 2}, [((2,), (0, 1, 3))]),
        ({"worst": 0}, [((1, 2, 3), (0,))]),
        ({"ranking": (3, 0, 2, 1)}, [((3,), (0, 1, 2)), ((0,), (1, 2)), ((2,), (1,))]),
        ({"ranking": (3, 0)}, [((3,), (0, 1, 2)), ((0,), (1, 2))]),
        ({"ranking": (3, 0, 2, 1), "best": 3, "worst": 1}, [((3,), (0, 1, 2)), ((0,), (1, 2)), ((2,), (1,))]),
        ({"ratings": (1, 5, 1, 3.5)}, [((1,), (0, 2, 3)), ((3,), (0, 2))]),
        ({"ratings": (2, 2, 2, 2)}, []),
        ({"tie": True}, []),
        ({"candidates": ("a", "b"), "best": 1, "worst": 0}, [((1,), (0,))]),
        ({"candidates": ("a",), "ratings": (4,)}, []),
    ],
)
def test_partial_orders(answer: dict[str, Any], expected: list[Any]) -> None:
    assert partial_orders(judged(**answer)) == expected


def test_no_pair_is_settled_twice() -> None:
    for answer in ({"best": 0, "worst": 3}, {"ranking": (1, 2, 0)}, {"ratings": (1, 2, 1, 3)}):
        found = pairs(judged(**answer))
        assert len({frozenset(pair) for pair in found}) == len(found)
        assert len(found) <= len(list(combinations(range(4), 2)))


# --- what is refused ---------------------------------------------------------------------------------------


BAD = [
    ({"best": 1, "worst": 1}, "best and worst are both 1; they must differ"),
    ({"best": 4}, "best 4 is not an index of a candidate, 0 to 3"),
    ({"worst": -1}, "worst -1 is not an index of a candidate, 0 to 3"),
    ({"best": True}, "best True is not an index of a candidate, 0 to 3"),
    ({"best": "1"}, "best '1' is not an index of a candidate, 0 to 3"),
    ({"ranking": [0, 1, 1]}, "ranking [0, 1, 1] names a candidate twice"),
    ({"ranking": []}, "ranking () is not a list of indices"),
    ({"ranking": 3}, "ranking 3 is not a list"),
    ({"ranking": [0, 1], "best": 1}, "ranking [0, 1] does not begin with best, which is 1"),
    ({"ranking": [0, 1], "worst": 3}, "ranking [0, 1] of 4 candidates does not end with worst, which is 3"),
    ({"ratings": [1, 2]}, "ratings: 2 for 4 candidates; give one for each"),
    ({"ratings": [1, 2, float("nan"), 3]}, "ratings[2] nan is not a finite number"),
    ({"ratings": [1, 2, 10**400, 3]}, "ratings[2] 1000"),
    ({"ratings": [1, 2, 3, 4], "best": 3}, "best and ratings are given, which exclude each other"),
    ({"tie": True, "best": 0}, "best and tie are given, which exclude each other; give one of them"),
    ({"tie": 1, "best": 0}, "tie 1 is an int, not true or false"),
    ({}, "there is no answer; give best, worst, ranking, ratings, or tie: true"),
    ({"candidates": ["a"], "best": 0}, "candidates holds 1 candidate, at least 2 are needed; one alone"),
    ({"candidates": [], "tie": True}, "candidates holds no candidate, at least 2 are needed"),
    ({"candidates": ["a", "b", "a"], "best": 0}, "candidates[0] and candidates[2] are the same text 'a'"),
    ({"candidates": ["a", 3], "best": 0}, "candidates[1] 3 is an int, not a text"),
    ({"candidates": "ab", "best": 0}, "candidates 'ab' is not a list"),
    ({"candidates": ["a", "\ud800"], "best": 0}, "candidates[1] holds half a surrogate pair"),
    ({"prompt": 5, "best": 0}, "prompt 5 is an int, not a text"),
    ({"best": 0, "seconds": -1}, "seconds -1 is not a finite number of at least 0"),
    ({"best": 0, "margin": float("inf")}, "margin inf is not a finite number of at least 0"),
    ({"best": 0, "time": "yesterday"}, "time 'yesterday' is not ISO 8601"),
    ({"best": 0, "time": "2025-03-01T12:30:00+02:00"}, "is not in UTC; end it with Z or +00:00"),
    ({"best": 0, "time": 7}, "time 7 is not ISO 8601"),
    ({"best": 0, "order": [0, 1, 2]}, "order [0, 1, 2] names 3 of 4 candidates"),
    ({"best": 0, "order": [0, 1, 2, 2]}, "order [0, 1, 2, 2] names a candidate twice"),
    ({"best": 0, "wurst": 1}, "column 'wurst' is unknown; did you mean worst?"),
    ({"best": 0, "stars": 1}, "column 'stars' is unknown; known: prompt, candidates"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_bad_row_is_refused_in_one_line_with_file_line_and_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "p.jsonl"
    good = {"prompt": "p", "candidates": list(ABCD), "best": 0}
    row = {"prompt": "p", "candidates": list(ABCD), **change}
    path.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    with pytest.raises(DataError) as caught:
        read_preferences(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "holds no judgement"),
        ("[1]\n", "line 1: a JSON list, not an object"),
        ('{"prompt": "p"\n', "line 1: not JSON"),
        ('{"prompt": "p", "best": 0}\n', "line 1: candidates is missing (or prompt, chosen and rejected)"),
        ('{"candidates": ["a", "b"], "best": 0}\n', "line 1: prompt is missing"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=".*") as caught:
        read_preferences(path)
    assert message in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl not found"):
        read_preferences(tmp_path / "none.jsonl")


def test_one_tuple_id_for_different_candidates_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": "p", "candidates": c, "best": 0, "tuple_id": "t"} for c in (["a", "b"], ["b", "a"])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        read_preferences(path)
    assert str(caught.value) == (
        f"{path}, line 2: tuple_id 't' stands for another prompt or other candidates, or another order of "
        f"them, in {path}, line 1"
    )


def test_unknown_columns_may_be_ignored_by_name(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "p", "candidates": ["a", "b"], "best": 0, "source": 3}\n')
    assert read_preferences(path, ignore=["source"]) == [judged(candidates=("a", "b"), best=0)]


# --- files -------------------------------------------------------------------------------------------------


EVERY_KIND = [
    Judgement(prompt="", candidates=("", " x\u2028y\r\n"), best=0, worst=1, seconds=0.1 + 0.2, margin=0.0),
    judged(best=0, annotator='Ä, "q"', time="2025-03-01T12:30:00.123Z", tuple_id="t", order=(3, 1, 0, 2)),
    judged(ranking=(1, 0), tuple_id="t", annotator="b"),
    judged(ratings=(1.0, 2.5, 3.0, 4.0)),
    judged(tie=True),
    judged(candidates=("one",), ratings=(3.0,)),
]


def test_judgements_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    write_preferences(path, EVERY_KIND)
    assert read_preferences(path) == EVERY_KIND
    assert json.loads(path.read_text(encoding="utf-8").split("\n")[4]) == {
        "prompt": "p", "candidates": list(ABCD), "tie": True,
    }  # fmt: skip
    assert [each.name for each in tmp_path.iterdir()] == ["p.jsonl"]


def test_null_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    nulls = {"worst": None, "annotator": None, "tuple_id": None, "tie": None, "ranking": None, "time": None}
    path.write_text(json.dumps({"prompt": "p", "candidates": ["a", "b"], "best": 1, **nulls}) + "\n")
    assert read_preferences(path) == [judged(candidates=("a", "b"), best=1)]


# --- prompt, chosen and rejected ---------------------------------------------------------------------------


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "prompt", "candidates"),
    [
        ({"prompt": "Once", "chosen": " a", "rejected": " b"}, "Once", (" a", " b")),
        ({"prompt": "", "chosen": "a", "rejected": ""}, "", ("a", "")),
        # No prompt: the common beginning, up to the last white space, which stays with the candidates.
        ({"chosen": "a big  dog", "rejected": "a big  door"}, "a big", ("  dog", "  door")),
        ({"chosen": "dog", "rejected": "door"}, "", ("dog", "door")),
        ({"chosen": "a b", "rejected": "a b c"}, "a", (" b", " b c")),
        (
            {
                "prompt": [user("Hi"), assistant("Yes?"), user("Tell")],
                "chosen": [assistant("A")],
                "rejected": [assistant("B")],
            },
            "user: Hi\n\nassistant: Yes?\n\nuser: Tell\n\nassistant:",
            (" A", " B"),
        ),
        (
            {"chosen": [user("Hi"), assistant("A")], "rejected": [user("Hi"), assistant("B")]},
            "user: Hi\n\nassistant:",
            (" A", " B"),
        ),
    ],
)  # fmt: skip
def test_pairs_are_read(
    tmp_path: Path, row: dict[str, Any], prompt: str, candidates: tuple[str, str]
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({**row, "margin": 0.5, "annotator": "A"}) + "\n")
    assert read_preferences(path) == [
        Judgement(prompt=prompt, candidates=candidates, best=0, worst=1, margin=0.5, annotator="A")
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, "rejected is missing; columns there: prompt, chosen"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ({"prompt": "p", "chosen": 3, "rejected": "a"}, "chosen 3 is neither a text nor a list of messages"),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1},
            "column 'score_chosen' is unknown",
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": -1}, "margin -1 is not a finite number"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "best": 1}, "column 'best' is unknown"),
        (
            {"prompt": "p", "chosen": [assistant("a")], "rejected": [assistant("b")]},
            "prompt 'p' is not a list of messages, as the row's other sides are",
        ),
        (
            {"prompt": [user("p")], "chosen": [assistant("a"), user("?")], "rejected": [assistant("b")]},
            "chosen must add one assistant message to the prompt, but adds: assistant, user",
        ),
        ({"chosen": [user("p")], "rejected": [user("q")]}, "chosen must add one assistant message"),
        (
            {"prompt": [{"role": "user"}], "chosen": [assistant("a")], "rejected": [assistant("b")]},
            "prompt[0] {'role': 'user'} is not a message of the texts role and content",
        ),
    ],
)
def test_bad_pairs_are_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        read_preferences(path)
    assert str(caught.value).startswith(f"{path}, line 1: ")
    assert message in str(caught.value)
