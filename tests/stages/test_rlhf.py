"""The rlhf loop: what is asked and labelled, the rounds end to end, kills, people, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from talltree.annotation.store import Store
from talltree.annotation.study import Answer, make_tuple
from talltree.config import flaws, from_dict
from talltree.data.preferences import Judgement, read_preferences
from talltree.errors import ConfigError, DataError, ModelError
from talltree.run import Run
from talltree.stages import rlhf
from talltree.stages.rlhf import judging, rounds
from talltree.stages.rlhf.config import Config, share
from talltree.stages.rlhf.tuples import POLICY, REFERENCE, Asked, draw_tuples, load_asked, save_asked

from ..tiny import llama, save
from . import toy


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> toy.Toy:
    folder = tmp_path_factory.mktemp("rlhf")
    made = toy.make(folder)
    save(folder / "other", llama(seed=5))
    return made


def options(task: toy.Toy, name: str, **changed: object) -> Config:
    return from_dict(
        Config,
        {
            "model_name_or_path": str(task.model),
            "rounds": 2,
            "comparisons": 24,
            "validation_tuples": 4,
            "judges": {"kind": "bws", "k": 4},
            "simulate": {"reward": f"{task.reward}:count", "lapses": 0.05},
            "reward": {"batch_size": 6, "learning_rate": 1e-3, "probes": 0, "checkpoint_every": 1},
            "rl": {
                "prompts": str(task.prompts),
                "held_out": 0.4,
                "algorithm": "rloo",
                "num_generations": 2,
                "batch_size": 6,
                "steps": 5,
                "max_completion_length": 6,
                "eval_samples": 4,
                "checkpoint_every": 1,
                "kl": {"target": 3.0, "horizon": 100},
            },
            "output_dir": str(task.folder / name),
            **changed,
        },
    )


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


def test_a_loop_killed_in_the_middle_goes_on_to_the_same_end(whole: Path, task: toy.Toy) -> None:
    config = options(task, "killed")
    recipe = task.folder / "killed.yaml"
    recipe.write_text(json.dumps({**rlhf_mapping(config)}))
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


def rlhf_mapping(config: Config) -> dict[str, object]:
    from talltree.config import to_dict

    return to_dict(config)


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


# What is refused


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"rl": {"stepz": 3}}, r"rl: stepz: unknown option .*nearest known: steps"),
        ({"rl": {"reward": "length"}}, "rl.reward is given by the loop itself; leave it out"),
        ({"reward": {"loss": "softmex"}}, r"reward: loss: 'softmex' is not allowed.*nearest: softmax"),
        ({"simulate": {"lapses": 0.1}}, "simulate needs one hidden utility: reward, or model_name_or_path"),
        ({"simulate": {"lapses": 2, "reward": "length"}}, r"simulate: simulate.lapses: 2 is not allowed"),
        ({"judges": {"kind": "pair"}}, "judges.k 4 is not 2, and judges.kind is pair"),
        ({"judges": {"kind": "best", "k": 3}}, "judges.k 3 is odd, and half of a validation tuple"),
        ({"rounds": 9}, "rl.steps 5 are fewer than rounds 9"),
        ({"rounds": 5, "comparisons": 4}, "comparisons 4 are fewer than rounds 5"),
        (
            {"rounds": 5, "comparisons": 24},
            r"the first of 5 rounds gives 4 judgements to train on, fewer than reward.batch_size 6",
        ),
        (
            {"rounds": 1, "comparisons": 6, "validation_tuples": 0},
            r"the first of 1 rounds gives 5 judgements to train on, fewer than reward.batch_size 6",
        ),
        ({"simulate": {"annotators": "two", "reward": "length"}}, r"simulate: simulate.annotators: 'two'"),
        ({"judges": {"overlap": 2}, "simulate": {}}, "judges.overlap 2 needs as many annotators.* are 1"),
        (
            {"judges": {"overlap": 3}, "simulate": {"reward": "length", "annotators": 2}},
            "judges.overlap 3 needs as many annotators.* are 2",
        ),
    ],
)
def test_what_a_stage_would_refuse_is_refused_before_anything_starts(
    task: toy.Toy, changed: dict[str, object], line: str
) -> None:
    with pytest.raises(ConfigError, match=line):
        options(task, "refused", **changed)
    assert not (task.folder / "refused").exists()


def test_a_stage_that_fails_is_named_with_its_log(task: toy.Toy) -> None:
    broken = task.folder / "broken.py"
    broken.write_text("def utility(prompts, completions):\n    raise ValueError('no taste')\n")
    config = options(task, "fails", simulate={"reward": f"{broken}:utility"})
    with pytest.raises(
        Exception, match=r"round 1: talltree annotate simulate failed: .*no taste.*annotate.log"
    ):
        rlhf.run(config)
