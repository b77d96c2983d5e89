"""The cache keeps a result whole, tells keys apart, and notices damage."""

import pytest

from talltree.evals import cache
from talltree.evals.results import Metric, TaskResult

RESULT = TaskResult(
    {"a": Metric(1 / 3, None, 2.0, 5, "x")},
    [{"text": "“é”\ud800", "won": 0.5, "n": None}],
    ("note",),
    {"a": {"12": 1 / 3}},
)
KEY = {"task": "blimp, wh_island", "options": [1, False]}


def never(line):
    raise AssertionError(line)


def test_what_is_kept_comes_back(tmp_path):
    assert cache.load(tmp_path, KEY, never) is None
    cache.store(tmp_path, KEY, RESULT)
    assert cache.load(tmp_path, KEY, never) == RESULT
    assert cache.load(tmp_path, {**KEY, "options": [1, True]}, never) is None


def test_every_damaged_byte_is_noticed_and_said(tmp_path):
    cache.store(tmp_path, KEY, RESULT)
    (path,) = tmp_path.rglob("*.json")
    whole = path.read_bytes()
    for at in range(len(whole)):
        said = []
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = cache.load(tmp_path, KEY, said.append)
        if at == len(whole) - 1:  # the newline at the end is no part of the content
            continue
        assert found is None, at
        assert said == [f"{path} is damaged; blimp, wh_island is computed again"]
    path.write_bytes(whole[: len(whole) // 2])
    assert cache.load(tmp_path, KEY, lambda line: None) is None


def test_the_key_does_not_hang_on_the_order():
    assert cache.key({"a": 1, "b": 2}) == cache.key({"b": 2, "a": 1})
    assert cache.key({"a": 1}) != cache.key({"a": 2})
    with pytest.raises(TypeError):
        cache.key({"a": {1}})
