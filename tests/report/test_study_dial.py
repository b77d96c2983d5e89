"""The KL dial: budgets asked against budgets reached, and words that claim no more than the seeds allow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from talltree.report import study, study_dial
from talltree.report.study_facts import read

from .made_study import ONE, fabricate

FACTORS = {"kl.target": ["4", "2"], "model": ["oak", "elm"]}


def config(setting: Mapping[str, str]) -> dict[str, Any]:
    return {"kl": {"target": float(setting["kl.target"])}, "steps": 8}


def dialled(
    folder: Path, reached: Mapping[tuple[str, str], list[float]], factors: Any = FACTORS, steps: int = 8
) -> Path:
    """A study whose KL is 0 up to three quarters of its 8 steps, then one value a seed, by setting."""
    made = fabricate(folder, factors, seeds=3, config=config)
    for setting, values in reached.items():
        for seed, value in enumerate(values):
            name = ",".join(f"{key}={level}" for key, level in zip(factors, setting, strict=True))
            run = made / "trials" / f"{name},seed={seed}" / "rl"
            rows = [
                {"step": step, "kl/sequence": value + (step - 7.5) if step > 6 else 0.0, "kl/coef": step / 10}
                for step in range(1, steps + 1)
            ]
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


MET = {
    ("4", "oak"): [3.9, 4.0, 4.1], ("4", "elm"): [4.2, 4.3, 4.4],
    ("2", "oak"): [2.0, 2.0, 2.0], ("2", "elm"): [1.9, 2.0, 2.1],
}  # fmt: skip


def test_a_budget_is_reached_by_the_mean_of_the_last_quarter(tmp_path: Path) -> None:
    found = study_dial.budgets(read(dialled(tmp_path / "s", MET)))
    # By the other factor, then by the budget; steps 7 and 8 count, half a nat below and above.
    assert [(each.others, each.target) for each in found] == [("oak", 2), ("oak", 4), ("elm", 2), ("elm", 4)]
    assert found[1].reached == pytest.approx([3.9, 4.0, 4.1])
    assert found[3].ratio.mean == pytest.approx(4.3 / 4)
    assert found[0].coef is not None and found[0].coef.mean == pytest.approx(0.8)
    # after.kl of the made study: 2 * place of the level + seed / 10, and budget 2 comes second there.
    assert found[0].fresh is not None and found[0].fresh.mean == pytest.approx(2.1)
    assert (found[0].early, found[0].chosen) == (0, [])


def test_what_ended_early_or_is_not_of_the_last_step_is_said(tmp_path: Path) -> None:
    folder = dialled(tmp_path / "s", MET)
    results = json.loads((folder / "results.json").read_text())
    for trial in results["trials"]:
        trial["outcomes"]["rl"]["final_step"] = 6 if trial["seed"] == 1 else 8
        if trial["seed"] == 0:
            path = folder / trial["folders"]["rl"] / "metrics.jsonl"
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:7]))
    (folder / "results.json").write_text(json.dumps(results))
    facts = read(folder)
    found = study_dial.budgets(facts)
    assert [(each.early, each.chosen) for each in found] == [(1, [6])] * 4
    table = study_dial._table(found)
    assert table.count("1\u00a0ended\u00a0early") == 4 and table.count("step\u00a06") == 4


def claim(folder: Path, reached: Mapping[tuple[str, str], list[float]]) -> list[str]:
    return study_dial.claim(study_dial.budgets(read(dialled(folder, reached))))


def test_budgets_met_are_met_within_the_furthest_mean_and_so_many_intervals(tmp_path: Path) -> None:
    first, second = claim(tmp_path / "s", MET)
    # Elm at 4 has the mean 4.3, 7.5% over. Its interval reaches 4.3 + 4.302653 * 0.1 / sqrt(3) = 4.548, 13.7%
    # over; elm at 2 reaches 2 +- 0.248, 12.5%; those of oak less.
    assert first == (
        "Mean KL over the last quarter of the steps is within 8% of the KL budget in all 4 settings "
        "(furthest, kl.target 4, elm: 4.30 of 4 nats); whole 95% intervals over seeds are within 20% in 4 "
        "of 4."
    )
    # At 4 nats 0.3 apart, which is 7.5% of it; at 2 nats they do not differ.
    assert second == "Settings of one budget differ most at 4 nats: their means go from 4.00 to 4.30."


def test_a_budget_missed_is_named(tmp_path: Path) -> None:
    first, second = claim(tmp_path / "s", MET | {("2", "elm"): [5.8, 6.0, 6.2]})
    assert "is within 20% of the KL budget in 3 of 4 (furthest, kl.target 2, elm: 6.00 of 2 nats)" in first
    assert first.endswith("within 20% in 3 of 4.")
    assert second == "Settings of one budget differ most at 2 nats: their means go from 2.00 to 6.00."


def test_a_mean_on_the_spot_with_a_wide_interval_is_no_interval_within(tmp_path: Path) -> None:
    first, _ = claim(tmp_path / "s", MET | {("2", "oak"): [1.0, 2.0, 3.0]})
    assert "is within 8% of the KL budget in all 4 settings" in first
    assert first.endswith("whole 95% intervals over seeds are within 20% in 3 of 4.")


def test_one_seed_claims_the_mean_alone(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "s", {"kl.target": ["4"]}, seeds=1, config=config)
    rows = [{"step": step, "kl/sequence": 4.4} for step in (1, 2, 3, 4)]
    path = folder / "trials/kl.target=4,seed=0/rl/metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = study_dial.budgets(read(folder))
    assert (found.others, found.reached, found.coef) == ("", [4.4], None)
    (only,) = study_dial.claim([found])
    assert only == (
        "Mean KL over the last quarter of the steps is within 10% of the KL budget in the one setting "
        "(furthest, 4.40 of 4 nats); fewer than three seeds a setting leave open what is chance."
    )


def test_the_page_has_the_dial_and_each_panel_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("heat", "interaction", "frontier"):  # other sections, and drawing takes its time
        monkeypatch.setattr(study_dial.draw, name, lambda *_: "")
    facts = read(dialled(tmp_path / "s", MET))
    text = study.build(facts, [])
    assert '<section id="dial"' in text and "is within 8% of the KL budget in all 4 settings" in text
    reached, ways = study_dial.charts(facts, study_dial.budgets(facts))
    assert [chart.title for chart in (*reached, *ways)] == ["oak", "elm", "oak", "elm"]
    assert "elm: asked 2, reached 2.00 (1.75 to 2.25); asked 4, reached 4.30 (4.05 to" in reached[1].alt
    assert "elm: 2 asked: 2.50 at step 8; 4 asked: 4.80 at step 8." in ways[1].alt


def test_a_study_without_a_budget_has_no_dial(tmp_path: Path) -> None:
    plain = fabricate(tmp_path / "a", ONE, seeds=1, config=lambda setting: {"kl": {"target": None}})
    assert study_dial.budgets(read(plain)) == []
    assert study_dial.budgets(read(fabricate(tmp_path / "b", ONE, seeds=1))) == []
