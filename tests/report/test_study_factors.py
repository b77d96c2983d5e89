"""The charts of a study's factors: what stands in a cell, what is split into panels, and what is averaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from talltree.evals.seeds import over_seeds
from talltree.report import study, study_charts, study_factors
from talltree.report.study_facts import StudyFacts, decided_by, read

from .made_study import ONE, THREE, TWO, change, fabricate


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of a chart are read here; drawing it takes most of the time."""
    for name in ("heat", "interaction", "frontier"):
        monkeypatch.setattr(study_factors.draw, name, lambda *_: "")


def facts(folder: Path, factors: dict[str, list[str]], **more: Any) -> StudyFacts:
    return read(fabricate(folder / "s", factors, **more))


def test_heat_maps_average_over_seeds(tmp_path: Path) -> None:
    reward, kl, _ = study_factors.heat_maps(facts(tmp_path, TWO))
    assert (reward.title, reward.note, kl.title) == ("Reward", "a story", "KL")
    (only,) = reward.charts
    # 10 * place + place + mean of the seeds 0, 1, 2
    assert "middle, 1: 13.0" in only.alt and "small, 0: 1.00" in only.alt and "large, 0.1: 22.0" in only.alt


def test_a_third_factor_splits_a_heat_map_and_is_not_averaged_over(tmp_path: Path) -> None:
    reward, *_ = study_factors.heat_maps(facts(tmp_path, THREE))
    # kl.coef has three levels, and of the two factors with two the first comes with it.
    assert [chart.title for chart in reward.charts] == ["left", "right"]
    # Mean of the seeds 1, kl.coef 0.1 adds 10, large 1, right 100.
    assert (
        "by kl.coef and size, left: 0, small: 1.00; 0, large: 2.00; 0.1, small: 11.0" in reward.charts[0].alt
    )
    assert "by kl.coef and size, right: 0, small: 101; 0, large: 102; 0.1, small: 111" in reward.charts[1].alt
    assert "means" not in reward.note


def test_the_maps_of_one_outcome_share_their_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []
    monkeypatch.setattr(study_factors.draw, "heat", lambda *given: limits.append(given[-1]) or "")
    study_factors.heat_maps(facts(tmp_path, THREE))
    # From small, left at coefficient 0 to large, right at coefficient 1: 1 to 1 + 20 + 1 + 100.
    assert limits[:2] == [(1, 122)] * 2


def test_too_many_combinations_are_averaged_and_named(tmp_path: Path) -> None:
    many = {"a": [f"a{n}" for n in range(3)], "b": [f"b{n}" for n in range(3)], "c": list("pqrstuvwx")[:9]}
    made = facts(tmp_path, many, seeds=1)
    # a and c are shown, b is split; were a and b shown, c would have nine panels, one too many.
    panels, words = study_factors.splits(made, ("a", "c"))
    assert ([panel.title for panel in panels], words) == (["b0", "b1", "b2"], "")
    panels, words = study_factors.splits(made, ("a", "b"))
    assert [panel.title for panel in panels] == [""]
    assert words == "means over c (9 levels), whose 9 combinations are too many to show"
    noted = [group.note for group in study_factors.interactions(made) if "before and after" in group.title]
    assert all("means over b (3 levels) and c (9 levels), whose 27 combinations" in note for note in noted)


def test_combinations_that_no_trial_has_get_no_panel(tmp_path: Path) -> None:
    made = facts(tmp_path, THREE, seeds=1)
    settings = [
        each for each in made.settings if each.levels["seat"] == "left" or each.levels["size"] == "small"
    ]
    panels, _ = study_factors.splits(made._replace(settings=settings), ("kl.coef",))
    assert [panel.title for panel in panels] == ["small, left", "small, right", "large, left"]


def test_interactions_show_before_and_after_of_each_level(tmp_path: Path) -> None:
    found = study_factors.interactions(facts(tmp_path, TWO))
    assert [group.title for group in found] == [
        "Reward, before and after", "distinct-2, before and after", "Reward by kl.coef", "KL by kl.coef",
    ]  # fmt: skip
    assert found[0].note == "a story; lines: size"
    assert [chart.title for chart in found[0].charts] == ["kl.coef 0", "kl.coef 0.1", "kl.coef 1"]
    assert "small: before 1.00, after 2.00; middle: before 1.00, after 12.0;" in found[0].charts[1].alt
    assert "small: 0 1.00, 0.1 2.00, 1 3.00; middle: 0 11.0," in found[2].charts[0].alt


def test_factor_against_factor_has_a_panel_for_each_level_of_a_third(tmp_path: Path) -> None:
    found = {group.title: group.charts for group in study_factors.interactions(facts(tmp_path, THREE))}
    crossed = found["Reward by size"]
    assert [chart.title for chart in crossed] == ["left", "right"]
    assert "kl.coef 0: small 1.00, large 2.00; kl.coef 0.1: small 11.0, large 12.0;" in crossed[0].alt
    assert "kl.coef 0: small 101, large 102; kl.coef 0.1: small 111, large 112;" in crossed[1].alt
    before = found["Reward, before and after"]
    assert [chart.title for chart in before] == ["small, left", "small, right", "large, left", "large, right"]
    assert "large, right (a story): kl.coef 0: before 1.00, after 102;" in before[3].alt


def test_a_factor_alone_has_no_heat_map(tmp_path: Path) -> None:
    assert study_factors.heat_maps(facts(tmp_path, ONE)) == []


# --- one reward's points are none of another's -------------------------------------------------------------

REWARDS = {"reward": ["letters", "words"], "kl.coef": ["0", "0.1"]}


def test_an_option_is_decided_by_the_factor_whose_levels_fix_it(tmp_path: Path) -> None:
    def config(setting: Any) -> dict[str, Any]:
        return {"reward": setting["reward"], "kl": {"target": 3 if setting["kl.coef"] == "0" else 6}}

    made = facts(tmp_path, REWARDS, config=config)
    assert decided_by(made, "reward") == ["reward"]
    assert decided_by(made, "kl.target") == ["kl.coef"]
    assert decided_by(made, "learning_rate") == []


def test_settings_of_two_rewards_are_not_compared(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "s", REWARDS, config=lambda setting: {"reward": setting["reward"]})
    made = read(folder)
    assert [chart.title for chart in study_charts.frontiers(made)] == ["letters", "words"]
    first, second = study_charts.by_reward(made).values()
    # KL is the same within a reward here, so the setting that earns one more leads, in either reward.
    assert [point.is_chosen for point in study_charts.points(first)] == [False, True]
    assert [point.is_chosen for point in study_charts.points(second)] == [False, True]
    words = " ".join(study._verdict(made))
    # Reward 1 + 1 and 1 + 10 + 1, each over the seeds 0, 1, 2.
    assert "Highest reward with letters: kl.coef 0.1, 2.00" in words
    assert "Highest reward with words: kl.coef 0.1, 12.0" in words


def test_a_factor_that_decides_the_reward_gives_panels_rather_than_rows(tmp_path: Path) -> None:
    by_seat = {"seat": ["left", "right"], "size": ["small", "large"], "kl.coef": ["0", "1"]}
    made = facts(tmp_path, by_seat, seeds=1, config=lambda setting: {"reward": setting["seat"]})
    reward, kl, _ = study_factors.heat_maps(made)
    assert [chart.title for chart in reward.charts] == ["left", "right"]
    # Of kl.coef 1 right at size small: 10 for the seat, 100 for the coefficient.
    assert (
        "by size and kl.coef, right: small, 0: 10.0; small, 1: 110; large, 0: 11.0;" in reward.charts[1].alt
    )
    assert reward.note == "a story; each seat counts its own reward, so compare within one of them"
    assert kl.note == "nats / sequence"
    titles = [group.title for group in study_factors.interactions(made)]
    assert titles[-2:] == ["Reward by size", "KL by size"]


def test_no_line_goes_from_one_reward_to_another(tmp_path: Path) -> None:
    made = facts(tmp_path, REWARDS, config=lambda setting: {"reward": setting["reward"]})
    # The first factor with few levels gives the lines, here the reward; the other one is the x axis.
    assert [group.title for group in study_factors.interactions(made)][-2:] == [
        "Reward by kl.coef",
        "KL by kl.coef",
    ]
    turned = {"kl.coef": ["0", "0.1"], "reward": ["letters", "words"]}
    made = read(fabricate(tmp_path / "t", turned, config=lambda setting: {"reward": setting["reward"]}))
    titles = [group.title for group in study_factors.interactions(made)]
    assert "KL by reward" in titles and "Reward by reward" not in titles
    assert [panel.title for panel in study_charts.panels(made)] == ["letters", "words"]


def test_an_interval_of_nats_does_not_go_below_0() -> None:
    kl = study_charts.Measure("after.kl", "KL", "nats / sequence")
    found = study_charts.within(kl, over_seeds([0.0, 0.0, 12.0]))
    # Mean 4, deviation sqrt(48), t of two degrees of freedom 4.302653: 4 +- 17.2106.
    assert found is not None and (found.mean, found.low) == (4.0, 0.0)
    assert found.high == pytest.approx(21.2106, abs=1e-4)
    below = study_charts.within(kl, over_seeds([-1e-6, -2e-6, -3e-6]))
    assert below is not None and below.low == below.mean == pytest.approx(-2e-6)
    assert study_charts.within(kl, None) is None


def test_an_interval_of_a_share_ends_where_shares_do(tmp_path: Path) -> None:
    made = facts(tmp_path, ONE)
    unique = study_charts.Measure("u", "Unique", "share", True)
    found = study_charts.within(unique, over_seeds([1.0, 1.0, 0.97]))
    assert found is not None and found.high == 1.0 and found.low == pytest.approx(0.94697, abs=1e-5)
    reward = study_charts.Measure("after.reward", "Reward", "a story")
    level = study_factors.mean_at(made, {"kl.coef": "0"}, reward)
    assert level is not None and level.low == pytest.approx(1 - 2.484138, abs=1e-6)


def test_one_reward_has_one_frontier_without_a_title(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "s", TWO, config=lambda setting: {"reward": "letters"})
    assert [chart.title for chart in study_charts.frontiers(read(folder))] == [""]
    change(folder, lambda trial: trial["outcomes"]["rl"].pop("after.kl"))
    assert study_charts.frontiers(read(folder)) == []
    assert json.loads((folder / "results.json").read_text())["study"] == "made up"
