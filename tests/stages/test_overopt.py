"""The overopt stage on toy runs: points from the samples it keeps, resume, people's gold, every refusal."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest

from talltree.config import to_dict
from talltree.errors import ConfigError, DataError, RewardError, RunError
from talltree.evals.bestofn import best_of_n_kl, expected
from talltree.stages import overopt
from talltree.stages.fresh import Completion
from talltree.stages.overopt import loop, people
from talltree.stages.overopt.config import Config

from ..tiny import llama, save
from .toy import make

GOLD = '''
def gold(prompts, completions):
    """Words w7 up to two, then a loss for each."""
    counts = [text.split().count("w7") for text in completions]
    return [c if c <= 2 else 4.0 - c for c in counts]
'''


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make(tmp_path_factory.mktemp("overopt"))


@pytest.fixture(scope="module")
def trained(toy):
    """A run with a checkpoint of each of four steps."""
    return toy.run("rl", prompts=str(toy.prompts), held_out=0.4, steps=4, learning_rate=0.05)


@pytest.fixture(scope="module")
def gold(toy):
    path = toy.folder / "gold.py"
    path.write_text(GOLD)
    return f"{path}:gold"


def options(gold, output, **changed):
    return {"gold": gold, "num_generations": 4, "best_of_n": 3, "output_dir": str(output)} | changed


def read(folder: Path):
    return json.loads((folder / "overopt.json").read_text())


def rows(folder: Path):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def measured(toy, trained, gold):
    overopt.run(Config(runs=[str(trained)], **options(gold, toy.folder / "measured")))
    return toy.folder / "measured"


def count_w7(text):
    return text.split().count("w7")


def test_points_are_the_means_of_the_samples(measured) -> None:
    found = read(measured)
    run, best = found["curves"]
    assert [point["label"] for point in run["points"]] == ["step 1", "step 2", "step 3", "step 4"]
    assert (run["kind"], best["kind"]) == ("rl", "bon")
    for point in run["points"]:
        drawn = [row for row in rows(measured) if row["source"] == f"rl/step-{point['at']}"]
        assert len(drawn) == 8  # two held-out prompts, four draws of each
        kl = sum(row["kl"] for row in drawn) / 8
        assert point["kl"]["value"] == pytest.approx(kl)
        assert point["d"] == pytest.approx(math.sqrt(max(kl, 0)))
        counts = [count_w7(row["completion"]) for row in drawn]
        assert point["gold"]["value"] == pytest.approx(sum(c if c <= 2 else 4 - c for c in counts) / 8)
        assert point["gold"]["low"] <= point["gold"]["value"] <= point["gold"]["high"]
    assert found["proxy"].endswith(":count")  # the run's own reward
    assert run["advice"] and any("2 prompts" in note for note in found["notes"])


def test_best_of_n_is_the_estimator_on_the_references_samples(measured) -> None:
    best = read(measured)["curves"][1]
    base = [row for row in rows(measured) if row["source"] == "base"]
    assert [point["at"] for point in best["points"]] == [1, 2, 3]
    prompts = sorted({row["prompt"] for row in base})
    assert len(base) == 2 * 6  # twice the largest n
    weights = {"w7": 1.0, "w1": 0.1, "w3": 0.1, "w5": 0.1}
    for point in best["points"]:
        values = []
        for prompt in prompts:
            texts = [row["completion"] for row in base if row["prompt"] == prompt]
            proxy = [sum(weights.get(word, 0.0) for word in text.split()) for text in texts]
            true = [c if c <= 2 else 4.0 - c for c in map(count_w7, texts)]
            values.append(expected(proxy, true, point["at"]))
        assert point["gold"]["value"] == pytest.approx(sum(values) / 2)
        assert point["kl"]["value"] == pytest.approx(best_of_n_kl(point["at"]))


def test_the_page_shows_the_curves_and_needs_nothing_else(measured) -> None:
    page = (measured / "report.html").read_text()
    assert "<script" not in page and page.count("data:image/svg+xml") == 2
    assert "best-of-n" in page and "alpha" in page and "step 4" in page


def kept_files(folder: Path) -> dict[str, Path]:
    """What is kept -> its file, by the key that stands in each."""
    files = list((folder / "drawn").rglob("*.json"))
    return {json.loads(path.read_bytes().split(b"\n", 1)[1])["answers_to"]["task"]: path for path in files}


def test_a_resume_reads_what_was_drawn(measured, toy, trained, gold, monkeypatch) -> None:
    before = (measured / "overopt.json").read_bytes()
    assert len(kept_files(measured)) == 5
    kept_files(measured)["what rl/step-4 wrote"].unlink()
    drawn = []
    real = loop._draw

    def counted(planned, source, reference):
        drawn.append(source.name)
        return real(planned, source, reference)

    monkeypatch.setattr(loop, "_draw", counted)
    overopt.run(Config(resume=str(measured)))
    assert drawn == ["rl/step-4"]
    # The same draws from the same seed: the same result, to the byte.
    assert (measured / "overopt.json").read_bytes() == before


def test_a_resume_may_ask_for_another_gold(toy, trained, gold, monkeypatch) -> None:
    output = toy.folder / "rescored"
    overopt.run(Config(runs=[str(trained)], **options(gold, output)))
    monkeypatch.setattr(loop, "_draw", None)  # nothing is to be drawn
    overopt.run(Config(resume=str(output), gold="length"))
    point = read(output)["curves"][0]["points"][0]
    drawn = [row for row in rows(output) if row["source"] == "rl/step-1"]
    assert point["gold"]["value"] == pytest.approx(sum(len(row["completion"].split()) for row in drawn) / 8)
    with pytest.raises(ConfigError, match="--resume continues"):
        overopt.run(Config(resume=str(output), seed=5))


def test_a_checkpoint_that_changed_is_drawn_again(toy, gold, tmp_path) -> None:
    first = toy.run("first", steps=1, learning_rate=0.05)
    overopt.run(Config(runs=[str(first)], **options(gold, tmp_path / "out", best_of_n=0)))
    before = [row for row in rows(tmp_path / "out") if row["source"] == "first/step-1"]
    other = toy.run("other", steps=1, learning_rate=0.5)
    shutil.rmtree(first / "checkpoints/step-1")
    shutil.copytree(other / "checkpoints/step-1", first / "checkpoints/step-1")
    overopt.run(Config(resume=str(tmp_path / "out")))
    assert [row for row in rows(tmp_path / "out") if row["source"] == "first/step-1"] != before


def test_a_run_that_cuts_its_completions_is_sampled_as_it_was_trained(toy, gold, tmp_path) -> None:
    cut = {"max_completion_length": 12, "truncate_token": "w7", "truncate_after": 2}
    run = toy.run("cut", steps=1, **cut)
    overopt.run(Config(runs=[str(run)], **options(gold, tmp_path / "out", num_generations=60)))
    found = rows(tmp_path / "out")
    assert {row["source"] for row in found if row["ended"]} == {"base", "cut/step-1"}
    for row in found:
        words = row["completion"].split()
        assert "w7" not in words[2:-1] and row["ended"] == (len(words) > 2 and words[-1] == "w7"), row
    other = toy.run("later", steps=1, **cut | {"truncate_after": 3})
    with pytest.raises(ConfigError, match="differ in truncate_token .*from position 2, .*from position 3"):
        overopt.run(Config(runs=[str(run), str(other)], **options(gold, tmp_path / "two")))


def test_adapters_are_measured_on_their_base(toy, gold, tmp_path) -> None:
    run = toy.run("lora", prompts=str(toy.prompts), held_out=0.4, steps=2, lora_r=2, learning_rate=0.5)
    overopt.run(Config(runs=[str(run)], **options(gold, tmp_path / "out", best_of_n=0)))
    found = read(tmp_path / "out")
    assert [curve["name"] for curve in found["curves"]] == ["lora"]
    assert all(abs(point["kl"]["value"]) > 1e-6 for point in found["curves"][0]["points"])


def test_best_of_n_needs_no_run(toy, gold, tmp_path) -> None:
    given = options(
        gold, tmp_path / "out", prompt="w1 w2", proxy=f"{toy.reward}:count", max_completion_length=6
    )
    overopt.run(Config(model_name_or_path=str(toy.model), **given))
    found = read(tmp_path / "out")
    assert [curve["name"] for curve in found["curves"]] == ["best-of-n"]
    assert any("this one prompt" in note for note in found["notes"])


# --- people's gold -----------------------------------------------------------------------------------------


@pytest.fixture
def waiting(trained, tmp_path):
    overopt.run(Config(runs=[str(trained)], **options("people", tmp_path / "out")))
    assert not (tmp_path / "out/overopt.json").exists()
    return tmp_path / "out"


def judgements(path: Path, given) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return str(path)


def test_pairs_against_the_reference_become_win_rates(waiting, tmp_path) -> None:
    texts = {(row["source"], row["prompt"]): row["completion"] for row in rows(waiting)}
    prompts = sorted({prompt for _, prompt in texts})
    given = []
    for step in range(1, 5):
        for prompt in prompts:
            pair = [texts["base", prompt], texts[f"rl/step-{step}", prompt]]
            if pair[0] != pair[1]:
                answer = {"tie": True} if step == 1 else {"best": int(step != 4)}
                given.append({"prompt": prompt, "candidates": pair, "annotator": "ann", **answer})
    overopt.run(Config(resume=str(waiting), judgements=judgements(tmp_path / "j.jsonl", given)))
    found = read(waiting)
    assert [point["gold"]["value"] for point in found["curves"][0]["points"]] == [0.5, 1.0, 1.0, 0.0]
    assert found["curves"][0]["base_gold"]["value"] == 0.5
    assert len(found["curves"]) == 1 and any("win rates say nothing" in note for note in found["notes"])


def test_a_text_that_two_sources_wrote_is_nobodys_win() -> None:
    def wrote(*texts):
        return [Completion("p", text, 0) for text in texts]

    sampled = {"base": wrote("a", "b"), "rl/step-1": wrote("a", "c"), "rl/step-2": wrote("d")}
    assert people._writers(sampled) == {
        ("p", "b"): "base", ("p", "c"): "rl/step-1", ("p", "d"): "rl/step-2",
    }  # fmt: skip


def test_ratings_are_gold_of_single_samples(waiting, tmp_path) -> None:
    unique = {(row["prompt"], row["completion"]): len(row["completion"].split()) for row in rows(waiting)}
    given = [
        {"prompt": prompt, "candidates": [text], "ratings": [value + shift], "annotator": name}
        for (prompt, text), value in unique.items()
        for name, shift in (("ann", 0.5), ("bob", -0.5))
    ]
    overopt.run(Config(resume=str(waiting), judgements=judgements(tmp_path / "j.jsonl", given)))
    run, best = read(waiting)["curves"]
    drawn = [row for row in rows(waiting) if row["source"] == "rl/step-2"]
    mean = sum(len(row["completion"].split()) for row in drawn) / 8
    assert run["points"][1]["gold"]["value"] == pytest.approx(mean)
    assert best["kind"] == "bon"


def test_judgements_of_other_texts_are_refused(waiting, tmp_path) -> None:
    other = judgements(tmp_path / "j.jsonl", [{"prompt": "p", "candidates": ["a", "b"], "best": 0}])
    with pytest.raises(DataError, match="say nothing of base|say nothing of rl/step-1"):
        overopt.run(Config(resume=str(waiting), judgements=other))


# --- refusals ----------------------------------------------------------------------------------------------


def test_what_cannot_be_measured_is_refused(toy, trained, gold, tmp_path) -> None:
    output = tmp_path / "out"
    good = Config(runs=[str(trained)], **options(gold, output))
    other = toy.run("cold", prompts=str(toy.prompts), held_out=0.4, steps=1, temperature=0.5)
    long = tmp_path / "long"
    long.mkdir()
    (long / "config.yaml").write_text(f"model_name_or_path: {toy.model}\nreward: length\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text(f"model_name_or_path: {toy.model}\nreward: length\n")
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/config.yaml").write_text("stage: sft\n")
    for changed, error, match in (
        ({"gold": None}, ConfigError, "gold is not given"),
        ({"runs": [], "best_of_n": 0}, ConfigError, "nothing to measure"),
        ({"runs": []}, ConfigError, "proxy is not given"),
        ({"runs": [str(trained)] * 2}, ConfigError, "named twice"),
        ({"best_of_n": 1}, ConfigError, "best_of_n 1 chooses nothing"),
        ({"judgements": "x.jsonl"}, ConfigError, "judgements are for gold people"),
        ({"runs": [str(trained), str(other)]}, ConfigError, "differ in temperature"),
        ({"runs": [str(trained), str(long)]}, ConfigError, "differ in reward .*length.*; name one as proxy"),
        ({"runs": [str(empty)]}, RunError, "no checkpoint after step 0"),
        ({"runs": [str(tmp_path / "sft")]}, RunError, "is no rl run"),
        ({"runs": [str(tmp_path / "none")]}, RunError, "does not exist"),
        ({"gold": "aliteration"}, RewardError, "did you mean alliteration"),
        ({"proxy": "nothing.py:f"}, RewardError, "not found"),
    ):
        with pytest.raises(error, match=match) as caught:
            config = dataclasses.replace(good, **changed)
            config.check()
            overopt.run(config)
        assert "\n" not in str(caught.value) and not output.exists(), match
    assert to_dict(good)["seed"] == 0


def test_another_reference_than_the_runs_own_is_refused(trained, gold, tmp_path) -> None:
    other = save(tmp_path / "other", llama(seed=9))
    with pytest.raises(RunError, match="is not the model that .* measured its KL from"):
        overopt.run(
            Config(runs=[str(trained)], **options(gold, tmp_path / "out", model_name_or_path=str(other)))
        )


def test_a_damaged_checkpoint_is_named(toy, gold, tmp_path) -> None:
    run = toy.run("damaged", steps=1)
    path = run / "checkpoints/step-1/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(RunError, match="step-1 is damaged"):
        overopt.run(Config(runs=[str(run)], **options(gold, tmp_path / "out")))


def test_a_folder_of_another_stage_cannot_be_resumed(trained) -> None:
    with pytest.raises(RunError, match="is no overopt folder"):
        overopt.run(Config(resume=str(trained)))
