"""Stage `sample`: what it refuses, writes and shows."""

import json

import pytest

from talltree import cli

from ..refusing import assert_says, refusing
from ..tiny import llama, save
from . import toy


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def refused(task, capsys):
    return refusing(task.folder, capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", ""], ["prompt '' has no tokens; a prompt needs at least one"]),
        (["--prompt", "  "], ["prompt 1: the prompt is empty"]),
        (["--prompt", "w1 " * 64], ["has 64 tokens", "context is 64"]),
        (["--prompts", "none.jsonl"], ["prompts none.jsonl not found"]),
        (["--count", "0"], ["--count: '0' is not allowed; allowed: int, at least 1"]),
        (["--temperature", "-1"], ["--temperature: '-1' is not allowed"]),
        (["--unended", "trim"], ["--unended: 'trim' is not allowed", "keep, cut, drop"]),
        (["--tempreature", "1"], ["nearest known: --temperature"]),
    ],
)
def test_sample_refuses(task, refused, arguments, said):
    assert_says(refused("sample", task.model, *arguments), *said)


def test_sample_refuses_models(task, refused, tmp_path):
    assert_says(refused("sample", tmp_path / "none"), f"model folder {tmp_path / 'none'} does not exist")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "w1"}\n{"prompt": \n')
    line = refused("sample", task.model, "--prompts", tmp_path / "bad.jsonl")
    assert_says(line, f"{tmp_path / 'bad.jsonl'}, line 2 is not JSON")


def test_sample_does_not_overwrite(task, refused, tmp_path):
    kept = tmp_path / "texts.jsonl"
    kept.write_text("years of work")
    assert_says(
        refused("sample", task.model, "--output", kept), f"output {kept} exists", "choose another file"
    )
    assert kept.read_text() == "years of work"
    line = refused("sample", task.model, "--output", kept / "deeper" / "texts.jsonl")
    assert_says(line, "cannot write output", kept / "deeper")


def test_sample_gives_up_on_a_model_that_never_ends(task, refused, tmp_path):
    """A model that never draws its stop token would otherwise be asked for ever."""
    model = llama(tied=False)
    model.lm_head.weight.data[0] = 0.0
    model.model.norm.weight.data.mul_(50.0)
    save(tmp_path / "endless", model)
    line = refused(
        "sample", tmp_path / "endless", "--unended", "drop", "--max_completion_length", 2,
        "--batch_size", 500, "--count", 500, "--prompt", "w1",
    )  # fmt: skip
    assert_says(line, "not ended within 2 tokens", "raise max_completion_length, or set unended keep")


def test_sample_writes_texts_with_their_prompts(task, tmp_path, capsys):
    path = tmp_path / "new" / "texts.jsonl"
    assert cli.main(["sample", str(task.model), "--prompts", str(task.prompts), "--count", "7",
                     "--max_completion_length", "4", "--output", str(path)]) == 0  # fmt: skip
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 7
    known = {json.loads(line)["prompt"] for line in task.prompts.read_text().splitlines()}
    for row in rows:
        assert row["prompt"] in known
        assert row["text"].startswith(row["prompt"])
    assert [entry.name for entry in path.parent.iterdir()] == ["texts.jsonl"]
    assert capsys.readouterr().out == f"7 texts in {path}\n"


def test_sample_shows_no_control_characters(task, tmp_path, capsys, monkeypatch):
    """What a model writes may hold escape sequences, which a terminal would obey."""
    from talltree import rollout

    monkeypatch.setattr(rollout, "_continuation", lambda *_: "\x1b[2J gone")
    assert cli.main(["sample", str(task.model), "--prompt", "w1", "--count", "1"]) == 0
    out = capsys.readouterr().out
    assert "gone" in out
    assert "\x1b" not in out
