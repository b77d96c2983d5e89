"""The rlhf loop: what is asked and labelled, the rounds end to end, kills, people, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from talltree.annotation.store import Store
from talltree.annotation.study import Answer, make_tuple
from talltree.config import flaws, from_dict, parse, to_dict
from talltree.data.preferences import Judgement, read_preferences
from talltree.errors import ConfigError, ContractError, DataError, ModelError, RunError
from talltree.run import Run
from talltree.stages import rl, rlhf
from talltree.stages.process import Ended
from talltree.stages.rlhf import judging, rounds, running
from talltree.stages.rlhf import loop as rlhf_loop
from talltree.stages.rlhf.config import Config, share
from talltree.stages.rlhf.running import Stopped
from talltree.stages.rlhf.tuples import POLICY, REFERENCE, Asked, draw_tuples, load_asked, save_asked
from talltree.stops import is_failure

from . import toy
from .rlhf_toy import make, options


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> toy.Toy:
    return make(tmp_path_factory.mktemp("rlhf"))


# What is asked


def test_options_are_described_and_shares_add_up() -> None:
    assert flaws(Config) == []
    assert [share(10, 4, n) for n in (1, 2, 3, 4)] == [2, 3, 2, 3]
    assert [share(3, 3, n) for n in (1, 2, 3)] == [1, 1, 1]


def test_training_tuples_are_the_policys_and_validation_tuples_are_half_and_half(task: toy.Toy) -> None:
    rl = options(task, "x").stage("rl")
    asked = draw_tuples(
        rl, str(task.folder / "other"), str(task.model), training=5, validation=4, k=4, seed=3
    )
    assert len(asked.training) == 5 and 2 <= len(asked.validation) <= 4
    for each in asked.training:
        assert each.sources == (POLICY,) * 4 and len(set(each.candidates)) == 4
    for each in asked.validation:
        assert sorted(each.sources) == [POLICY, POLICY, REFERENCE, REFERENCE]
    # 2 of the 5 prompts are held out, and neither side has a prompt of the other.
    mine, theirs = ({each.prompt for each in some} for some in asked)
    assert len(mine) == 3 and len(theirs) <= 2 and mine.isdisjoint(theirs)
    again = draw_tuples(
        rl, str(task.folder / "other"), str(task.model), training=5, validation=4, k=4, seed=3
    )
    assert again == asked


def test_the_first_round_asks_the_reference_alone_and_files_keep_it(task: toy.Toy, tmp_path: Path) -> None:
    rl = options(task, "x").stage("rl")
    asked = draw_tuples(rl, str(task.model), str(task.model), training=2, validation=1, k=3, seed=0)
    assert {source for each in (*asked.training, *asked.validation) for source in each.sources} == {REFERENCE}
    save_asked(tmp_path / "asked.jsonl", asked)
    assert load_asked(tmp_path / "asked.jsonl") == asked


def test_a_text_may_hold_what_ends_a_line_elsewhere(tmp_path: Path) -> None:
    odd = [make_tuple("p\u2028q", ["a\u2029", "b\x85c\x0b", "d\r\n\x1ce"], [POLICY] * 3)]
    save_asked(tmp_path / "asked.jsonl", Asked(odd, []))
    assert load_asked(tmp_path / "asked.jsonl") == Asked(odd, [])


def test_a_model_without_so_many_different_things_to_say_is_refused(task: toy.Toy) -> None:
    # One token long, and cold: one completion is drawn nearly always.
    rl = from_dict(
        type(options(task, "x").stage("rl")),
        {"prompt": "w1 w2", "max_completion_length": 1, "temperature": 1e-4},
    )
    with pytest.raises(ModelError, match=r"wrote fewer than 4 different completions of 'w1 w2' in 20 tries"):
        draw_tuples(rl, str(task.model), str(task.model), training=1, validation=0, k=4, seed=0)


# What is labelled


def test_preference_for_the_policy_by_hand() -> None:
    mixed = make_tuple("p", ["a", "b", "c", "d"], [POLICY, REFERENCE, POLICY, REFERENCE])
    same = make_tuple("p", ["a", "b", "c", "d"], [POLICY] * 4)
    judged = [
        # Best a, worst d settle a>b a>c a>d b>d c>d: a>b, a>d and c>d set the two apart, for the policy.
        Judgement(prompt="p", candidates=mixed.candidates, best=0, worst=3, tuple_id=mixed.tuple_id),
        # Best b, worst c: b>a b>c b>d a>c d>c; b>a, b>c, d>c for the reference.
        Judgement(prompt="p", candidates=mixed.candidates, best=1, worst=2, tuple_id=mixed.tuple_id),
        Judgement(prompt="p", candidates=same.candidates, best=0, worst=3, tuple_id=same.tuple_id),
    ]
    assert rounds.preference_for_policy(judged, [mixed, same]) == (3, 6)
    assert rounds.preference_for_policy(judged[2:], [mixed, same]).share is None


def test_validation_judgements_never_train_and_shared_texts_are_left_out(tmp_path: Path) -> None:
    config = from_dict(Config, {"rl": {"steps": 2}, "judges": {"kind": "pair", "k": 2}})
    this = rounds.Round(1, tmp_path, "m")
    train = [make_tuple("p", ["a", "b"]), make_tuple("p", ["c", "d"])]
    held = [make_tuple("p", ["e", "f"]), make_tuple("p", ["a", "g"])]
    save_asked(this.asked, Asked(train, held))
    judging.make_study(config, this)
    with Store.open(this.study) as store:
        person = store.add_annotator("Ann")
        while (each := store.next_task(person.token)) is not None:
            store.answer(person.token, each.task_id, each.task_id.replace(".", "-"), Answer(best=0))
    said: list[str] = []
    rounds.label(config, this, said.append)
    assert {each.candidates for each in read_preferences(this.training)} == {("a", "b"), ("c", "d")}
    assert [each.candidates for each in read_preferences(this.validation)] == [("e", "f")]
    assert said == ["1 validation judgements hold a training text and are left out"]


def test_validation_judgements_that_are_all_ties_do_not_stop_the_loop(tmp_path: Path) -> None:
    config = from_dict(Config, {"rl": {"steps": 2}, "judges": {"kind": "pair", "k": 2}})
    this = rounds.Round(1, tmp_path, "m")
    save_asked(this.asked, Asked([make_tuple("p", ["a", "b"])], [make_tuple("q", ["c", "d"])]))
    judging.make_study(config, this)
    with Store.open(this.study) as store:
        person = store.add_annotator("Ann")
        while (each := store.next_task(person.token)) is not None:
            answer = Answer(tie=True) if each.prompt == "q" else Answer(best=0)
            store.answer(person.token, each.task_id, each.task_id.replace(".", "-"), answer)
    rounds.label(config, this, print)
    assert [each.prompt for each in read_preferences(this.training)] == ["p"]
    assert "validation_name" not in rounds.reward_options(config, this)


def test_a_study_that_was_half_made_when_the_loop_was_killed_is_made(tmp_path: Path) -> None:
    config = from_dict(Config, {"rl": {"steps": 2}, "judges": {"kind": "pair", "k": 2}})
    this = rounds.Round(1, tmp_path, "m")
    save_asked(this.asked, Asked([make_tuple("p", ["a", "b"])], []))
    this.study.mkdir()
    (this.study / ".study.sqlite.partial").write_bytes(b"half")
    for _ in range(2):
        judging.make_study(config, this)
        assert judging.standing(this.study) == (0, 1, False)


def test_judgements_without_any_preference_are_refused(tmp_path: Path) -> None:
    config = from_dict(Config, {"rl": {"steps": 2}, "judges": {"kind": "pair", "k": 2}})
    this = rounds.Round(1, tmp_path, "m")
    save_asked(this.asked, Asked([make_tuple("p", ["a", "b"])], []))
    judging.make_study(config, this)
    with Store.open(this.study) as store:
        person = store.add_annotator("Ann")
        each = store.next_task(person.token)
        assert each is not None
        store.answer(person.token, each.task_id, "r1", Answer(tie=True))
    with pytest.raises(DataError, match="none of 1 judgements prefers one completion to another"):
        rounds.label(config, this, print)


# The rounds


@pytest.fixture(scope="module")
def whole(task: toy.Toy) -> Path:
    config = options(task, "whole")
    rlhf.run(config)
    return Path(config.output_dir)


def figures(folder: Path) -> list[dict[str, object]]:
    return list(Run.open(folder).summary()["rounds"])


def test_two_rounds_end_to_end(whole: Path, task: toy.Toy) -> None:
    first, second = figures(whole)
    assert (first["rlhf/comparisons"], second["rlhf/comparisons"]) == (12, 24)
    assert first["rlhf/policy_preferred"] is None and second["rlhf/policy_pairs"] > 0
    assert [row["step"] for row in Run.open(whole).metrics()] == [1, 2]
    one, two = (Run.open(whole / "rounds" / name / "rl") for name in ("01", "02"))
    assert (one.config["steps"], two.config["steps"]) == (2, 3)
    assert one.config["reference_model_name_or_path"] is None
    assert two.config["reference_model_name_or_path"] == str(task.model)
    assert two.config["model_name_or_path"] == str(whole / "rounds" / "01" / "rl" / "final")
    # The adaptive coefficient goes on from where it was.
    adapted = one.metrics()[-1]["kl/coef"] * (
        1 + max(-0.2, min(0.2, one.metrics()[-1]["kl/sequence"] / 3 - 1)) * 6 / 100
    )
    assert two.config["kl"]["coef"] == pytest.approx(adapted, rel=1e-9)
    judged = read_preferences(whole / "rounds" / "02" / "preferences.jsonl")
    assert {each.annotator for each in judged} == {"simulated-1"}
    assert (whole / "final" / "model.safetensors").read_bytes() == (
        whole / "rounds" / "02" / "rl" / "final" / "model.safetensors"
    ).read_bytes()
    assert "## The loop" in (whole / "final" / "README.md").read_text()


def test_an_ended_loop_is_neither_resumed_nor_overwritten(whole: Path, task: toy.Toy) -> None:
    with pytest.raises(Exception, match="has ended"):
        rlhf.run(from_dict(Config, {"rl": {}, "resume": str(whole)}))
    with pytest.raises(Exception, match="exists and is not empty"):
        rlhf.run(options(task, "whole"))


def copied(whole: Path, name: str, reason: str, number: str = "01") -> Path:
    """The ended loop as it was before its end, the rl of one round having ended for a reason."""
    folder = whole.with_name(name)
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "final")
    for run, stopped in ((folder, None), (folder / "rounds" / number / "rl", reason)):
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(summary | {"stop_reason": stopped}))
    return folder


@pytest.mark.parametrize(
    "reason",
    [
        "collapse: 10% of completions differ, below 20%",
        "constant reward: 0 for every completion of 20 steps, nothing to learn",
        "stopped at step 3: the loss is nan",
    ],
    ids=lambda reason: reason.split()[0],
)
def test_a_round_that_went_wrong_ends_the_loop_before_people_judge_again(whole: Path, reason: str) -> None:
    folder = copied(whole, f"stopped-{reason[:4]}", reason)
    last = folder / "rounds" / "02"
    aside = last.rename(folder / "02")
    resume = from_dict(Config, {"rl": {}, "resume": str(folder)})
    with pytest.raises(RunError) as caught:
        rlhf.run(resume)
    assert f"round 1: rl stopped by itself ({reason}), so round 2 is not begun" in str(caught.value)
    assert f"--resume {folder} --after_stop go_on" in str(caught.value) and "\n" not in str(caught.value)
    assert not last.exists() and not (folder / "final").exists()
    aside.rename(last)
    rlhf.run(dataclasses.replace(resume, after_stop="go_on"))
    first, second = figures(folder)
    assert first["stop_reason"] == reason and second == figures(whole)[1]
    assert [row["step"] for row in Run.open(folder).metrics()] == [1, 2]


def test_the_kl_ceiling_does_not_end_the_loop(whole: Path) -> None:
    folder = copied(whole, "ceiling", "KL ceiling: 31.0 nats a sequence at step 2, above 30")
    rlhf.run(from_dict(Config, {"rl": {}, "resume": str(folder)}))
    assert (folder / "final" / "model.safetensors").is_file()


def test_in_the_last_round_there_is_nothing_to_hold_back(whole: Path) -> None:
    reason = "collapse: 10% of completions differ, below 20%"
    folder = copied(whole, "last", reason, "02")
    rlhf.run(from_dict(Config, {"rl": {}, "resume": str(folder)}))
    assert figures(folder)[1]["stop_reason"] == reason
    assert (folder / "final" / "model.safetensors").is_file()


def test_an_rl_that_broke_has_ended_with_its_reason(
    task: toy.Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process fails, but its run is over and measured: nothing is left that a resume could make."""

    def broken(*_: object, **__: object) -> Ended:
        with pytest.raises(ContractError):
            rl.run(
                from_dict(
                    rl.Config,
                    task.options(output_dir=str(tmp_path / "rl"), optim="sgd", learning_rate=1e30, steps=9),
                )
            )
        return Ended(1, "it broke", 1.0)

    monkeypatch.setattr(running, "run_stage", broken)
    running.run_once("rl", {}, tmp_path, "round 1", print)
    assert running.has_ended(tmp_path / "rl")
    assert is_failure(str(Run.open(tmp_path / "rl").summary()["stop_reason"]))


def test_a_loop_killed_in_the_middle_goes_on_to_the_same_end(whole: Path, task: toy.Toy) -> None:
    config = options(task, "killed")
    recipe = task.folder / "killed.yaml"
    recipe.write_text(json.dumps(to_dict(config)))
    output = Path(config.output_dir)
    process = subprocess.Popen(
        [sys.executable, "-m", "talltree", "rlhf", "--config", str(recipe)],
        env=toy.ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (output / "rounds/01/rl/checkpoints/step-1").is_dir() and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    deadline = time.monotonic() + 30
    while True:
        try:
            rlhf.run(from_dict(Config, {"rl": {}, "resume": str(output)}))
            break
        except Exception as error:
            # The stage that was running saves and leaves within seconds of its driver's death.
            if "is being written by process" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    assert figures(output) == figures(whole)
    assert (output / "final" / "model.safetensors").read_bytes() == (
        whole / "final" / "model.safetensors"
    ).read_bytes()


def test_a_busy_port_can_be_changed_on_the_way(task: toy.Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    config = options(task, "port", simulate={}, judges={"kind": "bws", "k": 4, "port": 8421})
    Run.create(config.output_dir, to_dict(config), {}).close()
    asked: list[Config] = []

    def rounds_of(config: Config, folder: Run) -> list[object]:
        asked.append(config)
        raise Stopped("SIGINT", "round 1")

    monkeypatch.setattr(rlhf_loop, "_rounds", rounds_of)
    for given, expected in ((["--judges.port", "0"], 0), ([], 8421)):
        with pytest.raises(SystemExit, match="130"):
            rlhf.run(parse(Config, ["--resume", config.output_dir, *given], "rlhf"))
        assert asked.pop() == dataclasses.replace(
            config, judges=dataclasses.replace(config.judges, port=expected)
        )
    with pytest.raises(ConfigError, match="where judges.k is 4, but 6 is asked for"):
        rlhf.run(parse(Config, ["--resume", config.output_dir, "--judges.k", "6"], "rlhf"))


def test_it_waits_for_people_and_keeps_what_they_said(task: toy.Toy, tmp_path: Path) -> None:
    config = options(
        task,
        "people",
        simulate={},
        judges={"kind": "bws", "k": 4, "names": ["Ann", "Bo"], "serve": False},
    )
    this = rounds.Round(1, tmp_path, str(task.model))
    tuples = [make_tuple("p", [f"{n} {c}" for c in "abcd"]) for n in range(6)]
    save_asked(this.asked, Asked(tuples[:5], tuples[5:]))
    judging.make_study(config, this)
    said: list[str] = []

    def people() -> None:
        time.sleep(0.5)
        with Store.open(this.study) as store:
            for number in range(100):
                person = store.annotators()[number % 2]
                each = store.next_task(person.token)
                if each is not None:
                    store.answer(person.token, each.task_id, f"r{number}", Answer(best=0, worst=1))

    thread = threading.Thread(target=people)
    thread.start()
    judging.judge(config, this, said.append)
    thread.join()
    assert judging.standing(this.study) == (6, 6, True)
    assert said[0] == f"round 1: waiting for judgements; run talltree annotate serve {this.study}"
    rounds.label(config, this, said.append)
    assert len(read_preferences(this.training)) == 5
