"""What a study file becomes: settings, names, the config of every trial; and what is refused beforehand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from talltree import cli, yaml_text
from talltree.errors import ConfigError
from talltree.stages.sweep import loop, results, trials
from talltree.stages.sweep.config import Config
from talltree.stages.sweep.stopping import value_at, verdict
from talltree.stages.sweep.study import Stop, changed, read

from .fakes import install

FAKE = [{"stage": "fake"}]
CHAIN = [
    {"stage": "fake", "name": "base"},
    {"stage": "fake", "name": "tuned", "set": {"start": "{base}/final"}},
]


@pytest.fixture(autouse=True)
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch)


def study(folder: Path, **content: object) -> str:
    path = folder / "study.yaml"
    path.write_text(yaml_text.dump({"chain": FAKE} | content))
    return str(path)


def made(folder: Path, **content: object) -> list[trials.Trial]:
    given = read(study(folder, **content))
    return [
        each for setting in trials.settings(given) for each in trials.make(given, folder / "out", *setting)
    ]


def test_a_grid_times_seeds_is_every_combination(tmp_path: Path) -> None:
    found = made(tmp_path, grid={"level": [1, 2.5], "kl.coef": [0.1, 1e-5]}, seeds=2)
    assert [trial.name for trial in found] == [
        "level=1,kl.coef=0.1,seed=0", "level=1,kl.coef=0.1,seed=1",
        "level=1,kl.coef=1e-05,seed=0", "level=1,kl.coef=1e-05,seed=1",
        "level=2.5,kl.coef=0.1,seed=0", "level=2.5,kl.coef=0.1,seed=1",
        "level=2.5,kl.coef=1e-05,seed=0", "level=2.5,kl.coef=1e-05,seed=1",
    ]  # fmt: skip
    last = found[-1].jobs[0].config
    assert (last["level"], last["kl"]["coef"], last["seed"]) == (2.5, 1e-5, 1)
    assert last["output_dir"] == str(tmp_path / "out/trials/level=2.5,kl.coef=1e-05,seed=1/fake")


def test_a_factor_may_set_several_keys_by_the_name_of_its_level(tmp_path: Path) -> None:
    sizes = {"small": {"steps": 2, "kl.coef": 0.0}, "large": {"steps": 9, "kl.coef": 1.0}}
    found = made(tmp_path, grid={"size": sizes, "level": [1, 2]})
    assert [trial.setting for trial in found] == [
        {"size": "small", "level": "1"}, {"size": "small", "level": "2"},
        {"size": "large", "level": "1"}, {"size": "large", "level": "2"},
    ]  # fmt: skip
    assert [trial.jobs[0].config["steps"] for trial in found] == [2, 2, 9, 9]


def test_points_are_settings_one_by_one(tmp_path: Path) -> None:
    points = [{"level": 1, "steps": 2}, {"name": "long", "kl": {"coef": 0.5}, "steps": 7}]
    found = made(tmp_path, points=points, seeds=[5])
    assert [trial.name for trial in found] == ["level=1,steps=2,seed=5", "long,seed=5"]
    assert [trial.jobs[0].config["kl"]["coef"] for trial in found] == [0.0, 0.5]


def test_recipe_then_set_then_grid_then_seed(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("level: 5\nsteps: 6\npause: 7\nseed: 8\nkl:\n  coef: 9\n")
    chain = [{"stage": "fake", "recipe": str(recipe), "set": {"steps": 10, "kl": {"coef": 11}}}]
    config = made(tmp_path, chain=chain, grid={"level": [12]}, seeds=[13])[0].jobs[0].config
    assert [config[key] for key in ("pause", "steps", "level", "seed")] == [7, 10, 12, 13]
    assert config["kl"] == {"coef": 11}


def test_earlier_links_are_shared_by_the_trials_that_agree_on_them(tmp_path: Path) -> None:
    found = made(tmp_path, chain=CHAIN, grid={"base.level": [1, 2], "tuned.level": [3, 4]}, seeds=2)
    assert len(found) == 8
    bases = {trial.jobs[0].folder for trial in found}
    assert len(bases) == 4  # two levels, two seeds
    assert len({trial.jobs[1].folder for trial in found}) == 8
    one, *_, last = found
    assert one.jobs[1].config["start"] == f"{one.jobs[0].folder}/final"
    assert one.jobs[1].after == one.jobs[0].folder and one.jobs[0].after is None
    assert one.jobs[0].folder != last.jobs[0].folder


def test_a_link_that_is_not_seeded_is_shared_by_all_seeds(tmp_path: Path) -> None:
    chain = [{**CHAIN[0], "seeded": False, "set": {"seed": 7}}, CHAIN[1]]
    found = made(tmp_path, chain=chain, seeds=3)
    assert len({trial.jobs[0].folder for trial in found}) == 1
    assert [trial.jobs[0].config["seed"] for trial in found] == [7, 7, 7]
    assert [trial.jobs[1].config["seed"] for trial in found] == [0, 1, 2]


def test_a_step_that_was_judged_before_an_interruption_is_not_judged_again(tmp_path: Path) -> None:
    stop = {"metric": "reward/mean", "steps": [2, 4], "window": 1}
    (tmp_path / "s.yaml").write_text(yaml_text.dump({"chain": FAKE, "seeds": 2, "stop": stop}))
    given = read(str(tmp_path / "s.yaml"))
    made = trials.make(given, tmp_path / "out", {}, {})
    folder = made[0].jobs[0].folder
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(
        "".join(f'{{"step": {n}, "reward/mean": 1.0}}\n' for n in (1, 2, 3))
    )
    board = loop.Board(given, tmp_path / "out", [], {}, {}, {}, {})
    board.add(made)
    assert board.judged == {made[0].name: {2}, made[1].name: set()}


def test_a_shared_link_is_one_value_however_many_seeds_used_it() -> None:
    rows = [
        {"setting": {}, "state": "finished", "folders": {"base": "links/base", "tuned": f"trials/{seed}"},
         "outcomes": {"base": {"loss": 2.0}, "tuned": {"loss": 1.0 + seed}}}
        for seed in range(3)
    ]  # fmt: skip
    (found,) = results._settings(rows)
    assert found["outcomes"]["base"]["loss"] == {"mean": 2, "low": None, "high": None, "n": 1, "kind": ""}
    assert found["outcomes"]["tuned"]["loss"]["n"] == 3


def test_moving_the_study_folder_changes_no_shared_folder(tmp_path: Path) -> None:
    given = read(study(tmp_path, chain=CHAIN))
    here, there = (trials.make(given, tmp_path / name, {}, {})[0] for name in ("a", "b"))
    assert here.jobs[0].folder.name == there.jobs[0].folder.name
    assert here.jobs[1].identity == there.jobs[1].identity


def test_keys_inside_an_option_that_is_a_mapping_are_set_one_by_one(tmp_path: Path) -> None:
    values: dict[str, object] = {"rl": {"steps": 3, "kl": {"coef": 1}}}
    known = {"rl", "kl.coef", "level"}
    trials._put(values, "rl.kl.coef", 2, known)
    trials._put(values, "kl.coef", 4, known)
    assert values == {"rl": {"steps": 3, "kl": {"coef": 1}, "kl.coef": 2}, "kl.coef": 4}


def test_rl_may_be_launched_in_several_processes(tmp_path: Path) -> None:
    launch = "accelerate launch --multi_gpu --num_processes 2"
    (trial,) = made(tmp_path, chain=[{"stage": "rl", "launch": launch}])
    assert trial.jobs[0].launch == tuple(launch.split())


def test_a_quoted_number_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text('chain:\n- stage: rl\n  set: {prompt: "3"}\ngrid:\n  prompt: ["4", "1e-3"]\n')
    given = read(str(path))
    configs = [
        trials.make(given, tmp_path, *setting)[0].jobs[0].config["prompt"]
        for setting in trials.settings(given)
    ]
    assert configs == ["4", "1e-3"]


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ({"model": "me/model v2"}, "model=me-model-v2,seed=0-"),
        ({"long": "x" * 200}, "long=" + "x" * 86 + "-"),
    ],
)
def test_a_name_that_is_no_folder_ends_with_a_hash(labels: dict[str, str], name: str) -> None:
    found = trials.trial_name(labels, 0, None)
    assert found.startswith(name) and len(found) <= trials.LONGEST_NAME
    assert found != trials.trial_name({key: value + "!" for key, value in labels.items()}, 0, None)


def test_the_command_line_changes_options_and_seeds(tmp_path: Path) -> None:
    given = read(study(tmp_path, chain=CHAIN, grid={"tuned.level": [4]}))
    given = changed(given, {"base.steps": 9, "tuned.kl.coef": 0.5, "tuned.level": 1}, 2)
    found = [each for setting in trials.settings(given) for each in trials.make(given, tmp_path, *setting)]
    assert [trial.seed for trial in found] == [0, 1]
    base, tuned = (job.config for job in found[0].jobs)
    assert (base["steps"], tuned["steps"], tuned["kl"]["coef"], tuned["level"]) == (9, 3, 0.5, 4)
    with pytest.raises(ConfigError, match="--set: steps: a key of a chain is LINK.key; nearest link: base"):
        changed(given, {"steps": 9}, None)
    with pytest.raises(ConfigError, match=r"--seeds: seeds \[\] must be at least one"):
        changed(given, {}, [])


# --- what is refused ---------------------------------------------------------------------------------------


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"grid": {"levl": [1]}}, "trial levl=1,seed=0: levl: unknown option (value 1); nearest known: level"),
    ({"grid": {"kl.coef": [-1]}}, "trial kl.coef=-1,seed=0: kl.coef: -1 is not allowed; allowed: float"),
    ({"grid": {"level": [1, 13]}}, "trial level=13,seed=0: level 13 brings bad luck; use 12 or 14"),
    ({"grid": {"level": []}}, "grid.level has no values, which makes 0 trials; give at least one"),
    ({"grid": {"level": 3}}, "grid.level: 3 is not a list; write [3]"),
    ({"grid": {"level": [1, 2, 1]}}, "level has 1 twice; remove one"),
    ({"grid": {"size": {"small": 3}}}, "grid.size.small: 3 is not a mapping of keys to values"),
    ({"grid": {"level": [1]}, "points": [{"level": 2}]}, "level is set twice, once by point; remove one"),
    ({"points": [3]}, "line 3: points: [3] is not allowed; allowed: list of mapping of text"),
    ({"seeds": []}, "seeds [] must be at least one, and each once; try 3"),
    ({"seeds": [1, 1]}, "seeds [1, 1] must be at least one, and each once"),
    ({"chain": []}, "chain is empty; name a stage, such as chain: [{stage: rl}]"),
    ({"chain": [{"stage": "fke"}]}, "chain, link 1: no stage 'fke'; nearest: fake"),
    ({"chain": [{"stage": "fake", "recipes": "x"}]}, "link 1: recipes: unknown option"),
    ({"chain": [{"stage": "fake", "recipe": "gone.yaml"}]}, "recipe gone.yaml does not exist; name a config"),
    ({"chain": [{"stage": "report"}]}, "link 1: report has no option 'output_dir' to name its folder"),
    ({"chain": [*FAKE, *FAKE]}, "two links are called 'fake'; give one another `name`"),
    ({"chain": [{"stage": "fake", "name": "a b"}]}, "name 'a b' must be letters, digits and _"),
    (
        {"chain": [{"stage": "fake", "launch": "accelerate launch"}]},
        "fake does not train in several processes",
    ),
    (
        {"chain": [{"stage": "fake", "set": {"start": "{sft}/final"}}]},
        "no link is called 'sft'; nearest: fake",
    ),
    (
        {"chain": [{"stage": "fake", "set": {"start": "{fake}/final"}}]},
        "'{fake}/final' needs fake, which is no earlier link of the chain",
    ),
    ({"chain": CHAIN, "grid": {"level": [1]}}, "level: a key of a chain is LINK.key; nearest link:"),
    ({"stop": {"metric": "reward/mean"}}, "stop needs both, metric and steps"),
    ({"search": {"trials": 3}}, "a search needs both, search.trials and search.space"),
    ({"search": {"trials": 3, "space": {"level": 3}}}, "search.space.level: 3 is not {low, high}"),
    ({"search": {"trials": 3, "space": {"level": {"low": 3, "high": 1}}}}, "low 3 and high 1 are no range"),
    (
        {"search": {"trials": 3, "space": {"level": {"low": 0, "high": 1, "log": True}}}},
        "log needs low above 0",
    ),
    ({"search": {"trials": 3, "space": {"levl": {"low": 0, "high": 1}}}}, "levl: unknown option (value 0)"),
    (
        {"search": {"trials": 3, "space": {"level": {"low": 0, "high": 1}}}, "grid": {"level": [1]}},
        "grid lists settings and search looks for them; leave one out",
    ),
    (
        {"gird": {"level": [1]}},
        "study.yaml, line 3: gird: unknown option (value {level: [1]}); nearest known: grid",
    ),
]


@pytest.mark.parametrize(("content", "message"), REFUSED)
def test_what_is_refused_is_one_line_and_nothing_is_made(
    tmp_path: Path, content: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study(tmp_path, **content)
    assert cli.main(["sweep", path, "--output_dir", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"talltree sweep: error: {path}")
    assert message in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def test_a_study_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "gone.yaml"]) == 2
    assert "gone.yaml: cannot be read: No such file or directory; give a YAML file" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "answer"), [([], None), ([], "n\n")])
def test_ten_thousand_trials_ask_first(
    tmp_path: Path,
    options: list[str],
    answer: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = study(tmp_path, grid={"level": list(range(100)), "steps": list(range(1, 101))})
    monkeypatch.setattr(sys.stdin, "isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert cli.main(["sweep", path, "--output_dir", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    refusal = "10,000 trials were not started" if answer else "makes 10,000 trials, more than 200; say --yes"
    assert refusal in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_yes_starts_many_and_so_does_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = study(tmp_path)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "y")
    loop._require_yes(10_000, Config(study=given))
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail("asked"))
    loop._require_yes(10_000, Config(study=given, yes=True))
    loop._require_yes(loop.MANY, Config(study=given))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "1.2.3.4:1"}, "address belongs to --engine ray"),
        ({"engine": "ray", "gpus": [0]}, "gpus belongs to --engine local"),
    ],
)
def test_options_of_the_other_engine_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(study="x", **options).check()  # type: ignore[arg-type]


def test_a_plan_lists_the_trials_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study(tmp_path, chain=CHAIN, grid={"tuned.level": [1, 2]})
    assert cli.main(["sweep", path, "--plan", "--output_dir", str(tmp_path / "out")]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["tuned.level=1,seed=0", "tuned.level=2,seed=0"]
    assert last == f"2 trials, 3 runs, in {tmp_path / 'out'}"
    assert not (tmp_path / "out").exists()


# --- the stop rule, by hand --------------------------------------------------------------------------------

STOP = Stop(metric="reward/mean", steps=[4, 8], keep=0.5, least=4, window=2)


def rows(*rewards: float | None) -> list[dict[str, float | None]]:
    return [{"step": at, "reward/mean": reward} for at, reward in enumerate(rewards, 1)]


def test_the_value_at_a_step_is_the_mean_of_its_window() -> None:
    assert value_at(rows(1, 2, 3, 5), STOP, 4) == 4  # (3 + 5) / 2
    assert value_at(rows(1, 2, 3, 5, 100), STOP, 4) == 4
    assert value_at(rows(1, 2, 3), STOP, 4) is None
    assert value_at(rows(1, 2, None, 5), STOP, 4) == 5
    assert value_at(rows(1, 2, None, None), STOP, 4) is None


def test_the_worse_half_is_given_up_once_enough_have_come() -> None:
    ones, twos, threes, fours = (rows(*[value] * 4) for value in (1, 2, 3, 4))
    assert verdict(ones, [twos, threes], STOP, set()) is None  # three of the least four
    reason = verdict(ones, [twos, threes, fours], STOP, set())
    assert reason == "given up at step 4: reward/mean 1 is 4 of 4 trials there, and the best 50% go on"
    assert verdict(twos, [ones, threes, fours], STOP, set()) is not None  # 3 of 4
    assert verdict(threes, [ones, twos, fours], STOP, set()) is None  # 2 of 4
    assert verdict(ones, [ones, ones, ones], STOP, set()) is None  # all equal: all first
    assert verdict(ones, [rows(5, 5), twos, threes], STOP, set()) is None  # one has not come so far


def test_less_is_better_where_the_study_says_so() -> None:
    stop = Stop(metric="reward/mean", direction="minimize", steps=[1], keep=0.5, least=2, window=1)
    assert verdict(rows(1), [rows(2)], stop, set()) is None
    assert verdict(rows(2), [rows(1)], stop, set()) is not None


def test_a_trial_is_judged_once_a_step() -> None:
    judged: set[int] = set()
    ones, others = rows(*[1] * 5), [rows(*[value] * 4) for value in (2, 3)]
    assert verdict(ones, others, STOP, judged) is None
    assert judged == {4}
    assert verdict(ones, [*others, rows(*[4] * 4)], STOP, judged) is None


# --- the recipes -------------------------------------------------------------------------------------------

STUDIES = Path(__file__).parents[2] / "recipes" / "studies"


@pytest.mark.parametrize("name", sorted(path.name for path in STUDIES.glob("*.yaml")))
def test_every_study_recipe_is_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(STUDIES.parents[1])
    given = read(f"recipes/studies/{name}")
    assert 1 < trials.count(given) <= loop.MANY
    loop._planned(given, Path("runs") / given.name)
