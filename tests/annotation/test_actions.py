"""`talltree annotate import, simulate, stats and export` from options to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from talltree.annotation.store import Store
from talltree.annotation.study import Study, make_tuple
from talltree.config import flaws, from_dict
from talltree.data.preferences import read_preferences
from talltree.errors import ConfigError, DataError, RewardError, RunError, TallTreeError
from talltree.stages import annotate
from talltree.stages.annotate.options import Exchange, Simulation, Statistics

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">'


def act(action: str, folder: Path, **options: Any) -> None:
    annotate.run(from_dict(annotate.Config, {"action": action, "folder": str(folder), **options}))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    words = ["good", "bad", "happy", "sad", "lovely", "awful", EVIL, "plain"]
    rows = tuple(make_tuple("Once", [words[(n + step) % 8] for step in (0, 1, 3, 4)]) for n in range(8))
    Store.create(tmp_path / "study", Study(kind="bws", tuples=rows, overlap=2, repeats=0.5)).close()
    return tmp_path / "study"


def test_options_have_help_and_their_defaults_pass() -> None:
    assert [flaws(each) for each in (Simulation, Statistics, Exchange)] == [[], [], []]


def test_a_study_is_simulated_counted_exported_and_imported(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    act("simulate", study, simulate={"reward": "sentiment", "annotators": 3, "noise": 0.1, "lapses": 0.05})
    said = capsys.readouterr().out
    # VADER's compound: the mean and deviation are of the 8 items, each once.
    assert "hidden utility: sentiment; mean " in said
    assert "over 8 items" in said
    assert "noise 0.1 x Gumbel, +0 for the first place on the screen, 5.0% lapses, seed 0; no seconds" in said

    act("stats", study, stats={"splits": 20, "resamples": 100})
    said = capsys.readouterr().out
    assert "Alpha of choices" in said
    assert "Same answer again" in said
    stats = json.loads((study / "stats/stats.json").read_text(encoding="utf-8"))
    with Store.open(study) as store:
        judgements = store.judgements()
    assert stats["judgements"] == len(judgements)
    assert stats["judgements"] - stats["repeats"] == 16
    assert stats["seconds"] is None
    assert {row["text"] for row in stats["scores"][:2]} <= {"good", "happy", "lovely"}
    assert sum(row["best"] for row in stats["scores"]) == 16
    page = (study / "stats/stats.html").read_text(encoding="utf-8")
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page
    assert sorted(path.name for path in (study / "stats").glob("*.svg")) == [
        "annotators.svg", "halves.svg", "places-4.svg", "scores.svg",
    ]  # fmt: skip

    for kind in ("jsonl", "csv", "pairs"):
        act("export", study, exchange={"format": kind})
    assert read_preferences(study / "preferences.jsonl") == judgements
    assert len(read_preferences(study / "preferences-pairs.jsonl")) == 5 * len(judgements)
    act("import", tmp_path / "copy", exchange={"file": str(study / "preferences.csv")})
    assert read_preferences(tmp_path / "copy/preferences.jsonl") == judgements
    capsys.readouterr()
    act("stats", tmp_path / "copy", stats={"splits": 20, "resamples": 100})
    again = json.loads((tmp_path / "copy/stats/stats.json").read_text(encoding="utf-8"))
    assert again == stats


def test_too_few_simulated_annotators_are_said(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    act("simulate", study, simulate={"reward": "length"})
    assert "8 of 8 tuples have fewer judgements than the overlap of 2" in capsys.readouterr().out


def pairs_file(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    rows = ({"chosen": "a", "rejected": "b"}, {"candidates": ["a", "b"], "tie": True})
    path.write_text("".join(json.dumps({"prompt": "p", **row}) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("action", "options", "error", "message"),
    [
        (
            "simulate",
            {},
            ConfigError,
            "simulate needs a hidden utility, simulate.reward or simulate.model_name_or_",
        ),
        (
            "simulate",
            {"simulate": {"reward": "length", "model_name_or_path": "m"}},
            ConfigError,
            "both are given",
        ),
        ("simulate", {"simulate": {"reward": "lenght"}}, RewardError, "did you mean length?"),
        ("simulate", {"simulate": {"lapses": 1.5}}, ConfigError, "lapses"),
        ("stats", {}, DataError, "there are no judgements yet"),
        ("export", {"exchange": {"format": "pairs"}}, DataError, "none of the 0 judgements prefers"),
        ("export", {"exchange": {"file": "/nowhere/x.jsonl"}}, ConfigError, "folder /nowhere does not exist"),
        ("import", {}, ConfigError, "import needs --exchange.file"),
        (
            "import",
            {"exchange": {"file": "x.csv"}},
            RunError,
            "exists and is not empty, and is not overwritten",
        ),
        ("import", {"exchange": {"file": "x.txt", "format": "csv"}}, ConfigError, "does not end with .csv"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    study: Path, action: str, options: dict[str, Any], error: type[TallTreeError], message: str
) -> None:
    with pytest.raises(error) as caught:
        act(action, study, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reward_that_does_not_score_is_refused(study: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def none(prompts, completions):\n    return [None] * len(prompts)\n")
    with pytest.raises(RewardError, match=r"does not score 'good' \(None\); a hidden utility needs a number"):
        act("simulate", study, simulate={"reward": f"{tmp_path}/mine.py:none"})


def test_imported_folders_are_not_overwritten_and_hold_what_was_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = pairs_file(tmp_path)
    act("import", tmp_path / "new", exchange={"file": str(source)})
    assert "2 judgements (named annotators: 0, ties: 1)" in capsys.readouterr().out
    with pytest.raises(RunError, match="is not overwritten; import into a new folder"):
        act("import", tmp_path / "new", exchange={"file": str(source)})
    with pytest.raises(ConfigError, match="is the imported file itself"):
        act("export", tmp_path / "new")
    act("export", tmp_path / "new", exchange={"format": "pairs"})
    assert "1 pairs without margins from 2 judgements, of which 1 settle no pair" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        act("export", tmp_path / "new", exchange={"file": str(source)})


def test_a_folder_without_judgements_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds neither a study nor preferences\.jsonl"):
        act("stats", tmp_path)


def test_a_bad_import_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p", "candidates": ["a", "b"], "best": 0, "worst": 0}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 1: best and worst are both 0; they must differ"):
        act("import", tmp_path / "new", exchange={"file": str(tmp_path / "bad.jsonl")})
    assert not (tmp_path / "new").exists()
