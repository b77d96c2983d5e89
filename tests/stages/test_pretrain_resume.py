"""Stage `pretrain`: stopped and resumed, to the last bit, or refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from talltree.config import to_yaml
from talltree.data.corpus_options import CorpusOptions
from talltree.errors import ConfigError, RunError
from talltree.models.build import Shape
from talltree.stages.pretrain import loop
from talltree.stages.pretrain import update as updates
from talltree.stages.pretrain.config import Config
from talltree.stages.tokenizer import train as tokenizer

from .pretrain_toy import SMALL, exact, make_config, make_corpus, make_tokens


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def tokens(corpus, tmp_path_factory):
    return make_tokens(corpus, tmp_path_factory.mktemp("runs") / "tok")


@pytest.fixture
def config(corpus, tokens, tmp_path):
    return make_config(corpus, tokens, tmp_path / "run")


@pytest.mark.parametrize(("optimizer", "stops"), [("adamw", (3,)), ("muon", (1, 2, 5))])
def test_resume_equals_the_run_never_interrupted(config, tmp_path, monkeypatch, optimizer, stops):
    config = replace(config, optimizer=optimizer, micro_batch_size=2)
    loop.run(config)
    plain = updates.update
    for stop in stops:
        folder = tmp_path / f"stopped-{stop}"
        calls = iter(range(1, 100))

        def update_then_signal(*arguments, calls=calls, stop=stop):
            if next(calls) == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(*arguments)

        monkeypatch.setattr(loop, "update", update_then_signal)
        with pytest.raises(SystemExit, match="143"):
            loop.run(replace(config, output_dir=str(folder)))
        assert (folder / "checkpoints" / f"step-{stop}").is_dir()
        assert not (folder / "final").exists()
        monkeypatch.setattr(loop, "update", plain)
        loop.run(Config(resume=str(folder)))
        for name in ("checkpoints/step-6/model.safetensors", "checkpoints/step-6/state.safetensors"):
            found, expected = load_file(folder / name), load_file(tmp_path / "run" / name)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert exact(folder) == exact(tmp_path / "run")


def test_time_limit_saves(config, tmp_path, capsys):
    loop.run(replace(config, max_minutes=1e-9))
    assert (tmp_path / "run" / "checkpoints" / "step-1" / "state.json").is_file()
    assert f"talltree pretrain --resume {tmp_path / 'run'}" in capsys.readouterr().out


def test_a_signal_saves_and_its_status_says_so(config, tmp_path, capsys):
    measured = []

    def interrupted(*arguments):
        measured.append(os.kill(os.getpid(), signal.SIGTERM))
        return updates.update(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="143"):
        patch.setattr(loop, "update", interrupted)
        loop.run(config)
    said = f"SIGTERM: saved step 1; continue with talltree pretrain --resume {tmp_path / 'run'}"
    assert said in capsys.readouterr().out and len(measured) == 1
    loop.run(Config(resume=str(tmp_path / "run")))
    loop.run(replace(config, output_dir=str(tmp_path / "whole")))
    assert exact(tmp_path / "run") == exact(tmp_path / "whole")


def test_an_ended_run_and_other_options_are_refused_on_resume(config, tmp_path):
    loop.run(replace(config, max_minutes=1e-9))
    resume = Config(resume=config.output_dir)
    with pytest.raises(ConfigError, match="where steps is 6, but 9 is asked for; leave it out"):
        loop.run(replace(resume, steps=9))
    loop.run(resume)
    with pytest.raises(RunError, match=r"has ended \(steps\); nothing is left to resume"):
        loop.run(resume)


def test_a_changed_corpus_or_tokenizer_is_refused_on_resume(config, corpus, tokens, tmp_path):
    changed = tmp_path / "stories.jsonl"
    changed.write_bytes(Path(corpus).read_bytes())
    loop.run(replace(config, dataset_name=str(changed), max_minutes=1e-9))
    changed.write_text(changed.read_text() + '{"text": "One more."}\n')
    with pytest.raises(RunError, match=r"stories\.jsonl"):
        loop.run(Config(resume=config.output_dir))


def test_another_vocabulary_on_resume_is_refused(config, corpus, tokens, tmp_path):
    loop.run(replace(config, max_minutes=1e-9))
    other = tmp_path / "tok"
    tokenizer.run(
        tokenizer.Config(
            dataset_name=corpus, output_dir=str(other), vocab_size=280,
            corpus=CorpusOptions(validation_share=0.2),
        )
    )  # fmt: skip
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace(tokens, str(other / "final")))
    with pytest.raises(
        RunError, match=r"its model has 300 tokens and tokenizer \S+ 280; give back"
    ) as caught:
        loop.run(Config(resume=config.output_dir))
    assert "\n" not in str(caught.value)


def test_other_rules_of_the_same_vocabulary_are_refused_on_resume(config, tokens, tmp_path):
    loop.run(replace(config, max_minutes=1e-9))
    other = tmp_path / "tok"
    shutil.copytree(tokens, other)
    rules = json.loads((other / "tokenizer.json").read_text())
    rules["model"]["merges"] = rules["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(rules))
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace(tokens, str(other)))
    with pytest.raises(RunError, match="the tokenizer is not the one that the run began with"):
        loop.run(Config(resume=config.output_dir))


def test_other_corpus_options_are_refused_on_resume(config, tmp_path):
    loop.run(replace(config, max_minutes=1e-9))
    path = tmp_path / "run" / "config.yaml"
    changed = path.read_text().replace("validation_share: 0.2", "validation_share: 0.3")
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(RunError, match="the corpus is not the one that the run began with .*_documents"):
        loop.run(Config(resume=config.output_dir))


def test_a_full_disk_in_the_middle_of_a_checkpoint_loses_nothing(config, tmp_path):
    """A limit on file size stands for the full disk: the kernel refuses the second checkpoint."""
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(config))
    # The optimiser's state is the largest file; metrics and TensorBoard stay far below the limit.
    code = (
        "import resource, sys\n"
        "from talltree import cli\n"
        "from talltree.run import Run\n"
        "save = Run.save_checkpoint\n"
        "def limited(self, step, *rest, **named):\n"
        "    if step == 4:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, -1))\n"
        "    return save(self, step, *rest, **named)\n"
        "Run.save_checkpoint = limited\n"
        "sys.exit(cli.main(['pretrain', '--config', sys.argv[1]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert said.startswith("talltree pretrain: error: cannot write ") and "step-4: File too large" in said
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]
    loop.run(replace(config, output_dir=str(tmp_path / "whole")))
    loop.run(Config(resume=str(tmp_path / "run")))
    assert exact(tmp_path / "run") == exact(tmp_path / "whole")


def test_separated_documents_train_and_resume(config, tmp_path):
    separated = replace(config, documents="separated", model=Shape(name="gpt2-tiny", **SMALL))
    loop.run(separated)
    loop.run(replace(separated, output_dir=str(tmp_path / "half"), max_minutes=1e-9))
    loop.run(Config(resume=str(tmp_path / "half")))
    assert exact(tmp_path / "half") == exact(tmp_path / "run")
    packed = replace(separated, documents="packed", output_dir=str(tmp_path / "packed"))
    loop.run(packed)
    assert exact(tmp_path / "packed")[0]["loss/train"] != exact(tmp_path / "run")[0]["loss/train"]
