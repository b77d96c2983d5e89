"""Compare after a kill: what was drawn is taken; and settings, prompts and ends from the runs compared."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from talltree.config import from_dict
from talltree.errors import ConfigError, DataError, ModelError, RewardError, RunError
from talltree.run import Run
from talltree.stages import compare, fresh
from talltree.stages.compare.config import Config
from talltree.stages.compare.sides import plan
from talltree.stages.fresh import Cut

from ..tiny import gpt2, llama, save
from ..tiny_reward import saved, trained
from .toy import ENVIRONMENT, make


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="module")
def other(toy):
    return save(toy.folder / "other", llama(seed=7))


def options(toy, other, output, **changed):
    return {
        "models": [f"one={toy.model}", f"two={other}"], "prompts": str(toy.prompts),
        "rewards": f"{toy.reward}:count", "seeds": [0, 1], "num_generations": 2,
        "max_completion_length": 6, "output_dir": str(output),
    } | changed  # fmt: skip


def read(folder: Path, name: str = "comparison.json"):
    return json.loads((folder / name).read_text())


# --- stopping ----------------------------------------------------------------------------------------------

COMMAND = """
import json, sys, time
from talltree.config import from_dict
from talltree.stages import compare, fresh
real = fresh.draw
drawn = []
def slow(*given):
    if len(drawn) == 3:  # the fourth of four is in progress until it is killed
        print("in progress", flush=True)
        time.sleep(600)
    drawn.append(1)
    return real(*given)
fresh.draw = slow
compare.run(from_dict(compare.Config, json.loads(sys.argv[1])))
"""


def stop_in_the_fourth_draw(given, how: signal.Signals, monkeypatch) -> None:
    """As a process of its own that is killed, or here with SIGINT, after which the draw is finished."""
    if how == signal.SIGKILL:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, json.dumps(given)], stdout=subprocess.PIPE, text=True,
            env=ENVIRONMENT,
        )  # fmt: skip
        assert any("in progress" in line for line in process.stdout)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        return
    real, drawn = fresh.draw, []

    def interrupted(*given):
        drawn.append(1)
        if len(drawn) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*given)

    monkeypatch.setattr(fresh, "draw", interrupted)
    with pytest.raises(SystemExit) as stopped:
        compare.run(from_dict(Config, given))
    assert (stopped.value.code, len(drawn)) == (130, 3)
    monkeypatch.setattr(fresh, "draw", real)


@pytest.fixture(scope="module")
def whole(toy, other):
    output = toy.folder / "whole/out"
    compare.run(from_dict(Config, options(toy, other, output)))
    return output


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_what_was_drawn_before_a_kill_is_taken(toy, other, whole, tmp_path, monkeypatch, how) -> None:
    given = options(toy, other, tmp_path / "out")
    stop_in_the_fourth_draw(given, how, monkeypatch)
    assert len(list((tmp_path / "out/drawn").rglob("*.json"))) == 3
    assert Run.open(tmp_path / "out").summary()["stop_reason"] is None
    with pytest.raises(RunError, match="--resume"):
        compare.run(from_dict(Config, given))
    drawn = []
    real = fresh.draw
    monkeypatch.setattr(fresh, "draw", lambda *given: drawn.append(given[2].seeds) or real(*given))
    compare.run(Config(resume=str(tmp_path / "out")))
    assert drawn == [(1,)]
    for name in ("comparison.json", "samples.jsonl", "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_resume_may_measure_the_same_draws_otherwise(toy, whole, tmp_path, monkeypatch) -> None:
    shutil.copytree(whole, tmp_path / "out")
    before = (tmp_path / "out/samples.jsonl").read_bytes()
    monkeypatch.setattr(fresh, "draw", None)
    compare.run(Config(resume=str(tmp_path / "out"), rewards="length"))
    measures = [each["measure"] for each in read(tmp_path / "out")["differences"]["two"]]
    assert "length" in measures and f"{toy.reward}:count" not in measures
    compare.run(Config(resume=str(tmp_path / "out")))
    assert [each["measure"] for each in read(tmp_path / "out")["differences"]["two"]] == measures
    assert (tmp_path / "out/samples.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match="--resume continues .* where seeds is"):
        compare.run(Config(resume=str(tmp_path / "out"), seeds=[5]))


def test_a_model_that_changed_and_a_damaged_file_are_drawn_again(toy, other, tmp_path, capsys) -> None:
    model = save(tmp_path / "model", llama(seed=3))
    given = options(toy, model, tmp_path / "out")
    compare.run(from_dict(Config, given))
    first = (tmp_path / "out/samples.jsonl").read_bytes()
    path = sorted((tmp_path / "out/drawn").rglob("*.json"))[0]
    path.write_bytes(path.read_bytes()[:-20])
    compare.run(Config(resume=str(tmp_path / "out")))
    assert "is damaged; what" in capsys.readouterr().out
    assert (tmp_path / "out/samples.jsonl").read_bytes() == first
    save(model, llama(seed=4))
    compare.run(Config(resume=str(tmp_path / "out")))
    assert (tmp_path / "out/samples.jsonl").read_bytes() != first


def test_only_a_compare_folder_can_be_resumed(toy) -> None:
    run = toy.run("no-compare", steps=1)
    with pytest.raises(RunError, match="is no compare folder"):
        compare.run(Config(resume=str(run)))


def test_what_cannot_be_compared_shows_before_anything_is_drawn(toy, other, tmp_path, monkeypatch) -> None:
    """The mistake stands in the last thing looked at; nothing was drawn and there is no folder."""
    monkeypatch.setattr(fresh, "draw", None)
    small = save(tmp_path / "small", gpt2(vocabulary=30))
    one_prompt = tmp_path / "few.jsonl"
    one_prompt.write_text('{"prompt": "w1 w2", "completion": "w3"}\n')
    models = [f"one={toy.model}", f"two={other}"]
    for changed, error, match in (
        (
            {"models": [*models, f"three={small}"], "reference": str(toy.model)},
            ModelError,
            "different tokenizers",
        ),
        ({"models": [*models, str(one_prompt)]}, DataError, r"unequal prompt sets \(5 and 1 prompts"),
        ({"judge": "./nowhere"}, ModelError, "./nowhere does not exist"),
        ({"rewards": "./nowhere"}, RewardError, "no such folder"),
        ({"truncate_token": "nothing", "truncate_after": 1}, ConfigError, "not the text of one token"),
        ({"max_completion_length": 70}, DataError, "context is 64"),
        ({"prompt": "w1"}, ConfigError, "prompts and prompt are both given"),
    ):
        with pytest.raises(error, match=match) as caught:
            compare.run(from_dict(Config, options(toy, other, tmp_path / "out", **changed)))
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists(), match


# --- settings from runs ------------------------------------------------------------------------------------


def kept_run(folder: Path, name: str, **config) -> str:
    """A run folder as compare sees it: a config, and a final/."""
    run = folder / name
    (run / "final").mkdir(parents=True)
    lines = {"model_name_or_path": "seedling", "reward": "length"} | config
    (run / "config.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items()))
    return str(run)


def test_runs_that_agree_are_sampled_as_they_were_trained(tmp_path) -> None:
    (tmp_path / "p.txt").write_text("".join(f"w{i}\n" for i in range(1, 6)))
    same = {"temperature": 0.7, "max_completion_length": 24, "truncate_token": ".", "held_out": 0.4,
            "prompts": str(tmp_path / "p.txt")}  # fmt: skip
    runs = [kept_run(tmp_path, name, **same, seed=at) for at, name in enumerate(("a", "b"))]
    planned = plan(Config(models=["seedling", *runs]))
    assert (planned.sampling.temperature, planned.sampling.max_completion_length) == (0.7, 24)
    assert planned.sampling.cut == Cut(".", 16) and len(planned.prompts) == 2
    assert planned.missing_ends == {"a": -1.0, "b": -1.0}
    # A run's own final/ or checkpoint brings its settings, too; what is asked for goes before them.
    step = Path(runs[0]) / "checkpoints/step-3"
    step.mkdir(parents=True)
    planned = plan(
        Config(models=["seedling", f"x={step}", f"y={runs[1]}/final"], temperature=1.5, prompt="w1")
    )
    assert (planned.sampling.temperature, planned.sampling.max_completion_length) == (1.5, 24)
    assert [prompt.text for prompt in planned.prompts] == ["w1"]
    assert plan(Config(models=runs, truncate_token="")).sampling.cut is None


@pytest.mark.parametrize(
    ("key", "values", "said", "asked"),
    [
        (
            "temperature",
            (0.7, 1.0),
            r"differ in temperature \(a: 0.7, b: 1.0\); name one for all as --temp",
            1.0,
        ),
        ("max_completion_length", (24, 32), r"differ in max_completion_length \(a: 24, b: 32\)", 24),
        (
            "truncate_token",
            (".", None),
            r"differ in truncate_token \(a: '.' from position 16, b: no token",
            "",
        ),
        ("prompt", ("w1", "w2"), r"differ in their prompts \(a: 'w1', b: 'w2'\); name one file", "w1"),
    ],
)
def test_runs_that_differ_are_asked_about(tmp_path, key, values, said, asked) -> None:
    runs = [kept_run(tmp_path, name, **{key: value}) for name, value in zip("ab", values, strict=True)]
    with pytest.raises(ConfigError, match=said) as caught:
        plan(Config(models=runs))
    assert "\n" not in str(caught.value)
    assert plan(Config(models=runs, **{key: asked})).sides[1].name == "b"


def test_a_loop_of_rounds_brings_its_rl_groups_settings(tmp_path) -> None:
    run = kept_run(tmp_path, "loop", rounds=2, rl={"temperature": 0.7, "truncate_token": "."}, reward={})
    planned = plan(Config(models=[run], prompt="w1"))
    assert (planned.sampling.temperature, planned.sampling.cut) == (0.7, Cut(".", 16))


def test_a_penalty_that_is_not_in_the_rewards_is_said(toy, other, tmp_path) -> None:
    run = toy.run("penalty", steps=1, missing_eos_penalty=-2.0)
    given = options(toy, other, tmp_path / "out", models=[str(run), f"two={other}"], num_generations=None)
    compare.run(from_dict(Config, given))
    found = read(tmp_path / "out")
    assert any("without its required end (penalty -2) is no part of them" in note for note in found["notes"])


# --- rewards as measures -----------------------------------------------------------------------------------


def test_a_hidden_utility_is_a_measure_like_any_other(toy, other, tmp_path, capsys) -> None:
    """A function of a file and a reward model's folder: in the table, the page, the terminal, the summary."""
    folder = saved(tmp_path / "my_rm", trained(toy.model))
    file = tmp_path / "hidden.py"
    file.write_text(
        "def hidden_utility(prompts, completions):\n    return [len(t.split()) for t in completions]\n"
    )
    rewards = f"{file}:hidden_utility,{folder}"
    compare.run(from_dict(Config, options(toy, other, tmp_path / "out", rewards=rewards)))
    found = {each["measure"]: each for each in read(tmp_path / "out")["differences"]["two"]}
    summary = read(tmp_path / "out", "summary.json")["measures"]
    page, said = (tmp_path / "out/report.html").read_text(), capsys.readouterr().out
    words = found["words"]
    for spec, label in ((f"{file}:hidden_utility", "hidden.py:hidden_utility"), (str(folder), "my_rm")):
        assert found[spec]["difference"]["low"] is not None or found[spec]["p_value"] is not None
        assert summary[spec]["two"]["mean"] == found[spec]["right"]["value"]
        assert summary[spec]["two"]["difference"]["mean"] == found[spec]["difference"]["value"]
        assert label in page and label in said
    assert found[f"{file}:hidden_utility"]["difference"]["value"] == pytest.approx(
        words["difference"]["value"]
    )


# --- training seeds ----------------------------------------------------------------------------------------


def test_three_seeds_of_one_setting_have_an_interval_over_seeds(toy, tmp_path) -> None:
    from scipy import stats

    models = [save(tmp_path / f"s{seed}", llama(seed=20 + seed)) for seed in range(3)]
    given = {
        "models": [f"base={toy.model}", f"tuned={','.join(map(str, models))}"],
        "reference": str(toy.model),
    }
    compare.run(from_dict(Config, options(toy, None, tmp_path / "out", **given)))
    found = read(tmp_path / "out")
    assert [each["name"] for each in found["models"]] == ["base", "tuned/s0", "tuned/s1", "tuned/s2"]
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    means = {}
    for row in rows:
        means.setdefault(row["source"], []).append(len(row["completion"].split()))
    # Prompts have equally many completions: the mean over prompts is the mean over all.
    means = {name: sum(values) / len(values) for name, values in means.items()}
    words = next(each for each in found["differences"]["tuned"] if each["measure"] == "words")
    three = [means[f"tuned/s{at}"] for at in range(3)]
    assert words["seeds"]["right"] == pytest.approx(dict(zip(("s0", "s1", "s2"), three, strict=True)))
    test = stats.ttest_1samp(three, means["base"])
    assert words["p_value"] == pytest.approx(test.pvalue) and words["over"] == "training seeds"
    assert words["difference"]["value"] == pytest.approx(sum(three) / 3 - means["base"])
    assert any("base: 1, tuned: 3 models" in note for note in found["notes"])
    page = (tmp_path / "out/report.html").read_text()
    assert "Every seed" in page and "tuned 3" in page and "s2" in page


def test_seeds_of_one_setting_alone_and_without_a_name_are_refused(toy, other, tmp_path) -> None:
    both = f"{toy.model},{other}"
    for models, match in (
        ([f"a={both}"], "a is alone: its 2 models are seeds of one setting"),
        ([both, "seedling"], "are 2 models; leave the comma out, or write NAME="),
        ([f"a={both}", f"b={other}"], "is named twice"),
    ):
        with pytest.raises(ConfigError, match=match):
            plan(Config(models=models))
