"""What the arguments of compare stand for: models, run folders, evaluate folders, files of completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from talltree.data.prompts import literal_prompts, read_prompts, split_prompts
from talltree.errors import ConfigError
from talltree.run import CONFIG, Run
from talltree.stages.compare.config import Config
from talltree.stages.fresh import Sampling, cut_of
from talltree.types import Prompt

Kind = Literal["model", "results", "samples"]
EVALUATE_MARK = "results.json"
SAMPLES_A_SEED = 64


@dataclass(frozen=True)
class Side:
    """One thing to compare: its name, and the model, evaluate folder or file that it stands for."""

    name: str
    kind: Kind
    source: str


class Plan(NamedTuple):
    """What is to be done: sides to sample and compare, evaluate folders, prompts, and how to sample."""

    sides: list[Side]
    results: list[Side]
    prompts: list[Prompt]
    sampling: Sampling
    reference: str | None


def plan(config: Config) -> Plan:
    """The comparison that a config asks for, looked at before anything is loaded.

    Raises ConfigError for fewer than two things, two of one name, or kinds that do not go together.
    """
    alone: dict[str, Any] = {}
    if len(config.models) == 1 and _is_run(_path(config.models[0])):
        run = Run.open(_path(config.models[0]))
        alone = run.config
        start = alone.get("model_name_or_path")
        if not isinstance(start, str):
            raise ConfigError(
                f"{run.folder} did not start from a model, so there is no before and after; name two models"
            )
        sides = [Side("before", "model", start), Side("after", "model", str(_final(run)))]
    else:
        sides = [_side(given) for given in config.models]
    results = [_side(given) for given in split_list(config.results)]
    for each in results:
        if each.kind != "results":
            raise ConfigError(f"results {each.source} is no evaluate folder: it has no {EVALUATE_MARK}")
    kinds = {side.kind for side in sides}
    if kinds == {"results"}:
        sides, results = [], [*sides, *results]
    elif "results" in kinds:
        raise ConfigError("evaluate folders and models do not compare; give the folders as --results A,B")
    for things in (sides, results):
        _check_sides(things)
    if sides and results and len(sides) == len(results):
        results = [replace(each, name=side.name) for each, side in zip(results, sides, strict=True)]
    prompts = _prompts(config, alone)
    return Plan(sides, results, prompts, _sampling(config, alone, prompts), _reference(config, alone))


def split_list(text: str) -> list[str]:
    """The parts of a list separated by commas, those within brackets or quotes left whole."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif depth and character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _path(given: str) -> Path:
    return Path(given.partition("=")[2] or given).expanduser()


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() and not (path / EVALUATE_MARK).is_file()


def _final(run: Run) -> Path:
    if not run.final.is_dir():
        raise ConfigError(
            f"{run.folder} has no final/: the run has not ended; continue it with --resume {run.folder}, or "
            "name one of its checkpoints"
        )
    return run.final


def _side(given: str) -> Side:
    name, equals, source = given.partition("=")
    if not equals:
        name, source = Path(given).name or given, given
    if not name.strip() or not source.strip():
        raise ConfigError(f"{given!r} is no MODEL and no NAME=MODEL")
    path = Path(source).expanduser()
    if path.suffix == ".jsonl":
        return Side(name.removesuffix(".jsonl"), "samples", str(path))
    if (path / EVALUATE_MARK).is_file():
        return Side(name, "results", str(path))
    if _is_run(path):
        return Side(name, "model", str(_final(Run.open(path))))
    return Side(name, "model", source)


def _check_sides(sides: Sequence[Side]) -> None:
    # An evaluate folder may hold several models.
    if len(sides) == 1 and sides[0].kind != "results":
        raise ConfigError(
            f"{sides[0].source} is alone: name a second one to compare it with, or one rl or sft run folder"
        )
    sources = [side.source for side in sides]
    for place, side in enumerate(sides):
        if side.source in sources[:place]:
            raise ConfigError(f"{side.source} is named twice; a comparison with itself says nothing")
    names = [side.name for side in sides]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ConfigError(
                f"two of them are called {name!r}; tell them apart as NAME={sides[place].source}"
            )


def _prompts(config: Config, alone: dict[str, Any]) -> list[Prompt]:
    if config.prompts is not None:
        return read_prompts(config.prompts)
    if isinstance(alone.get("prompts"), str):
        # What the run itself was measured on: texts that it was not trained on, where it kept some back.
        split = split_prompts(read_prompts(alone["prompts"]), alone["held_out"])
        return split.held_out
    return literal_prompts([str(alone.get("prompt") or config.prompt)])


def _sampling(config: Config, alone: dict[str, Any], prompts: Sequence[Prompt]) -> Sampling:
    different = len({prompt.text for prompt in prompts})
    each = config.num_generations or max(1, -(-SAMPLES_A_SEED // different))
    length = config.max_completion_length or int(alone.get("max_completion_length") or 96)
    temperature = config.temperature or float(alone.get("temperature") or 1.0)
    return Sampling(
        tuple(config.seeds), each, length, temperature, cut_of(alone, config.models[0]) if alone else None
    )


def _reference(config: Config, alone: dict[str, Any]) -> str | None:
    if config.reference is not None:
        return config.reference
    return str(alone["model_name_or_path"]) if alone else None
