"""The evaluate stage end to end on tiny models: files, cache, resume, kill, bad input."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from talltree import checkpoint
from talltree.config import from_dict, parse
from talltree.errors import ConfigError, DataError, ModelError, RunError
from talltree.evals.blimp import PARADIGMS
from talltree.evals.identity import config_sha256
from talltree.run import Run
from talltree.stages import evaluate

from ..tiny import gpt2, llama, save

NAMES = ("passive_1", "wh_island", "principle_A_case_1")


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with two models, three paradigms, held-out text and training text."""
    folder = tmp_path_factory.mktemp("evaluate")
    save(folder / "small", llama())
    save(folder / "other", gpt2(seed=3))
    (folder / "blimp").mkdir()
    for number, name in enumerate(NAMES):
        rows = [
            {"sentence_good": f"w{at % 20 + 1} w{number + 1} w3", "sentence_bad": f"w3 w{at % 20 + 1} w7 w8"}
            for at in range(40)
        ]
        (folder / "blimp" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "valid.txt").write_text("w1 w2 w3<|endoftext|>w4 w5<|endoftext|>" + " ".join(["w6"] * 90))
    (folder / "prompts.txt").write_text("w1 w2\nw3\nw4 w5\n")
    (folder / "cola").mkdir()
    return folder


def options(there, **changed):
    return {
        "models": [str(there / "small"), str(there / "other")],
        "tasks": ",".join(["loss", *(f"blimp:{name}" for name in NAMES), "stories"]),
        "blimp.data": str(there / "blimp"),
        "loss.data": str(there / "valid.txt"),
        "stories.prompts": str(there / "prompts.txt"),
        "stories.seeds": [0, 1],
        "stories.samples": 2,
        "stories.max_completion_length": 6,
        "stories.judge": str(there / "other"),
        "stories.training.data": str(there / "valid.txt"),
        "stories.ngram": 2,
    } | changed


def run(there, output, **changed):
    config = from_dict(evaluate.Config, options(there, output_dir=str(output), **changed))
    evaluate.run(config)
    return json.loads((Path(output) / "results.json").read_text())


@pytest.fixture(scope="module")
def done(there, tmp_path_factory):
    output = tmp_path_factory.mktemp("done") / "eval"
    return output, run(there, output)


def test_everything_ends_in_one_folder(done):
    output, results = done
    assert [model["name"] for model in results["models"]] == ["small", "other"]
    for model in results["models"]:
        assert list(model["tasks"]) == ["loss", "blimp", "stories"]
        for name, task in model["tasks"].items():
            assert all(
                set(metric) == {"value", "low", "high", "n", "unit"} for metric in task["metrics"].values()
            )
            rows = [json.loads(line) for line in (output / task["rows"]).read_text().splitlines()]
            assert len(rows) == {"loss": 3, "blimp": 120, "stories": 12}[name]
    summary = Run.open(output).summary()
    assert summary["stop_reason"] == "every task is done"
    found = results["models"][0]["tasks"]
    won = [json.loads(line)["won"] for line in (output / found["blimp"]["rows"]).read_text().splitlines()]
    assert found["blimp"]["metrics"]["overall"]["value"] == pytest.approx(sum(won) / 120)
    assert any("read in" in note and "windows" in note for note in found["loss"]["notes"])


def test_both_models_have_the_same_prompts_and_seeds(done):
    output, results = done
    asked = [
        [(row["prompt"], row["seed"]) for row in map(json.loads, (output / path).read_text().splitlines())]
        for path in (model["tasks"]["stories"]["rows"] for model in results["models"])
    ]
    assert asked[0] == asked[1]
    assert len(set(asked[0])) == 6
    notes = [model["tasks"]["stories"]["notes"] for model in results["models"]]
    assert "The judge is other." in notes[0]
    assert any("the model itself" in note for note in notes[1])


def test_a_second_evaluation_takes_everything_from_the_cache(there, done, tmp_path, capsys):
    output, results = done
    again = run(there, tmp_path / "again", cache_dir=str(output.parent / "eval-cache"))
    assert again == results
    said = capsys.readouterr().out
    assert said.count("parts were there already") == 6
    assert "tokens/s" not in said
    for each in results["models"]:
        for task in each["tasks"].values():
            assert (tmp_path / "again" / task["rows"]).read_bytes() == (output / task["rows"]).read_bytes()


def test_a_damaged_entry_is_computed_again_and_said(there, tmp_path, capsys):
    one = {"tasks": "blimp:wh_island", "cache_dir": str(tmp_path / "cache"), "models": [str(there / "small")]}
    first = run(there, tmp_path / "a", **one)
    (entry,) = (tmp_path / "cache").rglob("*.json")
    entry.write_bytes(entry.read_bytes()[:-9])
    assert run(there, tmp_path / "b", **one) == first
    assert "is damaged; blimp, wh_island is computed again" in capsys.readouterr().out


def test_other_weights_options_and_data_are_other_entries(there, tmp_path):
    one = {"tasks": "blimp:wh_island", "cache_dir": str(tmp_path / "cache")}
    run(there, tmp_path / "a", **one)
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 2
    run(there, tmp_path / "b", **one | {"blimp.leading_space": True})
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 4
    (tmp_path / "blimp").mkdir()
    (tmp_path / "blimp" / "wh_island.jsonl").write_text('{"sentence_good": "w1", "sentence_bad": "w2"}')
    run(there, tmp_path / "c", **one | {"blimp.data": str(tmp_path / "blimp")})
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 6


# Stopping


COMMAND = """
import sys, time
from talltree.evals import blimp
from talltree.stages import evaluate
from talltree.config import parse
real = blimp.score_paradigm
def slow(*args, **options):
    found = real(*args, **options)
    if args[2].name == "wh_island":
        for _ in range(600):  # the second part is in progress until it is stopped
            time.sleep(0.1)
            options["heard"](0)
    return found
blimp.score_paradigm = slow
evaluate.run(parse(evaluate.Config, sys.argv[1:], "talltree evaluate", evaluate.POSITIONAL))
"""


def started(there, output):
    arguments = [str(there / "small"), "--tasks", ",".join(f"blimp:{name}" for name in NAMES)]
    arguments += ["--blimp.data", str(there / "blimp"), "--output_dir", str(output)]
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "1/3 passive_1" in line:
            return process
    raise AssertionError("it ended before its first part was done")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_finished_survives_and_resume_does_the_rest(there, tmp_path, capsys, how):
    output = tmp_path / "eval"
    process = started(there, output)
    process.send_signal(how)
    assert process.wait(timeout=60) == (143 if how == signal.SIGTERM else -signal.SIGKILL)
    assert len(list((tmp_path / "eval-cache").rglob("*.json"))) == 1
    with pytest.raises(RunError, match="--resume"):
        run(there, output)
    evaluate.run(from_dict(evaluate.Config, {"resume": str(output)}))
    said = capsys.readouterr().out
    assert "1 of 3 parts were there already" in said
    parts = {"tasks": ",".join(f"blimp:{name}" for name in NAMES), "models": [str(there / "small")]}
    whole = run(there, tmp_path / "whole", **parts, cache_dir=str(tmp_path / "other"))
    assert json.loads((output / "results.json").read_text()) == whole
    with pytest.raises(RunError, match="has ended"):
        evaluate.run(from_dict(evaluate.Config, {"resume": str(output)}))


# The page and the card


def test_the_page_stands_alone(done):
    output, _ = done
    page = (output / "report.html").read_text()
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    for words in ("Held-out loss", "BLiMP", "Stories", "small", "other", "bits per byte", "self bleu"):
        assert words in page
    assert page.count("data:image/svg+xml") > 10
    assert "other: The judge is other, the model itself" in page  # a note that holds for one model names it
    assert "small, other: " not in page


def test_a_models_name_is_text_on_the_page(there, tmp_path):
    from talltree.report.evaluation import build

    metric = {"value": 0.5, "low": None, "high": None, "n": 1, "unit": "share of pairs"}
    task = {"metrics": {"overall": metric}, "notes": ["<script>alert(1)</script>"], "rows": "rows"}
    model = {
        "name": "<b>x",
        "parameters": 1,
        "weights_sha256": "",
        "tokenizer_sha256": "",
        "tasks": {"blimp": task},
    }
    page = build({"models": [model]}, "<i>")
    assert "<script>" not in page
    assert "&lt;b&gt;x" in page


def test_the_card_takes_the_results(there, tmp_path):
    from huggingface_hub import ModelCard

    final = tmp_path / "run" / "final"
    checkpoint.save_folder(final, lambda path: save(path, llama()))
    (tmp_path / "run" / "config.yaml").write_text("{}\n")
    (final / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n\nText.\n")
    one = {"models": [str(tmp_path / "run")], "write_card": True, "tasks": "loss"}
    results = run(there, tmp_path / "a", **one)
    value = results["models"][0]["tasks"]["loss"]["metrics"]["bits_per_byte"]["value"]
    card = ModelCard.load(final / "README.md")
    assert results["models"][0]["name"] == "run"
    assert card.data.license == "mit"
    values = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert values["bits_per_byte"] == pytest.approx(value)
    first = (final / "README.md").read_text()
    assert "# Mine\n\nText." in first
    assert first.count("## Evaluation") == 1
    run(there, tmp_path / "b", **one)  # its own card does not make the model a damaged one
    assert (final / "README.md").read_text() == first
    assert yaml.safe_load(first.split("---")[1])["model-index"][0]["name"] == "run"


@pytest.mark.parametrize(
    ("name", "message"),
    [("seedling", "belongs to the package"), ("checkpoints/step-1", "is a checkpoint")],
)
def test_where_no_card_can_be_written(there, tmp_path, name, message):
    if name != "seedling":
        name = str(save(tmp_path / name, llama()))
    with pytest.raises(ModelError, match=message):
        run(there, tmp_path / "out", models=[name], write_card=True, tasks="loss")
    assert not (tmp_path / "out").exists()


# Bad input


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"models": []}, ConfigError, "no model is named"),
        ({"tasks": "blimb"}, ConfigError, "tasks: 'blimb' is not known; nearest: blimp; tasks: loss, blimp"),
        ({"tasks": "blimp:wh_iland"}, ConfigError, "'blimp:wh_iland' is not known; nearest: blimp:wh_island"),
        ({"tasks": "glue:colla"}, ConfigError, "'glue:colla' is not known; nearest: glue:cola"),
        ({"tasks": "loss:x"}, ConfigError, "loss has no parts"),
        ({"tasks": "blimp,blimp:wh_island"}, ConfigError, "one or the other"),
        ({"tasks": " , "}, ConfigError, "tasks names no task"),
        ({"tasks": "loss", "loss.data": ""}, ConfigError, "the task loss needs held-out texts"),
        ({"tasks": "loss", "loss.data": "./none.txt"}, DataError, "loss.data: corpus none.txt not found"),
        ({"tasks": "blimp"}, DataError, r"lacks 64 of 67 paradigms \(adjunct_island.*fetch the folder data/"),
        ({"models": ["./nowhere"]}, ModelError, "model folder ./nowhere does not exist"),
        ({"tasks": "stories", "stories.judge": "./nowhere"}, ModelError, "./nowhere does not exist"),
        ({"stories.seeds": [1, 1]}, ConfigError, "stories.seeds names 1 twice"),
        ({"stories.seeds": []}, ConfigError, "stories.seeds is empty"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(there, tmp_path, changed, kind, message):
    with pytest.raises(kind, match=message) as refused:
        run(there, tmp_path / "out", **changed)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_fine_tuning_data_that_is_missing_is_named(there, tmp_path):
    with pytest.raises(DataError, match=r"glue: \d+ of \d+ tasks cannot be read; the first: "):
        run(there, tmp_path / "out", tasks="glue", glue_data=str(there / "cola"))


def test_an_empty_training_text_is_refused_before_sampling(there, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"stories.training.data: .*empty.txt is empty|empty.txt is empty"):
        run(
            there, tmp_path / "out", tasks="stories", **{"stories.training.data": str(tmp_path / "empty.txt")}
        )


def test_a_model_folder_without_weights(there, tmp_path):
    folder = save(tmp_path / "bare", llama())
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"bare has no weights \(\*.safetensors\)"):
        run(there, tmp_path / "out", models=[str(folder)])


def test_a_run_that_has_not_ended_and_a_damaged_checkpoint(there, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}\n")
    with pytest.raises(RunError, match=r"has no final/ with a model in it: .* name one of its checkpoints"):
        run(there, tmp_path / "out", models=[str(tmp_path / "run")])
    folder = tmp_path / "checkpoints" / "step-3"
    checkpoint.save_folder(folder, lambda path: save(path, llama()))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match="is damaged: model.safetensors"):
        run(there, tmp_path / "out", models=[str(folder)])


def test_one_model_under_two_names(there, tmp_path):
    twice = [str(there / "small"), f"{there}/other/../small"]
    with pytest.raises(ConfigError, match="are one model; give it once"):
        run(there, tmp_path / "out", models=twice)


def test_a_prompt_that_one_model_cannot_hold_is_left_out_for_none(there, tmp_path):
    (tmp_path / "long.txt").write_text("w1\n" + " ".join(["w2"] * 60) + "\n")
    with pytest.raises(
        DataError, match=r"small: prompt .* has 60 tokens .* same prompts, so none is left out"
    ):
        run(there, tmp_path / "out", tasks="stories", **{"stories.prompts": str(tmp_path / "long.txt")})


def test_checkpoints_of_two_runs_have_names_of_their_own(tmp_path):
    from talltree.stages.evaluate.models import places

    for name in ("one", "two"):
        save(tmp_path / name / "checkpoints" / "step-1", llama())
    found = places([str(tmp_path / name / "checkpoints" / "step-1") for name in ("one", "two")])
    assert [each.label for each in found] == ["one/step-1", "two/step-1"]
    assert places(["seedling"])[0].label == "seedling"


def test_models_whose_rows_would_share_a_folder_are_refused(tmp_path):
    from talltree.stages.evaluate.models import places

    names = [save(tmp_path / name, llama()) for name in ("one/checkpoints/step-1", "one-step-1")]
    with pytest.raises(ConfigError, match="would both be called one-step-1; rename one"):
        places([str(name) for name in names])


def test_other_start_and_stop_tokens_are_other_results(there):
    from talltree.stages.evaluate.models import load, place

    loaded = load(place(str(there / "small")), torch.device("cpu"))
    known = {config_sha256(loaded.model, loaded.tokenizer), loaded.identity["config_sha256"]}
    assert len(known) == 1
    loaded.model.generation_config.eos_token_id = [2, 5]
    known.add(config_sha256(loaded.model, loaded.tokenizer))
    assert len(known) == 2
    loaded.tokenizer.bos_token = "w9"
    known.add(config_sha256(loaded.model, loaded.tokenizer))
    assert len(known) == 3


def test_models_are_bare_arguments():
    config = parse(evaluate.Config, ["a", "b", "--tasks", "blimp, stories"], "x", evaluate.POSITIONAL)
    assert config.models == ["a", "b"]
    assert config.task_names == ("blimp", "stories")
    assert len(PARADIGMS) == 67
    assert os.environ["HF_HUB_OFFLINE"] == "1"
