"""What the arguments of compare stand for: models, run folders, evaluate folders, files of completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from talltree.data.prompts import literal_prompts, read_prompts, split_prompts
from talltree.errors import ConfigError
from talltree.run import CONFIG, Run
from talltree.stages.as_trained import OPTIONS, as_trained, prompts_of, rl_options
from talltree.stages.compare.config import Config
from talltree.stages.fresh import Sampling
from talltree.stages.named import label_of, labels_of, named, seeds_of_one, split_list
from talltree.types import Prompt

Kind = Literal["model", "results", "samples"]
EVALUATE_MARK = "results.json"
SAMPLES_A_SEED = 64
PROMPT = "Once upon a time"
SHARED = ("max_completion_length", "temperature", "cut")
"""What runs have to agree in, to be sampled alike."""


@dataclass(frozen=True)
class Side:
    """One thing to compare: its name, and the model, evaluate folder or file that it stands for.

    setting: what it is a training seed of; its own name where it stands for itself.
    """

    name: str
    kind: Kind
    source: str
    setting: str


class Plan(NamedTuple):
    """What is to be done: sides to sample and compare, evaluate folders, prompts, and how to sample.

    missing_ends: run -> what it scores a completion without its required end, where it does.
    """

    sides: list[Side]
    results: list[Side]
    prompts: list[Prompt]
    sampling: Sampling
    reference: str | None
    missing_ends: dict[str, float]


def plan(config: Config) -> Plan:
    """The comparison that a config asks for, looked at before anything is loaded.

    Raises ConfigError for fewer than two things, two of one name, kinds that do not go together, and runs
    that drew their completions unlike.
    """
    alone: dict[str, Any] = {}
    runs: dict[str, Mapping[str, Any]] = {}
    if len(config.models) == 1 and _is_run(_path(config.models[0])):
        run = Run.open(_path(config.models[0]))
        alone = run.config
        runs = {label_of(config.models[0]): alone}
        start = alone.get("model_name_or_path")
        if not isinstance(start, str):
            raise ConfigError(
                f"{run.folder} did not start from a model, so there is no before and after; name two models"
            )
        sides = [
            Side("before", "model", start, "before"),
            Side("after", "model", str(_final(run)), "after"),
        ]
    else:
        sides = [side for given in config.models for side in _sides(given)]
        runs = {side.name: kept for side in sides if (kept := _rl_config(side)) is not None}
    results = [side for given in split_list(config.results) for side in _sides(given)]
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
        results = [
            replace(each, name=side.name, setting=side.setting)
            for each, side in zip(results, sides, strict=True)
        ]
    prompts = _prompts(config, runs)
    different = len({prompt.text for prompt in prompts})
    asked = {name: getattr(config, name, None) for name in OPTIONS}
    drawn = as_trained(runs, asked, SHARED)
    sampling = Sampling(
        tuple(config.seeds),
        config.num_generations or max(1, -(-SAMPLES_A_SEED // different)),
        drawn.max_completion_length,
        drawn.temperature,
        drawn.cut,
    )
    ends = {name: as_trained({name: kept}, {}).missing_end for name, kept in runs.items()}
    missing_ends = {name: value for name, value in ends.items() if value is not None}
    return Plan(sides, results, prompts, sampling, _reference(config, alone), missing_ends)


def _path(given: str) -> Path:
    return Path(named(given)[1]).expanduser()


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() and not (path / EVALUATE_MARK).is_file()


def _final(run: Run) -> Path:
    if not run.final.is_dir():
        raise ConfigError(
            f"{run.folder} has no final/: the run has not ended; continue it with --resume {run.folder}, or "
            "name one of its checkpoints"
        )
    return run.final


def _sides(given: str) -> list[Side]:
    """The sides of one argument: several where it names the training seeds of one setting."""
    name, source = named(given)
    members = seeds_of_one(name, source)
    if len(members) < 2:
        label = name or label_of(members[0])
        return [_side(label, members[0], label)]
    return [
        _side(f"{name}/{label}", member, name)
        for label, member in zip(labels_of(members), members, strict=True)
    ]


def _side(name: str, source: str, setting: str) -> Side:
    path = Path(source).expanduser()
    if path.suffix == ".jsonl":
        return Side(name, "samples", str(path), setting)
    if (path / EVALUATE_MARK).is_file():
        return Side(name, "results", str(path), setting)
    if _is_run(path):
        return Side(name, "model", str(_final(Run.open(path))), setting)
    return Side(name, "model", source, setting)


def _rl_config(side: Side) -> Mapping[str, Any] | None:
    """The config of the rl run that a model is of: its final/, or a checkpoint; None for no such run."""
    path = Path(side.source).expanduser()
    above = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if side.kind != "model" or not _is_run(above):
        return None
    options = rl_options(kept := Run.open(above).config)
    return kept if options is not kept or "reward" in kept else None


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
    settings: dict[str, list[int]] = {}
    for place, side in enumerate(sides):
        settings.setdefault(side.setting, []).append(place)
    names = [side.name for side in sides]
    for setting, places in settings.items():
        together = places[-1] - places[0] + 1 == len(places) and len({names[at] for at in places}) == len(
            places
        )
        apart = len(places) > 1 and any(names[at] == setting for at in places)
        if not together or apart:
            raise ConfigError(
                f"two of them are called {setting!r}; tell them apart as NAME={sides[places[-1]].source}"
            )
    if sides and sides[0].kind != "results" and len(settings) == 1:
        raise ConfigError(
            f"{sides[0].setting} is alone: its {len(sides)} models are seeds of one setting; name another one"
        )


def _prompts(config: Config, runs: Mapping[str, Mapping[str, Any]]) -> list[Prompt]:
    if config.prompts is not None:
        return read_prompts(config.prompts)
    if config.prompt is not None:
        return literal_prompts([config.prompt])
    found = {name: prompts_of(kept, name) for name, kept in runs.items()}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name}: {each.file or repr(each.one)}" for name, each in found.items())
        raise ConfigError(f"the runs differ in their prompts ({listed}); name one file for all as --prompts")
    for each in found.values():
        if each.file is not None:
            # What the run itself was measured on: texts that it was not trained on, where it kept some back.
            return split_prompts(read_prompts(each.file), each.held_out).held_out
        return literal_prompts([each.one])
    return literal_prompts([PROMPT])


def _reference(config: Config, alone: dict[str, Any]) -> str | None:
    if config.reference is not None:
        return config.reference
    return str(alone["model_name_or_path"]) if alone else None
