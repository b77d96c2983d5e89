from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from talltree import rewards
from talltree.rewards import BUILT_IN

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")


def rows() -> dict[str, str]:
    return {line.split("`")[1]: line for line in PAGE.split("\n") if line.startswith("| `")}


def test_the_table_holds_every_built_in_and_nothing_else() -> None:
    assert set(rows()) == set(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_option_and_default_is_in_its_row(name: str) -> None:
    options = rows()[name].split("|")[4]
    for field in dataclasses.fields(BUILT_IN[name]):
        required = field.default is dataclasses.MISSING
        assert (f"`{field.name}` (required" if required else f"`{field.name}={field.default!r}`") in options
    assert options.count("`") >= 2 or options.strip() == "none"


def test_the_specs_on_the_page_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code
    (tmp_path / "my_rewards.py").write_text(code[1])
    specs = re.findall(r'--reward (?:"(.+)"|(\S+))$', PAGE, re.MULTILINE)
    assert len(specs) == 5
    for quoted, plain in specs:
        rewards.load(quoted or plain)
    mine, columns = rewards.load("my_rewards.py:score"), {"answer": ["egg", None], "level": [1, 2]}
    assert rewards.score(mine, ["a", "b"], [" dragon egg", " c"], columns)[0] == [1.0, None]
    assert rewards.spans(mine, "a", " dragon egg") == [(2, 8)]
