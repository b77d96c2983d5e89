"""A search: what Optuna proposes runs, what was reached is told back, and a killed search goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from talltree import cli, yaml_text

from .fakes import install

optuna = pytest.importorskip("optuna", reason="the extra `sweep` is not installed")


@pytest.fixture(autouse=True)
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch)


def write(folder: Path, **search: object) -> Path:
    space = {
        "level": {"low": 0.0, "high": 10.0},
        "steps": {"low": 1, "high": 4},
        "kl.coef": {"choices": [0, 0.5]},
    }
    asked = {"trials": 3, "space": space, "metric": "after.reward"} | search
    path = folder / "study.yaml"
    path.write_text(yaml_text.dump({"chain": [{"stage": "fake"}], "search": asked, "seeds": 2}))
    return path


def run(folder: Path, *options: str) -> int:
    words = ["--output_dir", str(folder / "out"), "--report", "false", *options]
    return cli.main(["sweep", str(folder / "study.yaml"), *words])


def stored(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{folder / 'out' / 'search.db'}"
    return optuna.load_study(study_name="study", storage=storage).trials


def test_settings_are_proposed_run_with_each_seed_and_told_back(tmp_path: Path) -> None:
    write(tmp_path)
    assert run(tmp_path, "--jobs", "2") == 0
    rows = json.loads((tmp_path / "out/results.json").read_text())["trials"]
    assert [row["name"] for row in rows] == [f"{at:04d},seed={seed}" for at in range(3) for seed in range(2)]
    found = stored(tmp_path)
    assert [trial.state.name for trial in found] == ["COMPLETE"] * 3
    for trial in found:
        level, steps = trial.params["level"], trial.params["steps"]
        assert 0 <= level <= 10 and steps in (1, 2, 3, 4) and trial.params["kl.coef"] in (0, 0.5)
        # The fake's reward is level * steps + seed: over the seeds 0 and 1, half more.
        assert trial.value == pytest.approx(level * steps + 0.5)
    # More settings may be asked for later; the first three stay and new ones differ from them.
    write(tmp_path, trials=4)
    assert run(tmp_path) == 0
    params = [tuple(trial.params.values()) for trial in stored(tmp_path)]
    assert len(params) == len(set(params)) == 4


def test_a_proposal_that_was_not_run_to_its_end_is_run_first(tmp_path: Path) -> None:
    from talltree.stages.sweep.search import Proposals
    from talltree.stages.sweep.study import read

    path = write(tmp_path, trials=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.yaml").write_text("")
    (proposed, _) = Proposals(read(str(path)), tmp_path / "out").propose()
    assert run(tmp_path) == 0
    assert [trial.number for trial in stored(tmp_path)] == [0, 1]
    ran = json.loads((tmp_path / "out/trials" / proposed.name / "fake.json").read_text())
    assert ran["status"] == "finished"
    assert stored(tmp_path)[0].params["level"] == proposed.jobs[0].config["level"]


def test_a_failed_setting_is_told_as_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, trials=1, space={"fail": {"choices": ["error"]}, "steps": {"low": 2, "high": 3}})
    assert run(tmp_path) == 2
    assert [trial.state.name for trial in stored(tmp_path)] == ["FAIL"]
    assert "setting 0000 failed" in capsys.readouterr().out


def test_an_outcome_that_is_not_there_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, trials=1, metric="after.joy")
    assert run(tmp_path) == 0
    assert "setting 0000 failed: its summary has no after.joy" in capsys.readouterr().out


def test_a_changed_space_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, trials=1)
    assert run(tmp_path) == 0
    write(tmp_path, trials=2, space={"level": {"low": 0.0, "high": 99.0}})
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert "search.space is not what" in error and "was begun with; bring the old one back" in error
    assert error.count("\n") == 1
