"""The compare stage on toy models and files of completions, and every refusal in one line."""

import json
from pathlib import Path

import pytest

from talltree.config import parse
from talltree.errors import ConfigError, DataError, ModelError, RewardError, RunError
from talltree.stages import compare
from talltree.stages.compare.config import Config
from talltree.stages.named import split_list

from ..tiny import gpt2, llama, save
from .toy import make


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make(tmp_path_factory.mktemp("compare"))


def read(folder: Path):
    return json.loads((folder / "comparison.json").read_text())


def options(toy, output, **changed):
    return {
        "prompts": str(toy.prompts), "rewards": f"{toy.reward}:count", "seeds": [0, 1], "num_generations": 2,
        "max_completion_length": 6, "output_dir": str(output),
    } | changed  # fmt: skip


def write_samples(path: Path, texts) -> str:
    """texts: prompt -> completions."""
    rows = [{"prompt": prompt, "completion": text} for prompt, each in texts.items() for text in each]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_run_alone_is_before_against_after(toy, tmp_path) -> None:
    run = toy.run("young", prompts=str(toy.prompts), held_out=0.4, learning_rate=0.05)
    given = options(toy, tmp_path / "out", prompts=None)
    compare.run(Config(models=[str(run)], **given))
    found = read(tmp_path / "out")
    assert [each["name"] for each in found["models"]] == ["before", "after"]
    assert found["models"][0]["sha256"] != found["models"][1]["sha256"]
    # The held-out prompts of the run, two of its five, with 2 completions for each of 2 seeds.
    assert (found["prompts"], found["seeds"], found["completions_per_model"]) == (2, [0, 1], 8)
    by_name = {each["measure"]: each for each in found["differences"]["after"]}
    assert by_name["kl"]["left"]["value"] == pytest.approx(0.0, abs=1e-5)
    assert {f"{toy.reward}:count", "kl", "words", "distinct_2", "unique", "self_bleu"} <= set(by_name)
    assert found["verdict"]["after"] and any("95%" in note for note in found["notes"])
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert (
        [row["source"] for row in rows].count("before") == 8 == [row["source"] for row in rows].count("after")
    )


def test_figures_are_those_of_the_samples_it_kept(toy, tmp_path) -> None:
    other = save(tmp_path / "other", llama(seed=7))
    compare.run(Config(models=[f"one={toy.model}", f"two={other}"], **options(toy, tmp_path / "out")))
    found = read(tmp_path / "out")
    lines = (tmp_path / "out/samples.jsonl").read_text().splitlines()
    means = {}
    for name in ("one", "two"):
        rows = [row for row in map(json.loads, lines) if row["source"] == name]
        prompts = {row["prompt"] for row in rows}
        assert len(prompts) == 5 and len(rows) == 20
        of_prompt = [[len(r["completion"].split()) for r in rows if r["prompt"] == p] for p in prompts]
        means[name] = sum(sum(each) / len(each) for each in of_prompt) / 5
    words = next(each for each in found["differences"]["two"] if each["measure"] == "words")
    assert words["left"]["value"] == pytest.approx(means["one"])
    assert words["difference"]["value"] == pytest.approx(means["two"] - means["one"])
    assert not any(each["measure"] == "kl" for each in found["differences"]["two"])  # no reference was given


def test_a_planted_difference_is_claimed_and_no_other(tmp_path) -> None:
    short = {f"p{i}": ["one two three", "one two four"] for i in range(12)}
    long = {f"p{i}": ["one two three four", "one two four five"] for i in range(12)}
    given = [
        write_samples(tmp_path / f"{name}.jsonl", each) for name, each in (("short", short), ("long", long))
    ]
    compare.run(Config(models=given, output_dir=str(tmp_path / "out")))
    found = read(tmp_path / "out")
    said = {each["measure"]: each["said"] for each in found["differences"]["long"]}
    assert said["words"] == "shown" and said["unique"] == "not shown"
    assert (
        found["verdict"]["long"][0]
        == "words is higher in long than in short: +1.00 (1.00 to 1.00) words, from 3.00 to 4.00."
    )
    assert any("one sampling seed" in note for note in found["notes"])
    assert not any("say nothing of others" in note for note in found["notes"])


def test_the_page_is_self_contained_and_escaped(tmp_path) -> None:
    hostile = "</p><script>alert(1)</script><img src=x onerror=alert(2)>"
    texts = {f"{hostile}{i}": [hostile] for i in range(3)}
    other = {prompt: ["w1 w2"] for prompt in texts}
    given = [write_samples(tmp_path / "a<b>.jsonl", texts), write_samples(tmp_path / "c.jsonl", other)]
    compare.run(Config(models=given, output_dir=str(tmp_path / "out")))
    page = (tmp_path / "out/report.html").read_text()
    assert "<script" not in page and "<img src=x" not in page and "a&lt;b&gt;" in page
    assert "http" not in page.split("<style>")[1].replace("http-equiv", "")
    assert "Content-Security-Policy" in page and "one sampling seed" in page


def test_the_same_command_gives_the_same_bytes(toy, tmp_path) -> None:
    other = save(tmp_path / "other", llama(seed=7))
    pages = []
    for name in ("x", "y"):
        given = options(toy, tmp_path / name / "out")
        compare.run(Config(models=[str(toy.model), str(other)], **given))
        pages.append(
            [
                (tmp_path / name / "out" / file).read_bytes()
                for file in ("comparison.json", "samples.jsonl", "report.html")
            ]
        )
    assert pages[0] == pages[1]


def test_bare_arguments_are_models(toy) -> None:
    parsed = parse(
        Config, ["a", "b", "--rewards", "alliteration,length"], "talltree compare", compare.POSITIONAL
    )
    assert parsed.models == ["a", "b"]
    assert split_list("alliteration, keyword(words=['a', 'b,c']) - 0.1*length,k.py:f") == [
        "alliteration", "keyword(words=['a', 'b,c']) - 0.1*length", "k.py:f",
    ]  # fmt: skip


# --- refusals --------------------------------------------------------------------------------------------


def refused(error, match, **given) -> None:
    """One line that says it, and no folder."""
    output = Path(given["output_dir"])
    with pytest.raises(error, match=match) as caught:
        config = Config(**given)
        config.check()
        compare.run(config)
    assert "\n" not in str(caught.value) and not output.exists()


def test_an_empty_comparison_is_refused(toy, tmp_path) -> None:
    given = options(toy, tmp_path / "out", rewards="")
    refused(ConfigError, "nothing to compare: name two models", models=[], **given)
    refused(ConfigError, "is alone: name a second one", models=[str(toy.model)], **given)


def test_a_model_against_itself_is_refused(toy, tmp_path) -> None:
    copied = save(tmp_path / "copied", llama())
    given = options(toy, tmp_path / "out")
    refused(ConfigError, "named twice", models=[f"a={toy.model}", f"b={toy.model}"], **given)
    refused(
        ConfigError, "the same model: their weights are equal", models=[str(toy.model), str(copied)], **given
    )


def test_two_of_one_name_are_refused(toy, tmp_path) -> None:
    (tmp_path / "x").mkdir()
    other = save(tmp_path / "x/model", llama(seed=3))
    refused(
        ConfigError,
        "two of them are called 'model'; tell them apart as NAME=",
        models=[str(toy.model), str(other)],
        **options(toy, tmp_path / "out"),
    )


def test_unequal_prompt_sets_are_refused(tmp_path) -> None:
    one = write_samples(tmp_path / "one.jsonl", {"p": ["a"], "q": ["b"]})
    two = write_samples(tmp_path / "two.jsonl", {"p": ["a"]})
    three = write_samples(tmp_path / "three.jsonl", {"p": ["a", "c"], "q": ["b"]})
    given = {"output_dir": str(tmp_path / "out")}
    refused(
        DataError,
        r"unequal prompt sets \(2 and 1 prompts; 'q' is missing in two\)",
        models=[one, two],
        **given,
    )
    refused(DataError, "have 1 and 2 completions of 'p'", models=[one, three], **given)


def test_bad_files_of_completions_are_refused(tmp_path) -> None:
    good = write_samples(tmp_path / "good.jsonl", {"p": ["a"]})
    given = {"output_dir": str(tmp_path / "out")}
    refused(DataError, "missing.jsonl not found", models=[good, str(tmp_path / "missing.jsonl")], **given)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p", "completion": 3}\n')
    refused(
        DataError,
        "bad.jsonl.*1.*completion '3' is no text",
        models=[good, str(tmp_path / "bad.jsonl")],
        **given,
    )
    for column, value, match in (
        ("kl", '"far"', "kl 'far' is no finite number"),
        ("kl", "NaN", "kl 'nan' is no finite number"),
        ("tokens", "true", "tokens 'True' is no finite number"),
        ("ended", '"yes"', "ended 'yes' is neither true nor false"),
    ):
        (tmp_path / "bad.jsonl").write_text(f'{{"prompt": "p", "completion": "a", "{column}": {value}}}\n')
        refused(DataError, match, models=[good, str(tmp_path / "bad.jsonl")], **given)


def test_a_run_that_cuts_its_completions_is_compared_as_it_was_trained(toy, tmp_path) -> None:
    run = toy.run(
        "cut", steps=1, learning_rate=0.05, max_completion_length=12, truncate_token="w7", truncate_after=2
    )
    given = options(toy, tmp_path / "out", prompts=None, max_completion_length=None, num_generations=40)
    compare.run(Config(models=[str(run)], **given))
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert max(row["tokens"] for row in rows) > 3
    # From the third token on, w7 is the last one; only it is the required end.
    assert any(row["ended"] for row in rows)
    for row in rows:
        words = row["completion"].split()
        assert "w7" not in words[2:-1], row
        assert row["ended"] == (len(words) > 2 and words[-1] == "w7"), row


def test_a_reference_with_another_tokenizer_is_refused(toy, tmp_path) -> None:
    other, small = save(tmp_path / "o", llama(seed=3)), save(tmp_path / "small", gpt2(vocabulary=30))
    refused(
        ModelError, "different tokenizers, so the KL", models=[str(toy.model), str(other)],
        **options(toy, tmp_path / "out", reference=str(small)),
    )  # fmt: skip


def test_mistakes_in_rewards_show_before_anything_is_sampled(toy, tmp_path) -> None:
    other = str(save(tmp_path / "o", llama(seed=3)))
    models = [str(toy.model), other]
    refused(
        RewardError,
        "did you mean alliteration",
        models=models,
        **options(toy, tmp_path / "out", rewards="aliteration"),
    )
    refused(
        ConfigError,
        "names 'length' twice",
        models=models,
        **options(toy, tmp_path / "out", rewards="length,length"),
    )


def test_a_run_that_has_not_ended_and_a_used_folder_are_refused(toy, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(f"model_name_or_path: {toy.model}\n")
    refused(
        ConfigError,
        "has no final/: the run has not ended",
        models=[str(tmp_path / "run")],
        **options(toy, tmp_path / "out"),
    )
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").write_text("")
    with pytest.raises(RunError, match="is not empty"):
        compare.run(Config(models=["a", "b"], output_dir=str(tmp_path / "used")))


def test_seeds_must_differ(toy, tmp_path) -> None:
    refused(ConfigError, r"seeds \[1, 1\]", models=["a", "b"], **options(toy, tmp_path / "out", seeds=[1, 1]))
