"""Overopt scores as the run did (cut, missing end), keeps draws by all that decides them, and asks people."""

import json
from pathlib import Path

import pytest

from talltree.annotation.store import Store
from talltree.cli import main
from talltree.errors import ConfigError, DataError, RunError
from talltree.evals import cache
from talltree.evals.bestofn import expected
from talltree.run import Run
from talltree.stages import drawn, overopt
from talltree.stages.fresh import Completion, Cut, Sampling
from talltree.stages.overopt import gold, people
from talltree.stages.overopt.config import Config
from talltree.stages.overopt.sources import plan
from talltree.types import Prompt

from ..tiny import llama, save
from .toy import make

CUT = {"max_completion_length": 12, "truncate_token": "w7", "truncate_after": 2}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make(tmp_path_factory.mktemp("ends"))


@pytest.fixture(scope="module")
def cut(toy):
    return toy.run("cut", steps=2, learning_rate=0.05, missing_eos_penalty=-2.5, **CUT)


def read(folder: Path):
    return json.loads((folder / "overopt.json").read_text())


def rows(folder: Path):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_what_has_no_end_scores_the_penalty_in_a_hand_worked_best_of_n() -> None:
    """Lengths 3, 5, 1, the second without an end: 3, -1, 1. Best of 2: 1 + 3 + 3 of 3, not 3 + 5 + 5."""
    texts = (("a b c", True), ("a b c d e", False), ("a", True))
    sampled = {"base": [Completion("p", text, 0, ended) for text, ended in texts]}
    with_penalty = gold.scored("length", sampled, [], -1.0).per_sample["base"]
    without = gold.scored("length", sampled, []).per_sample["base"]
    assert (with_penalty, without) == ([3.0, -1.0, 1.0], [3.0, 5.0, 1.0])
    assert expected(with_penalty, with_penalty, 2) == pytest.approx(7 / 3)
    assert expected(without, without, 2) == pytest.approx(13 / 3)


def test_proxy_and_gold_are_those_of_the_run_to_the_last_completion(toy, cut, tmp_path) -> None:
    """The run's own record of its training has the same score for every completion of every step."""
    planned = plan(Config(runs=[str(cut)], gold="length"))
    assert (planned.sampling.cut, planned.missing_end) == (Cut("w7", 2), -2.5)
    kept = Run.open(cut).samples().to_pylist()
    assert {row["ended"] for row in kept} == {True, False}
    sampled = {"rl": [Completion(row["prompt"], row["completion"], 0, row["ended"]) for row in kept]}
    found = gold.scored(planned.proxy, sampled, planned.prompts, planned.missing_end).per_sample["rl"]
    assert found == [row["reward"] for row in kept]


def test_the_penalty_is_in_every_point_and_said(toy, cut, tmp_path) -> None:
    given = {"gold": "length", "num_generations": 40, "best_of_n": 3}
    overopt.run(Config(runs=[str(cut)], output_dir=str(tmp_path / "out"), **given))
    found = read(tmp_path / "out")
    assert (found["cut"], found["missing_eos_penalty"]) == ({"token": "w7", "after": 2}, -2.5)
    written = [row for row in rows(tmp_path / "out") if row["source"] == "cut/step-2"]
    words = [len(row["completion"].split()) if row["ended"] else -2.5 for row in written]
    point = found["curves"][0]["points"][1]
    assert point["gold"]["value"] == pytest.approx(sum(words) / len(words))
    without = sum(not row["ended"] for row in rows(tmp_path / "out"))
    assert any(
        f"is -2.5 in proxy and gold, whatever a reward says: {without} of 120" in note
        for note in found["notes"]
    )
    assert any("ends with the first 'w7' at position 2 or later" in note for note in found["notes"])
    page = (tmp_path / "out/report.html").read_text()
    assert "without its required end is -2.5" in page


def test_what_is_asked_for_goes_before_what_the_runs_did(toy, cut) -> None:
    later = toy.run("later", steps=1, **CUT | {"truncate_after": 3})
    runs = [str(cut), str(later)]
    with pytest.raises(ConfigError, match=r"differ in truncate_token \(.*from position 2.*from position 3"):
        plan(Config(runs=runs, gold="length"))
    asked = {"truncate_token": "w7", "truncate_after": 4}
    with pytest.raises(ConfigError, match=r"differ in missing_eos_penalty \(.*-2.5.*-1.0\); name one"):
        plan(Config(runs=runs, gold="length", **asked))
    planned = plan(Config(runs=runs, gold="length", missing_eos_penalty=-3.0, **asked))
    assert (planned.sampling.cut, planned.missing_end) == (Cut("w7", 4), -3.0)
    assert plan(Config(runs=[str(cut)], gold="length", truncate_token="")).sampling.cut is None
    # As in rl: a cut alone brings a penalty of -1.
    alone = plan(Config(gold="length", proxy="length", truncate_token="."))
    assert (alone.sampling.cut, alone.missing_end) == (Cut(".", 16), -1.0)
    with pytest.raises(ConfigError, match="truncate_after 16 leaves no position in max_completion_length 9"):
        plan(Config(gold="length", proxy="length", truncate_token=".", max_completion_length=9))


# --- what is kept ------------------------------------------------------------------------------------------


def best_of_n(toy, folder, model, **changed):
    return Config(
        **{"model_name_or_path": str(model), "prompt": "w1 w2", "proxy": "length", "gold": "length",
           "best_of_n": 2, "num_generations": 3, "max_completion_length": 6, "output_dir": str(folder)}
        | changed
    )  # fmt: skip


def test_draws_of_another_reference_in_the_same_place_are_not_taken(toy, tmp_path) -> None:
    model = save(tmp_path / "model", llama(seed=1))
    overopt.run(best_of_n(toy, tmp_path / "out", model))
    texts = {row["completion"] for row in rows(tmp_path / "out")}
    kept = tmp_path / "out/drawn"
    assert len(list(kept.rglob("*.json"))) == 1
    save(model, llama(seed=2))
    overopt.run(Config(resume=str(tmp_path / "out")))
    assert {row["completion"] for row in rows(tmp_path / "out")} != texts
    assert len(list(kept.rglob("*.json"))) == 2


def test_whatever_decides_the_draws_is_in_their_key() -> None:
    plain = Sampling((0,), 3, 6, 1.0, Cut("w7", 2))
    given = {"name": "base", "source": {"weights_sha256": "a"}, "reference": {"weights_sha256": "a"},
             "prompts": [Prompt("w1"), Prompt("w2")], "sampling": plain}  # fmt: skip
    changes = [
        {"source": {"weights_sha256": "b"}}, {"source": {"manifest_sha256": "a"}}, {"reference": None},
        {"reference": {"weights_sha256": "b"}}, {"prompts": [Prompt("w1")]}, {"name": "rl/step-1"},
        {"prompts": [Prompt("w2"), Prompt("w1")]},
        *({"sampling": plain._replace(**{name: value})} for name, value in (
            ("seeds", (1,)), ("num_generations", 4), ("max_completion_length", 7), ("temperature", 0.5),
            ("cut", None), ("cut", Cut("w7", 3)), ("cut", Cut("w8", 2)),
        )),
    ]  # fmt: skip
    keys = {cache.key(drawn.key_of(**given | change)) for change in ({}, *changes)}
    assert len(keys) == 1 + len(changes)
    # Other columns of a prompt's row decide nothing of what is drawn.
    same = drawn.key_of(**given | {"prompts": [Prompt("w1", {"x": 1}), Prompt("w2"), Prompt("w1")]})
    assert same == drawn.key_of(**given)


def test_a_damaged_draw_is_named_and_drawn_again(toy, tmp_path, capsys) -> None:
    overopt.run(best_of_n(toy, tmp_path / "out", toy.model))
    before = (tmp_path / "out/samples.jsonl").read_bytes()
    (path,) = (tmp_path / "out/drawn").rglob("*.json")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"completion": "', b'"completion": "w9 ', 1))
    overopt.run(Config(resume=str(tmp_path / "out")))
    assert "is damaged; what base wrote is computed again" in capsys.readouterr().out
    assert (tmp_path / "out/samples.jsonl").read_bytes() == before
    assert path.read_bytes() == whole


def test_a_resume_remembers_what_it_was_asked_for(toy, tmp_path) -> None:
    overopt.run(best_of_n(toy, tmp_path / "out", toy.model))
    overopt.run(Config(resume=str(tmp_path / "out"), gold=f"{toy.reward}:count"))
    overopt.run(Config(resume=str(tmp_path / "out")))
    assert read(tmp_path / "out")["gold"].endswith(":count")


def test_adapters_on_a_base_that_changed_are_refused(toy, tmp_path) -> None:
    start, old = save(tmp_path / "start", llama(seed=4)), save(tmp_path / "old", llama(seed=4))
    run = toy.run("adapters", model_name_or_path=str(start), steps=1, lora_r=2)
    save(start, llama(seed=5))
    given = {"gold": "length", "num_generations": 2, "best_of_n": 0, "model_name_or_path": str(old)}
    with pytest.raises(RunError, match="is not the model that the adapters of .*step-1 stand on"):
        overopt.run(Config(runs=[str(run)], output_dir=str(tmp_path / "out"), **given))


def test_a_loop_of_rounds_names_the_runs_in_it(tmp_path) -> None:
    (tmp_path / "loop").mkdir()
    lines = ("model_name_or_path: seedling", "rounds: 2", "rl: {}", "reward: {}")
    (tmp_path / "loop/config.yaml").write_text("\n".join(lines))
    with pytest.raises(RunError, match="is a loop of rounds; name the rl folders of its rounds"):
        plan(Config(runs=[str(tmp_path / "loop")], gold="length"))


def test_nothing_is_written_before_everything_is_looked_at(toy, cut, tmp_path) -> None:
    other = save(tmp_path / "other", llama(seed=9))
    for changed, error, match in (
        ({"model_name_or_path": str(other)}, RunError, "measured its KL from"),
        ({"truncate_token": "nothing"}, ConfigError, "is not the text of one token"),
        ({"gold": "people", "judgements": "./none.jsonl"}, DataError, "none.jsonl not found"),
    ):
        given = {"gold": "length", "output_dir": str(tmp_path / "out")} | changed
        config = Config(runs=[str(cut)], **given)
        with pytest.raises(error, match=match):
            overopt.run(config)
        assert not (tmp_path / "out").exists()


# --- people, from the command line -------------------------------------------------------------------------


def judge(study: Path, answers) -> None:
    """Simulated people answer through the store, by answers(prompt, candidates)."""
    with Store.open(study) as store:
        for annotator in store.annotators():
            while (task := store.next_task(annotator.token)) is not None:
                request = f"{annotator.name}-{task.task_id}".replace(".", "-")
                store.answer(annotator.token, task.task_id, request, answers(task))


def rank(text):
    return len(text), text


@pytest.mark.parametrize("kind", ["pair", "rating"])
def test_people_judge_what_was_drawn_and_the_curve_is_theirs(toy, cut, tmp_path, kind, capsys) -> None:
    from talltree.annotation.study import Answer

    out, study = tmp_path / "out", tmp_path / "study"
    main(["overopt", str(cut), "--gold", "people", "--num_generations", "4", "--best_of_n", "2",
          "--output_dir", str(out)])  # fmt: skip
    said = capsys.readouterr().out
    assert f"annotate new STUDY --kind pair --samples {out / 'pairs.jsonl'}" in said
    assert not (out / "overopt.json").exists()
    samples = out / ("pairs.jsonl" if kind == "pair" else "samples.jsonl")
    main(["annotate", "new", str(study), "--kind", kind, "--samples", str(samples),
          "--annotators", "[Anna, Ben]", "--overlap", "2"])  # fmt: skip
    if kind == "pair":
        # The longer text is the better one; the order on the screen is random, the answer in the design's.
        judge(
            study,
            lambda task: Answer(best=max(zip(map(rank, task.candidates), task.order, strict=True))[1]),
        )
    else:
        judge(study, lambda task: Answer(ratings=((min(5, len(task.candidates[0].split())),),)))
    main(["overopt", "--resume", str(out), "--judgements", str(study)])
    found = read(out)
    assert [curve["kind"] for curve in found["curves"]] == (["rl"] if kind == "pair" else ["rl", "bon"])
    pairs = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    if kind == "pair":
        for step in (1, 2):
            won = [rank(row["candidates"][1]) > rank(row["candidates"][0]) for row in pairs
                   if row["sources"][1] == f"cut/step-{step}"]  # fmt: skip
            point = found["curves"][0]["points"][step - 1]
            assert point["gold"]["value"] == pytest.approx(sum(won) / len(won))
    # From the study folder and from its export it is the same, to the byte; so it is without naming it again.
    whole = (out / "overopt.json").read_text()
    main(["annotate", "export", str(study)])
    main(["overopt", "--resume", str(out), "--judgements", str(study / "preferences.jsonl")])
    assert (out / "overopt.json").read_text() == whole
    main(["overopt", "--resume", str(out)])
    assert (out / "overopt.json").read_text() == whole


def test_pairs_are_of_all_checkpoints_before_there_are_two_of_one() -> None:
    sampled = {
        "base": [Completion("p", text, 0) for text in ("a", "b", "same")],
        "rl/step-1": [Completion("p", text, 0) for text in ("c", "d", "e")],
        "rl/step-2": [Completion("p", text, 0) for text in ("same", "f", "g")],
    }
    found = [(row["candidates"], row["sources"][1][-1]) for row in people.pairs_to_judge(sampled)]
    # `same` was written by two of them, so it says nothing of either.
    assert found == [(["a", "c"], "1"), (["b", "f"], "2"), (["b", "d"], "1")]


def test_an_empty_study_is_one_line(toy, cut, tmp_path) -> None:
    out, study = tmp_path / "out", tmp_path / "study"
    given = {"gold": "people", "num_generations": 2, "best_of_n": 0, "output_dir": str(out)}
    overopt.run(Config(runs=[str(cut)], **given))
    main(["annotate", "new", str(study), "--kind", "pair", "--samples", str(out / "pairs.jsonl")])
    with pytest.raises(DataError, match="nobody has judged yet"):
        overopt.run(Config(resume=str(out), judgements=str(study)))
