"""`pretrain --compile true`: the losses of the plain forward, and one clear line without a compiler."""

import json
import shutil
from pathlib import Path

import pytest

from talltree.data.corpus_options import CorpusOptions
from talltree.errors import ConfigError
from talltree.models.build import Shape
from talltree.run import Run
from talltree.stages.pretrain import loop
from talltree.stages.pretrain.config import Config, Schedule
from talltree.stages.tokenizer import train as tokenizer

HELD_OUT = CorpusOptions(validation_share=0.2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    words = ["frog", "tree", "boat", "star", "cake", "ball", "moon"]
    texts = [
        f"One day a {a} met a {b}. The {a} and the {b} saw a {c}."
        for a in words
        for b in words
        for c in words
    ]
    (folder / "stories.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer.run(
        tokenizer.Config(
            dataset_name=str(folder / "stories.jsonl"),
            output_dir=str(folder / "tok"),
            vocab_size=300,
            corpus=HELD_OUT,
        )
    )
    return folder


def options(corpus: Path, output: Path, **changed: object) -> Config:
    return Config(
        dataset_name=str(corpus / "stories.jsonl"),
        tokenizer_name_or_path=str(corpus / "tok" / "final"),
        output_dir=str(output),
        model=Shape(hidden_size=16, layers=1, heads=2, kv_heads=1, intermediate_size=24, context=32),
        corpus=HELD_OUT,
        steps=4,
        batch_size=4,
        schedule=Schedule(warmup_steps=1),
        log_every=1,
        validation_every=2,
        sample_every=4,
        checkpoint_every=4,
        **changed,  # type: ignore[arg-type]
    )


def losses(folder: Path) -> list[float]:
    return [row["loss/train"] for row in Run.open(folder).metrics() if "loss/train" in row]


@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs g++ or clang++"
)
def test_a_compiled_forward_gives_the_losses_of_the_plain_one(corpus: Path, tmp_path: Path) -> None:
    for name, compiled in (("plain", False), ("compiled", True)):
        loop.run(options(corpus, tmp_path / name, compile=compiled))
    plain, compiled = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert len(plain) == 4 and plain[-1] < plain[0]
    # Fused float32 sums round in another order.
    assert compiled == pytest.approx(plain, abs=1e-4)
    assert (tmp_path / "compiled" / "final" / "model.safetensors").is_file()


def test_without_a_compiler_it_is_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"compile: torch.compile needs g\+\+ or clang\+\+"):
        loop.run(options(corpus, tmp_path / "run", compile=True))
