"""`talltree report FOLDER` finds out what it is: a comparison, an evaluation, curves of a reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from talltree import cli

METRIC = {"value": 0.25, "low": 0.125, "high": 0.5, "n": 8, "unit": "share of pairs"}

COMPARISON: dict[str, Any] = {
    "stage": "compare", "level": 0.05, "notes": ["a note on intervals"],
    "verdict": {"b": ["b is longer than a."]},
    "models": [{"name": name, "source": name, "sha256": None} for name in "ab"],
    "prompts": 1, "seeds": [0], "completions_per_model": 1, "temperature": None, "reference": None,
    "judge": None,
    "differences": {
        "b": [
            {"measure": "words", "label": "words", "left": METRIC, "right": METRIC | {"value": 0.375},
             "difference": METRIC | {"value": 0.125}, "p_value": 0.5, "p_holm": 0.5, "clusters": 1,
             "over": "prompts", "test": "sign flips", "said": "not shown"}
        ]
    },
}  # fmt: skip
EVALUATION: dict[str, Any] = {
    "format": 1,
    "models": [
        {"name": "young", "source": "young", "parameters": 1234, "weights_sha256": "aa",
         "config_sha256": "bb", "tokenizer_sha256": "cc",
         "tasks": {"blimp": {"metrics": {"overall": METRIC}, "notes": ["mean over paradigms"], "rows": "r"}}}
    ],
}  # fmt: skip
OVEROPT: dict[str, Any] = {
    "stage": "overopt", "proxy": "length", "gold": "alliteration", "reference": "seedling", "prompts": 1,
    "samples": {"base": 4}, "notes": ["a note on KL"],
    "curves": [
        {"name": "best-of-n", "kind": "bon", "base_gold": METRIC, "fit": None,
         "advice": ["Stop near step 3."],
         "points": [{"label": "n = 2", "at": 2, "d": 0.44, "kl": METRIC, "proxy": METRIC, "gold": METRIC}]}
    ],
}  # fmt: skip
KINDS = {
    "comparison.json": (COMPARISON, "b is longer than a."),
    "results.json": (EVALUATION, "mean over paradigms"),
    "overopt.json": (OVEROPT, "Stop near step 3."),
}


def fabricate(folder: Path, name: str, content: str) -> Path:
    """What a stage leaves: a run folder with its result."""
    folder.mkdir()
    (folder / "config.yaml").write_text("models: []\n")
    (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_the_folder_says_which_page_it_gets(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, said = KINDS[name]
    folder = fabricate(tmp_path / "out", name, json.dumps(content))
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    page = (folder / "report.html").read_text()
    assert said in page and "Content-Security-Policy" in page


@pytest.mark.parametrize("name", KINDS)
def test_what_is_wrong_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fabricate(tmp_path / "out", name, json.dumps(KINDS[name][0])[:-9])
    for options, said in (
        ([], "is damaged"),
        (["--output", str(tmp_path / "x.html")], "output is for runs"),
        (["--max_samples", "3"], "max_samples is for runs"),
    ):
        assert cli.main(["report", str(folder), *options]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (folder / "report.html").exists()


def test_a_loop_of_rounds_names_where_its_pages_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rounds" / "02" / "rl").mkdir(parents=True)
    assert cli.main(["report", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert (
        f"is a loop of rounds, which have a page each; name a round's rl folder, such as {tmp_path}" in line
    )
    assert not (tmp_path / "report.html").exists()
