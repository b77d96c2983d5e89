from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from talltree.data.prompts import columns, literal_prompts, read_prompts, split_prompts
from talltree.errors import ConfigError, DataError
from talltree.types import Prompt


def written(folder: Path, text: str | bytes, name: str = "p.jsonl") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def test_jsonl_keeps_the_other_columns(tmp_path: Path) -> None:
    lines = '{"prompt": "Once ", "answer": 3}\r\n{"answer": null, "prompt": "One\u2028day"}\n\n'
    prompts = read_prompts(written(tmp_path, lines))
    assert prompts == [Prompt("Once ", {"answer": 3}), Prompt("One\u2028day", {"answer": None})]
    assert columns(prompts) == {"answer": [3, None]}


def test_another_column_can_be_the_prompt(tmp_path: Path) -> None:
    path = written(tmp_path, '{"prompt": "a", "question": "b"}')
    assert read_prompts(path, "question") == [Prompt("b", {"prompt": "a"})]
    assert read_prompts(written(tmp_path, '{"prompts": "a"}'), "prompts") == [Prompt("a", {})]


def test_text_files_hold_a_prompt_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffOnce upon a time \r\n  One day,\n\n \n", "p.txt")
    assert [prompt.text for prompt in read_prompts(str(path))] == ["Once upon a time ", "  One day,"]
    assert [prompt.text for prompt in read_prompts(written(tmp_path, "Once ", "q.txt"))] == ["Once "]


GOOD = b'{"prompt": "Once", "answer": 1}\n'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "p.jsonl is empty; it needs at least one prompt"),
        (b" \n\n", "p.jsonl is empty"),
        (GOOD + b'{"prompt": "a",}', "p.jsonl, line 2 is not JSON: "),
        (GOOD + b'{"prompt": "a"', "p.jsonl, line 2 is not JSON: Expecting ',' delimiter at character 15"),
        (
            GOOD + b"\n" + GOOD,
            "p.jsonl, line 2 is not JSON: Expecting value at character 1; each line must be one",
        ),
        (GOOD + GOOD.strip() + GOOD, "p.jsonl, line 2 is not JSON: Extra data at character 32"),
        (
            GOOD + b'{"prompt": "a", "answer": ' + b"1" * 5000 + b"}",
            "p.jsonl, line 2 is not JSON: Exceeds the limit",
        ),
        (GOOD + b"[" * 100_000, "p.jsonl, line 2 is not JSON: "),
        (GOOD + b'["a"]', "p.jsonl, line 2 is a JSON list, not an object such as {'prompt': ...}"),
        (GOOD + b'"a"', "p.jsonl, line 2 is a JSON str, not an object"),
        (
            GOOD + b'{"text": "a", "answer": 1}',
            "p.jsonl, line 2 has no column 'prompt'; columns there: text, answer",
        ),
        (GOOD + b"{}", "p.jsonl, line 2 has no column 'prompt'; columns there: none"),
        (
            GOOD + b'{"prompt": ""}',
            "p.jsonl, line 2: the prompt is empty; write a text such as 'Once upon a time'",
        ),
        (GOOD + b'{"prompt": " \\n"}', "p.jsonl, line 2: the prompt is empty"),
        (GOOD + b'{"prompt": 3}', "p.jsonl, line 2: the prompt is '3' (int), not a text"),
        (GOOD + b'{"prompt": null}', "p.jsonl, line 2: the prompt is 'None' (NoneType), not a text"),
        (GOOD + b'{"prompt": ["a"]}', "p.jsonl, line 2: the prompt is \"['a']\" (list), not a text"),
        (GOOD + b'{"prompt": "\\ud83d"}', "p.jsonl, line 2: the prompt holds half a surrogate pair"),
        (
            GOOD + b'{"prompt": "a"}',
            "p.jsonl, line 2: the column 'answer' is missing, which other prompts have",
        ),
        (GOOD + b'{"prompt": "a", "answer": 1, "x": 1}', "p.jsonl, line 1: the column 'x' is missing"),
        (
            GOOD + b'{"prompt": "a", "completions": 1}',
            "p.jsonl, line 2: column 'completions' clashes with a reward's",
        ),
        (GOOD + b'{"prompt": "caf\xe9"}', "p.jsonl, line 2: byte 47 of the file is not UTF-8"),
    ],
)
def test_a_bad_file_names_its_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(DataError) as caught:
        read_prompts(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_text_file_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="p.txt, line 2: the prompt is empty; .* or remove the line"):
        read_prompts(written(tmp_path, "a\n \nb\n", "p.txt"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, message in (
        ("none.jsonl", "none.jsonl not found: give a .jsonl or .txt file"),
        ("p.csv", "ending '.csv' is not known; use .jsonl or .txt"),
        ("prompts", "ending '' is not known"),
    ):
        with pytest.raises(DataError, match=message):
            read_prompts(tmp_path / name)
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match=r"folder.txt not found"):
        read_prompts(tmp_path / "folder.txt")

    def refused(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = written(tmp_path, GOOD)
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(DataError, match="p.jsonl cannot be read: Permission denied"):
        read_prompts(path)


def test_literal_prompts() -> None:
    assert literal_prompts(["Once", "Once", " One day"]) == [
        Prompt("Once"),
        Prompt("Once"),
        Prompt(" One day"),
    ]
    assert columns(literal_prompts(["Once"])) == {}
    with pytest.raises(DataError, match="prompt 2: the prompt is empty"):
        literal_prompts(["Once", " "])
    with pytest.raises(DataError, match="no prompt is given"):
        literal_prompts([])


def test_columns_of_rows_that_differ() -> None:
    assert columns([]) == {}
    with pytest.raises(DataError, match="prompt 2: the column 'answer' is missing, which other prompts have"):
        columns([Prompt("a", {"answer": 1}), Prompt("b")])


def numbered(count: int) -> list[Prompt]:
    return [Prompt(f"Story {i}", {"id": i}) for i in range(count)]


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(10, 0.1, 1), (10, 0.01, 1), (10, 0.5, 5), (10, 0.99, 9), (2, 0.1, 1), (3, 0.9, 2)],
)
def test_a_share_of_the_texts_is_held_out(count: int, share: float, expected: int) -> None:
    split = split_prompts(numbered(count), share)
    assert len(split.held_out) == expected
    assert sorted([*split.train, *split.held_out], key=lambda p: p.row["id"]) == numbered(count)
    assert not split.held_out_is_train


def test_no_text_is_on_both_sides_and_order_is_kept() -> None:
    prompts = numbered(20) + numbered(20)[::-1]
    split = split_prompts(prompts, 0.3)
    assert len({p.text for p in split.held_out}) == 6
    assert {p.text for p in split.train}.isdisjoint(p.text for p in split.held_out)
    assert split.train == [p for p in prompts if p in split.train]
    assert len(split.train) + len(split.held_out) == 40


def test_the_split_depends_on_the_texts_only() -> None:
    one, again = split_prompts(numbered(50), 0.2), split_prompts(numbered(50)[::-1], 0.2)
    assert {p.text for p in one.held_out} == {p.text for p in again.held_out}
    smallest = sorted(range(50), key=lambda i: hashlib.sha256(f"Story {i}".encode()).hexdigest())[:10]
    assert {p.row["id"] for p in one.held_out} == set(smallest)


def test_one_prompt_is_on_both_sides_and_said_so() -> None:
    for prompts, share in (
        (literal_prompts(["Once"]), 0.1),
        (literal_prompts(["Once"] * 4), 0.5),
        (numbered(3), 0.0),
    ):
        assert split_prompts(prompts, share) == (prompts, prompts, True)


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="is not a share: give 0 or more and less than 1"):
        split_prompts(numbered(4), share)


def test_real_columns_reach_the_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "level": i, "tags": ["a"]} for i in range(3)]
    prompts = read_prompts(written(tmp_path, "\n".join(map(json.dumps, rows))))
    assert columns(prompts) == {"level": [0, 1, 2], "tags": [["a"]] * 3}
