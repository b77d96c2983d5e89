"""The README's commands, run as written but for a smaller size; nothing else proves that they work."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALLER = {
    "rl": "--steps 2 --num_generations 2 --batch_size 4 --max_completion_length 12 --eval_samples 4",
    "sample": "--max_completion_length 32 --count 300 --unended keep",
    "tokenizer": "--vocab_size 512 --corpus.validation_share 0.2",
    "pretrain": "--steps 2 --batch_size 2 --schedule.warmup_steps 1 --model.context 64"
    " --corpus.validation_share 0.2",
    "reward": "--comparisons 8 --batch_size 4 --probes 0",
    "compare": "--seeds [0] --num_generations 1",
    "sft": "--split none --steps 2 --batch_size 4 --samples 1 --corpus.validation_share 0.2",
}
"""Appended to each command of a stage, so that the suite stays quick; a later option wins."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


def test_the_readme_has_commands() -> None:
    assert any(line.startswith("talltree rl") for line in commands())
    assert "make demo" in commands()


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {line.split()[1] for line in commands() if line.startswith("make ")} <= targets


def test_every_linked_page_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []


def test_commands_run_in_their_order(tmp_path: Path) -> None:
    for block in blocks("python"):
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block, encoding="utf-8")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    ran = 0
    for line in commands():
        words = shlex.split(line, comments=True)
        if words[0] != "talltree":
            continue
        extra = shlex.split(SMALLER.get(words[1], ""))
        if "--config" in words:  # its model is on the hub, which the suite never asks
            extra += ["--model_name_or_path", "seedling"]
        done = subprocess.run(
            [sys.executable, "-m", "talltree", *words[1:], *extra],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        ran += 1
    assert ran >= 5
    assert (tmp_path / "runs/kinder/report.html").is_file()
    assert (tmp_path / "runs/alliteration/final/model.safetensors").is_file()
    assert (tmp_path / "runs/tuned/final/README.md").is_file()


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.yaml")))
def test_every_recipe_is_a_valid_config(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from talltree.config import parse
    from talltree.stages.table import STAGES, stage_module

    first = recipe.removesuffix(".yaml").partition("_")[0]
    named = {"seedling.yaml": "pretrain", "seedling_tokenizer.yaml": "tokenizer"}
    stage = stage_module(named.get(recipe, first if first in STAGES else "rl"))
    arguments = ["--config", f"recipes/{recipe}"]
    # A recipe that says only how to train has a command in its comment that names the data as well.
    text = (ROOT / "recipes" / recipe).read_text(encoding="utf-8")
    if command := re.search(rf"^# +talltree \w+ (.*recipes/{re.escape(recipe)}.*)$", text, re.MULTILINE):
        arguments = shlex.split(command[1])
    monkeypatch.chdir(ROOT)
    config = parse(stage.Config, arguments, "talltree", getattr(stage, "POSITIONAL", ()))
    assert config.output_dir.startswith("runs/")
