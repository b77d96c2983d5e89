from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from talltree import rewards
from talltree.errors import RewardError
from talltree.rewards import BUILT_IN, WeightedSum
from talltree.rewards.alliteration import Alliteration, LetterCount
from talltree.rewards.text import Keyword, Regex, Repetition


def parts(spec: str) -> list[tuple[float, str]]:
    reward = rewards.load(spec)
    assert isinstance(reward, WeightedSum)
    return [(term.weight, term.name) for term in reward.terms]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_term_is_the_reward_itself() -> None:
    assert rewards.load("alliteration") == Alliteration()
    assert rewards.load(" letter_count( letter = 'b' ) ") == LetterCount("b")
    assert rewards.load("keyword(words=['a + b', \"it's - so\"])") == Keyword(("a + b", "it's - so"))
    assert rewards.load(r"regex(pattern='\' - a + b', at_most=1)") == Regex("' - a + b", at_most=1)
    assert rewards.load("+ alliteration") == Alliteration()
    assert rewards.load("1.0 * alliteration") == Alliteration()


def test_every_built_in_loads_by_its_name() -> None:
    required = {"keyword": "(words=['a'])", "regex": "(pattern='a')"}
    for name in set(BUILT_IN) - {"reward_model"}:  # a folder: tests/test_reward_of_model.py
        assert rewards.name_of(rewards.load(name + required.get(name, ""))) == name


def test_a_sum_keeps_weights_and_names() -> None:
    spec = "alliteration - 0.05*repetition(n=3) + 2 * keyword(words=['dragon'])"
    assert parts(spec) == [(1, "alliteration"), (-0.05, "repetition"), (2, "keyword")]
    reward = rewards.load(spec)
    assert isinstance(reward, WeightedSum)
    assert [term.reward for term in reward.terms] == [Alliteration(), Repetition(3), Keyword(("dragon",))]
    assert reward.name == spec


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("2*alliteration", [(2, "alliteration")]),
        ("-alliteration", [(-1, "alliteration")]),
        ("- .5 * length", [(-0.5, "length")]),
        ("1e-3*length - -2*alliteration", [(0.001, "length"), (2, "alliteration")]),
        ("alliteration  -  length\n+ distinct_n", [(1, "alliteration"), (-1, "length"), (1, "distinct_n")]),
        ("0*length + alliteration", [(0, "length"), (1, "alliteration")]),
        ("repetition(n=2) + repetition(n=3)", [(1, "repetition(n=2)"), (1, "repetition(n=3)")]),
        ("length - regex(pattern='a\\' - b')", [(1, "length"), (-1, "regex")]),
    ],
)
def test_sums_are_read(spec: str, expected: list[tuple[float, str]]) -> None:
    assert parts(spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "the reward is empty; name one of alliteration,"),
        (
            "alliterations",
            "reward 'alliterations' is unknown; did you mean alliteration? Built in: alliteration,",
        ),
        ("xyzzy", "reward 'xyzzy' is unknown; give FILE.py:FUNCTION for your own. Built in:"),
        ("repetition(m=3)", "reward repetition has no parameter 'm'; allowed: n"),
        ("letter_count(leter='a')", "has no parameter 'leter'; did you mean letter? allowed: letter"),
        ("alliteration(n=3)", "reward alliteration has no parameter 'n'; it takes none"),
        ("keyword", "reward keyword needs a value for words: keyword(words=...)"),
        ("regex()", "reward regex needs a value for pattern"),
        ("repetition(3)", "give parameters by name, as repetition(key=value)"),
        ("repetition(**{})", "give parameters by name"),
        ("repetition(n=x)", "the value x of n is not a plain value; a text needs quotes"),
        ("repetition(n=open('f'))", "the value open('f') of n is not a plain value"),
        ("repetition(n=)", "the reward term 'repetition(n=)' cannot be read"),
        ("repetition(n=3", "the reward term 'repetition(n=3' cannot be read"),
        ("repetition(n=0)", "repetition: n 0 is not a whole number of at least 1"),
        ("alliteration-length", "joined by ' + ' and ' - ' with spaces around them"),
        ("alliteration * 2", "the reward term 'alliteration * 2' cannot be read"),
        ("nan*alliteration", "the reward term 'nan*alliteration' cannot be read"),
        ("a.b(n=1)", "the reward term 'a.b(n=1)' cannot be read"),
        ("alliteration + ", "the reward 'alliteration + ' has a sign without a term after it"),
        ("1e999*alliteration", "the weight in '1e999*alliteration' is too large"),
        ("length + 2*length", "the reward has the term length twice; add the weights up in one term"),
        ("no/such.py:score", "reward file no/such.py not found (looked in "),
        ("my.py", "reward 'my.py': a file's reward is written path/to/file.py:function"),
        ("my.py:score(n=1)", "a file's reward is written path/to/file.py:function, without brackets"),
    ],
)
def test_a_bad_spec_gives_one_clear_line(here: Path, spec: str, message: str) -> None:
    with pytest.raises(RewardError, match=re.escape(message)) as caught:
        rewards.load(spec)
    assert "\n" not in str(caught.value)


def test_a_users_function_is_loaded_from_its_path(here: Path) -> None:
    folder = here / "my - rewards"
    folder.mkdir()
    (folder / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "@dataclass\n"
        "class Count:\n"
        "    letter: str\n"
        "    kind: ClassVar[str] = 'x'\n"
        "    def __call__(self, prompts, completions, **columns):\n"
        "        return [text.count(self.letter) for text in completions]\n"
        "def score(prompts, completions, **columns):\n"
        "    return [float(len(text)) for text in completions]\n"
        "bees = Count('b')\n"
    )
    assert rewards.load("my - rewards/mine.py:score")(["", ""], ["ab", ""]) == [2, 0]
    assert rewards.load(f"{folder}/mine.py:bees")([""], ["abba"]) == [2]
    assert not (folder / "__pycache__").exists()
    (here / "mine.py").write_text("def score(prompts, completions):\n    return [1.0] * len(prompts)\n")
    assert parts("2*mine.py:score + alliteration") == [(2, "score"), (1, "alliteration")]
    (here / "Tom's.py").write_text((here / "mine.py").read_text())
    assert parts("Tom's.py:score + length") == [(1, "score"), (1, "length")]
    total = rewards.load("2*mine.py:score + alliteration")(["tall"], [" tree"])
    assert total == [3]


def test_an_edited_file_is_read_again(here: Path) -> None:
    for value in (1, 2):
        (here / "mine.py").write_text(f"def score(prompts, completions):\n    return [{value}]\n")
        assert rewards.load("mine.py:score")([""], [""]) == [value]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def other(p, c): ...\n", "reward file mine.py has no function 'score'; did you mean other?"),
        ("def scores(p, c): ...\ndef b(): ...\n", "did you mean scores?"),
        ("import os\n", "reward file mine.py has no function 'score'; it defines no function"),
        ("class score: ...\n", "'score' in reward file mine.py is a class; name a function or an instance"),
        ("score = 3\n", "'score' in reward file mine.py is not a function"),
        ("\nx = 1 / 0\n", "reward file mine.py raised ZeroDivisionError: division by zero (mine.py:2)"),
        ("\n\ndef score(:\n", "reward file mine.py raised SyntaxError: invalid syntax (mine.py:3)"),
        ("import nosuchmodule\n", "raised ModuleNotFoundError: No module named 'nosuchmodule' (mine.py:1)"),
        (
            "def f():\n    raise KeyError('a\\nb')\nf()\n",
            "reward file mine.py raised KeyError: 'a\\nb' (mine.py:2)",
        ),
        ("import sys\nsys.exit(0)\n", "reward file mine.py raised SystemExit: 0 (mine.py:2)"),
        (
            "import json\njson.loads('')\n",
            "raised JSONDecodeError: Expecting value: line 1 column 1 (char 0) (mine.py:2)",
        ),
        ("x = '\0'\n", "reward file mine.py raised "),
    ],
)
def test_a_bad_file_gives_one_clear_line(here: Path, text: str, message: str) -> None:
    (here / "mine.py").write_text(text)
    with pytest.raises(RewardError, match=re.escape(message)) as caught:
        rewards.load("mine.py:score")
    assert "\n" not in str(caught.value)


def test_a_file_that_fails_leaves_no_module_behind(here: Path) -> None:
    (here / "mine.py").write_text("raise ValueError\n")
    before = set(sys.modules)
    with pytest.raises(RewardError, match=r"raised ValueError \(mine.py:1\)"):
        rewards.load("mine.py:score")
    assert set(sys.modules) == before


def test_a_sibling_module_is_not_picked_up(here: Path) -> None:
    (here / "sibling.py").write_text("x = 1\n")
    (here / "folder").mkdir()
    (here / "folder" / "beside.py").write_text("x = 1\n")
    (here / "folder" / "mine.py").write_text("import beside\ndef score(p, c): return [beside.x]\n")
    with pytest.raises(RewardError, match="No module named 'beside'"):
        rewards.load("folder/mine.py:score")
