"""What a study file says: the chain of stages, the settings, the seeds, and when a trial is given up."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from talltree import yaml_text
from talltree.config import from_dict, option, parse
from talltree.errors import ConfigError
from talltree.options import options
from talltree.stages.table import stage_module

LAUNCHABLE = ("pretrain", "rl")
"""Stages that train as one team when a launcher starts several processes of them."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """One stage of the chain."""

    stage: str = option("", "the stage: rl, sft, pretrain, ...")
    name: str = option("", "what the link is called in keys and in {NAME}; empty: the stage's name")
    recipe: list[str] | str = option([], "config file or files that it starts from, later ones on top")
    set: dict[str, Any] = option({}, "options on top of the recipe, nested or dotted")
    seeded: bool = option(True, "false: the link keeps its own seed, and all seeds of the study share it")
    folder: str = option("output_dir", "the option that names the folder the stage writes to")
    launch: str = option("", "launcher of several processes, such as `accelerate launch --num_processes 2`")


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When a trial is given up: successive halving as trials arrive, by the last link's metrics.jsonl."""

    metric: str = option("", "key of metrics.jsonl to judge by; empty: every trial runs to its end")
    direction: Literal["maximize", "minimize"] = option("maximize", "what is better: more or less of it")
    steps: list[int] = option([], "steps at which a trial is judged", unit="step", low=1)
    keep: float = option(
        0.5, "a trial goes on while it is within this best share of those that came so far", above=0, high=1
    )
    least: int = option(4, "trials, itself included, that must have come so far before any is stopped", low=2)
    window: int = option(5, "steps up to the judged one that are averaged", unit="steps", low=1)

    def check(self) -> None:
        """Raises ConfigError for half a rule."""
        if bool(self.metric) != bool(self.steps):
            raise ConfigError("stop needs both, metric and steps, such as {metric: reward/mean, steps: [50]}")


@dataclass(frozen=True, kw_only=True)
class Space:
    """The values of one key that a search may try."""

    low: int | float | None = option(None, "smallest value; a whole number makes the key one")
    high: int | float | None = option(None, "largest value")
    log: bool = option(False, "spread evenly over the logarithm")
    step: int | float | None = option(None, "distance of neighbouring values; null: any", above=0)
    choices: list[Any] = option([], "the values, instead of low and high")

    def check(self) -> None:
        """Raises ConfigError for a range that is empty, half given, or given beside choices."""
        if bool(self.choices) == (self.low is not None or self.high is not None):
            raise ConfigError("give either low and high, or choices")
        if self.choices:
            return
        if self.low is None or self.high is None or self.low >= self.high:
            raise ConfigError(f"low {self.low} and high {self.high} are no range; give low below high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ConfigError(
                f"log needs low above 0 and no step, but low is {self.low} and step {self.step}"
            )


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search by Optuna instead of settings that are listed."""

    trials: int = option(0, "settings to try, each with every seed; 0: no search", low=0)
    metric: str = option("after.reward", "key of the last link's summary.json to search for")
    direction: Literal["maximize", "minimize"] = option("maximize", "what is better: more or less of it")
    sampler: Literal["tpe", "random"] = option("tpe", "how settings are proposed")
    seed: int = option(0, "seed of the proposals", low=0)
    space: dict[str, Any] = option({}, "key: {low, high, log, step} or {choices}")


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study file."""

    name: str = option("", "name of the study; empty: the file's")
    chain: list[dict[str, Any]] = option([], "the stages in turn, each with the keys of a link")
    grid: dict[str, Any] = option({}, "key: list of values, or factor: {level: {key: value, ...}}")
    points: list[dict[str, Any]] = option([], "settings one by one, {key: value, ...}; `name` names one")
    search: Search = option(Search(), "settings that are searched for")
    seeds: list[int] | int = option([0], "the seeds, or how many: 3 is 0, 1, 2", low=0)
    stop: Stop = option(Stop(), "early stopping of hopeless trials")


class Given(NamedTuple):
    """A study file, read: `links` and `space` are checked, recipes not yet."""

    path: Path
    text: str
    study: Study
    links: tuple[Link, ...]
    space: Mapping[str, Space]
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.study.name or self.path.stem


def read(path: str) -> Given:
    """A study file. Raises ConfigError, one line, for whatever in it is refused."""
    try:
        study = parse(Study, ["--config", path], "talltree sweep")
    except ConfigError as error:
        # What a group of options refuses as a whole does not know its file.
        raise error if str(error).startswith(path) else ConfigError(f"{path}: {error}") from None
    text = Path(path).read_text(encoding="utf-8-sig")
    # As the file has them: a mapping of anything loses the quotes of "3" on its way through the parser.
    raw = yaml_text.Loader(text).get_single_data() or {}
    free = {name: raw[name] for name in ("chain", "grid", "points") if raw.get(name)}
    study = replace(study, **free)
    if not study.chain:
        raise ConfigError(f"{path}: chain is empty; name a stage, such as chain: [{{stage: rl}}]")
    links = tuple(_link(path, at, given) for at, given in enumerate(study.chain))
    names = [link.name for link in links]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: two links are called {name!r}; give one another `name`")
    space = {}
    for key, given in (raw.get("search") or {}).get("space", study.search.space).items():
        if not isinstance(given, Mapping):
            shown = yaml_text.word(given)
            raise ConfigError(f"{path}: search.space.{key}: {shown} is not {{low, high}} or {{choices}}")
        space[key] = _checked(Space, given, f"{path}: search.space.{key}")
    ways = [name for name in ("grid", "points") if getattr(study, name)]
    if study.search.trials and ways:
        raise ConfigError(f"{path}: {ways[0]} lists settings and search looks for them; leave one out")
    if bool(study.search.trials) != bool(space):
        raise ConfigError(f"{path}: a search needs both, search.trials and search.space")
    return Given(Path(path), text, study, links, space, _seeds(path, study.seeds))


def changed(given: Given, sets: Mapping[str, Any], seeds: list[int] | int | None) -> Given:
    """The study with further options on its links, and other seeds unless None."""
    links = list(given.links)
    for link, keys in per_link(given, sets, "--set").items():
        at = [each.name for each in links].index(link)
        links[at] = replace(links[at], set={**links[at].set, **keys})
    found = given._replace(links=tuple(links))
    return found if seeds is None else found._replace(seeds=_seeds("--seeds", seeds))


def per_link(given: Given, sets: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """Keys given to their links: LINK.key in a chain, bare where there is one link only."""
    placed: dict[str, dict[str, Any]] = {link.name: {} for link in given.links}
    for key, value in sets.items():
        if len(given.links) == 1:
            placed[given.links[0].name][key] = value
            continue
        link, dot, rest = key.partition(".")
        if link not in placed or not dot:
            nearest = difflib.get_close_matches(link, placed, 1, 0.0)[0]
            raise ConfigError(f"{where}: {key}: a key of a chain is LINK.key; nearest link: {nearest}")
        placed[link][rest] = value
    return placed


def _seeds(where: str, asked: list[int] | int) -> tuple[int, ...]:
    seeds = tuple(range(asked)) if isinstance(asked, int) else tuple(asked)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{where}: seeds {list(seeds)} must be at least one, and each once; try 3")
    return seeds


def _link(path: str, at: int, given: Mapping[str, Any]) -> Link:
    where = f"{path}: chain, link {at + 1}"
    link = _checked(Link, given, where)
    if not link.stage:
        raise ConfigError(f"{where}: it needs a stage, such as stage: rl")
    try:
        known = {each.key for each in options(stage_module(link.stage).Config)}
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if link.folder not in known:
        raise ConfigError(
            f"{where}: {link.stage} has no option {link.folder!r} to name its folder; name it in folder"
        )
    if link.launch and link.stage not in LAUNCHABLE:
        raise ConfigError(
            f"{where}: {link.stage} does not train in several processes, so launch {link.launch!r} would "
            f"start it several times; leave it out (launch is for {', '.join(LAUNCHABLE)})"
        )
    name = link.name or link.stage
    if not name.isidentifier():
        raise ConfigError(f"{where}: name {name!r} must be letters, digits and _, for it stands in {{NAME}}")
    recipe = [link.recipe] if isinstance(link.recipe, str) else link.recipe
    return replace(link, name=name, recipe=recipe, set=dict(given.get("set") or {}))


def _checked(config_class: Any, given: Mapping[str, Any], where: str) -> Any:
    try:
        return from_dict(config_class, given)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
