"""The page of a study: its figures, its charts, its stories, and that no text of a model can act."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from talltree import cli, yaml_text
from talltree.errors import RunError
from talltree.evals.seeds import interval_words, over_seeds
from talltree.report import study, study_charts, study_draw, study_factors, study_facts, study_gallery

from .made_study import ONE, TWO, fabricate


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what a page says: drawing its charts takes most of the time."""
    for name in ("bands", "heat", "interaction", "frontier"):
        monkeypatch.setattr(study_draw, name, lambda *_: "")


def page(folder: Path) -> str:
    facts = study_facts.read(folder)
    return study.build(facts, study_gallery.shelves(facts))


# --- figures over seeds ------------------------------------------------------------------------------------


def test_one_seed_has_no_interval_two_a_range_three_a_t_interval() -> None:
    assert over_seeds([3.0]) == (3, None, None, 1, "")
    assert over_seeds([1.0, 4.0]) == (2.5, 1, 4, 2, "range")
    mean, low, high, n, kind = over_seeds([1.0, 2.0, 3.0])
    # deviation 1, t(0.975, 2 degrees of freedom) = 4.302653 from a table, over sqrt(3)
    assert (mean, n, kind) == (2, 3, "t")
    assert low is not None and high is not None
    assert (mean - low, high - mean) == (pytest.approx(2.484138, abs=1e-6),) * 2
    assert interval_words(["t", "", "t"]) == "95% t interval over seeds; one seed, so no interval"


def test_a_curve_is_the_mean_over_seeds_and_ends_with_the_first_that_ends(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "s", ONE, seeds=2)
    path = folder / "trials/kl.coef=0.1,seed=1/rl/metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:6]) + '{"step": 7, "rew')
    first, second = study_facts.read(folder).settings
    curve = study_facts.curve(second, "reward/mean")
    assert curve is not None and curve.steps == [1, 2, 3, 4, 5, 6]
    # Rewards 10 and 11 at the last of 8 steps: at step 4 they are 5 and 5.5.
    assert (curve.mean[3], curve.low[3], curve.high[3]) == (5.25, 5, 5.5)
    whole = study_facts.curve(first, "reward/mean")
    assert whole is not None and whole.steps[-1] == 8
    assert study_facts.curve(first, "loss/train") is None


def test_a_band_goes_no_further_than_the_seeds(tmp_path: Path) -> None:
    three, one = (study_facts.read(fabricate(tmp_path / str(n), ONE, seeds=n)).settings[1] for n in (3, 1))
    # Rewards 10, 11 and 12 at the last of 8 steps; a t interval would reach from 8.5 to 13.5.
    found = [study_facts.curve(each, "reward/mean") for each in (three, one)]
    assert found[0] is not None and (found[0].mean[7], found[0].low[7], found[0].high[7]) == (11, 10, 12)
    assert found[1] is not None and (found[1].mean[7], found[1].low, found[1].high) == (10, [], [])
    assert study_charts._limits([found[0]], False) == pytest.approx((10 / 8 - 0.43, 12 + 0.43))


def test_the_frontier_are_the_settings_that_no_other_beats(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "s", {"kl.coef": ["0", "0.1", "1", "2"]}, seeds=1)
    results = json.loads((folder / "results.json").read_text())
    for trial, (reward, kl) in zip(results["trials"], [(5, 1), (5, 2), (7, 4), (6, 5)], strict=True):
        trial["outcomes"]["rl"] |= {"after.reward": reward, "after.kl": kl}
    (folder / "results.json").write_text(json.dumps(results))
    found = study_charts.points(study_facts.read(folder).settings)
    assert [point.is_chosen for point in found] == [True, False, True, False]


@pytest.mark.parametrize(("key", "best"), [("after.reward", "0.1"), ("after.loss", "0")])
@pytest.mark.parametrize(("apart", "said"), [(100.0, False), (0.5, True)])
def test_a_best_that_may_be_chance_is_called_so(
    tmp_path: Path, key: str, best: str, apart: float, said: bool
) -> None:
    folder = fabricate(tmp_path / "s", ONE, seeds=3)
    results = json.loads((folder / "results.json").read_text())
    for trial in results["trials"]:
        trial["outcomes"]["rl"] = {key: trial["seed"] + apart * (trial["setting"]["kl.coef"] == "0.1")}
    (folder / "results.json").write_text(json.dumps(results))
    words = " ".join(study._verdict(study_facts.read(folder)))
    # Lower is better of a loss: whichever way, intervals of +-2.5 around means 0.5 or 100 apart.
    assert f": kl.coef {best}, " in words
    assert ("the order may be chance" in words) == said


def test_a_study_of_the_loop_shows_the_figures_of_its_rounds(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "s", TWO)
    results = json.loads((folder / "results.json").read_text())
    for trial in results["trials"]:
        place = TWO["size"].index(trial["setting"]["size"])
        trial["outcomes"]["rl"] = {
            "rounds.rlhf/reward_accuracy": 0.6 + 0.1 * place, "rounds.rlhf/reward_before": 0.5,
            "rounds.rlhf/reward_after": 1.0 + place, "wall_time_seconds": 60.0,
        }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    facts = study_facts.read(folder)
    assert [each.title for each in study_charts.measures(facts)] == [
        "Reward model's accuracy", "Reward by its own model",
    ]  # fmt: skip
    assert "Highest reward model's accuracy: large" in study._verdict(facts)[1]
    first = study_factors.interactions(facts)[0].charts[0]
    assert "small: before 0.500, after 1.00; middle: before 0.500, after 2.00;" in first.alt


def test_the_clock_is_no_outcome(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "s", ONE)
    results = json.loads((folder / "results.json").read_text())
    for trial in results["trials"]:
        trial["outcomes"]["rl"] = {"wall_time_seconds": 60.0, "documents": 7}
    (folder / "results.json").write_text(json.dumps(results))
    assert [each.key for each in study_charts.measures(study_facts.read(folder))] == ["documents"]


@pytest.mark.parametrize(
    ("factors", "titles", "lines"),
    [
        (ONE, [""], [2]),
        (TWO, ["small", "middle", "large"], [3, 3, 3]),
        ({"size": ["small", "large"], "kl.coef": ["0", "1"]}, ["small", "large"], [2, 2]),
        ({"kl.coef": [str(at) for at in range(6)]}, [f"kl.coef {at}" for at in range(6)], [1] * 6),
    ],
)
def test_a_panel_never_holds_more_lines_than_there_are_colours(
    tmp_path: Path, factors: dict[str, list[str]], titles: list[str], lines: list[int]
) -> None:
    facts = study_facts.read(fabricate(tmp_path / "s", factors, seeds=1))
    found = study_charts.panels(facts)
    assert [panel.title for panel in found] == titles
    assert [len(panel.settings) for panel in found] == lines
    assert max(lines) <= len(study_draw.COLOURS)


def test_labels_at_line_ends_keep_their_distance() -> None:
    places = study_draw.spread_out([1.0, 1.01, 0.0, 1.0], 0, 1, gap=0.1)
    ranked = sorted(places)
    assert all(b - a >= 0.1 - 1e-9 for a, b in zip(ranked, ranked[1:], strict=False))
    assert max(places) <= 1 and places[2] == 0
    assert places[1] == max(places)


# --- the page ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_what_was_found_and_how_sure_that_is(tmp_path: Path) -> None:
    text = page(fabricate(tmp_path / "s", ONE))
    assert "All 6 trials finished: 2 settings, 3 seeds each." in text
    assert "Highest reward: kl.coef 0.1, 11.0 (8.52 to 13.5, 95% t interval over seeds)" in text
    assert "at 2.10 nats of KL a sequence" in text
    assert "so the order may be chance" not in text
    assert "seed, so no interval" not in text


@pytest.mark.usefixtures("undrawn")
def test_one_seed_says_so(tmp_path: Path) -> None:
    text = page(fabricate(tmp_path / "s", ONE, seeds=1))
    assert "One seed a setting: differences may be chance" in text
    assert "one seed, so no interval" in text


@pytest.mark.usefixtures("undrawn")
def test_failed_and_given_up_trials_are_named_with_their_reasons(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "s", ONE)
    results = json.loads((folder / "results.json").read_text())
    results["trials"][0] |= {"state": "failed", "reason": "killed <b>", "outcomes": {}}
    results["trials"][1] |= {"state": "stopped", "reason": "given up at step 3"}
    (folder / "results.json").write_text(json.dumps(results))
    text = page(folder)
    assert "4 of 6 trials finished" in text and "1 failed and 1 given up; why stands under" in text
    assert "killed &lt;b&gt;" in text and "given up at step 3" in text


def test_nothing_of_a_story_is_markup_and_nothing_runs(tmp_path: Path) -> None:
    text = page(fabricate(tmp_path / "s", TWO))
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#x27;so &quot;on&quot;") == 3 * 9
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None and policy[1].startswith(
        "default-src 'none'; img-src data:; style-src 'sha256-"
    )
    assert "script-src" not in policy[1]
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert "a &lt; b" in text


def test_stories_stand_side_by_side_from_the_same_prompt(tmp_path: Path) -> None:
    shelves = study_gallery.shelves(study_facts.read(fabricate(tmp_path / "s", ONE)))
    assert [shelf.title for shelf in shelves] == ["A typical story", "A good one", "A weak one"]
    assert [label for label, _ in shelves[0].cards] == [
        "Before: the model as it came",
        "kl.coef 0",
        "kl.coef 0.1",
    ]
    # Rewards 0 to 10: the median is 5, the 9th decile 9, the 1st 1.
    assert [[story["reward"] for _, story in shelf.cards] for shelf in shelves] == [[5] * 3, [9] * 3, [1] * 3]
    assert '<span class="prompt"><mark>Once</mark></span> a tree 5' in study_gallery.html(shelves[0])


def test_each_model_that_settings_start_from_is_shown_before(tmp_path: Path) -> None:
    sizes = {"size": ["small", "large"], "kl.coef": ["0", "1"]}
    folder = fabricate(
        tmp_path / "s", sizes, 1, config=lambda setting: {"model_name_or_path": setting["size"]}
    )
    shelves = study_gallery.shelves(study_facts.read(folder))
    assert [label for label, _ in shelves[0].cards] == [
        "Before: small", "Before: large", "small, kl.coef 0", "small, kl.coef 1", "large, kl.coef 0",
        "large, kl.coef 1",
    ]  # fmt: skip


def test_several_prompts_have_a_shelf_each(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "s", ONE, seeds=1)
    for path in folder.glob("trials/*/rl/*.jsonl"):
        if path.name != "metrics.jsonl":
            rows = [{"prompt": f"P{at % 3}", "completion": " x", "reward": at} for at in range(9)]
            rows += [{"prompt": str(path), "completion": " alone", "reward": 1}]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shelves = study_gallery.shelves(study_facts.read(folder))
    assert [shelf.title for shelf in shelves] == ["“P0”", "“P1”", "“P2”"]
    assert [story["reward"] for _, story in shelves[1].cards] == [4, 4, 4]  # of 1, 4, 7


def test_the_command_writes_the_page_of_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fabricate(tmp_path / "s", ONE, seeds=1)
    assert cli.main(["report", str(folder)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert cli.main(["report", str(folder)]) == 0  # a report may be replaced


def test_a_study_without_results_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml_text.dump({}))
    with pytest.raises(RunError, match=r"has no results.json yet; run the study first: talltree sweep"):
        study.write(tmp_path, None)


def test_damaged_results_are_one_line(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "s", ONE, seeds=1)
    (folder / "results.json").write_text("{")
    with pytest.raises(RunError, match=r"results.json is damaged: Expecting"):
        study.write(folder, None)
