"""From a study to its trials: settings times seeds, each with the checked config of every link."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal, NamedTuple

from talltree import yaml_text
from talltree.config import to_dict
from talltree.errors import ConfigError
from talltree.options import options
from talltree.stages.sweep.study import Given, Link, Space, per_link
from talltree.stages.table import config_of, stage_module

LONGEST_NAME = 100
PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Level(NamedTuple):
    """One value of a factor: what it is called, and the keys it sets."""

    label: str
    sets: Mapping[str, Any]


class Factor(NamedTuple):
    """Something that a study varies."""

    name: str
    levels: Sequence[Level]


class Job(NamedTuple):
    """One stage to run: a link of one trial, or of all the trials that agree on it.

    identity: the resolved config with paths inside the study relative to it. Beside `folder` lie its config
    (.yaml), its log (.log), its state (.json) and, once it is asked to stop, why (.stop). resumes: what its
    stage's --resume needs, a checkpoint or the run folder alone.
    """

    link: str
    stage: str
    folder: Path
    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    launch: tuple[str, ...]
    resumes: Literal["never", "checkpoint", "folder"]
    after: Path | None

    def beside(self, suffix: str) -> Path:
        return self.folder.with_name(self.folder.name + suffix)


class Trial(NamedTuple):
    """One setting with one seed: `setting` maps factors to labels, `jobs` are its links in turn."""

    name: str
    setting: Mapping[str, str]
    seed: int
    jobs: tuple[Job, ...]


def factors(given: Given) -> list[Factor]:
    """What the grid and the points vary. Raises ConfigError for a factor without values."""
    found = [_factor(given.path, name, values) for name, values in given.study.grid.items()]
    if given.study.points:
        found.append(Factor("point", [_point(given, at) for at in range(len(given.study.points))]))
    for factor in found:
        labels = [level.label for level in factor.levels]
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise ConfigError(f"{given.path}: {factor.name} has {twice} twice; remove one")
    return found


def count(given: Given) -> int:
    """How many trials the study has, without making them."""
    if given.study.search.trials:
        return given.study.search.trials * len(given.seeds)
    return math.prod(len(factor.levels) for factor in factors(given)) * len(given.seeds)


def settings(given: Given) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Every setting of grid and points as (factor -> label, key -> value)."""
    varied = factors(given)
    for levels in itertools.product(*(factor.levels for factor in varied)):
        labels = {factor.name: level.label for factor, level in zip(varied, levels, strict=True)}
        sets: dict[str, Any] = {}
        for factor, level in zip(varied, levels, strict=True):
            for key, value in level.sets.items():
                if key in sets:
                    raise ConfigError(f"{given.path}: {key} is set twice, once by {factor.name}; remove one")
                sets[key] = value
        yield labels, sets


def make(
    given: Given, folder: Path, labels: Mapping[str, str], sets: Mapping[str, Any], number: int | None = None
) -> list[Trial]:
    """The trials of one setting, one a seed, every config checked. Raises ConfigError in one line.

    number: of a search's setting, which its name then begins with.
    """
    return [_trial(given, folder, labels, sets, seed, number) for seed in given.seeds]


def ends(space: Mapping[str, Space]) -> Iterator[dict[str, Any]]:
    """Settings that show whether a search space is allowed: all lows, all highs, and each choice."""
    lows = {key: each.choices[0] if each.choices else each.low for key, each in space.items()}
    yield lows
    yield {key: each.choices[-1] if each.choices else each.high for key, each in space.items()}
    for key, each in space.items():
        for choice in each.choices:
            yield {**lows, key: choice}


def label(value: Any) -> str:
    """A value as a person writes it in a heading."""
    return (
        value if isinstance(value, str) else f"{value:g}" if type(value) is float else yaml_text.word(value)
    )


def _factor(path: Path, name: str, values: Any) -> Factor:
    if isinstance(values, Mapping):
        for level, sets in values.items():
            if not isinstance(sets, Mapping):
                shown = yaml_text.word(sets)
                raise ConfigError(f"{path}: grid.{name}.{level}: {shown} is not a mapping of keys to values")
        levels = [Level(str(level), dict(_flat(sets))) for level, sets in values.items()]
    elif isinstance(values, list):
        levels = [Level(label(value), {name: value}) for value in values]
    else:
        raise ConfigError(f"{path}: grid.{name}: {label(values)} is not a list; write [{label(values)}]")
    if not levels:
        raise ConfigError(f"{path}: grid.{name} has no values, which makes 0 trials; give at least one")
    return Factor(name, levels)


def _point(given: Given, at: int) -> Level:
    point = given.study.points[at]
    sets = dict(_flat({key: value for key, value in point.items() if key != "name"}))
    named = ", ".join(f"{key.rpartition('.')[2]}={label(value)}" for key, value in sets.items())
    return Level(str(point.get("name") or named or "as it is"), sets)


def _trial(
    given: Given,
    folder: Path,
    labels: Mapping[str, str],
    sets: Mapping[str, Any],
    seed: int,
    number: int | None,
) -> Trial:
    name = trial_name(labels, seed, number)
    where = f"{given.path}: trial {name}"
    placed = per_link(given, sets, where)
    jobs: list[Job] = []
    folders: dict[str, Path] = {}
    for link in given.links:
        is_last = link is given.links[-1]
        jobs.append(_job(given, link, folder, name, placed[link.name], seed, folders, is_last, where))
        folders[link.name] = jobs[-1].folder
        if len(jobs) > 1:
            jobs[-1] = jobs[-1]._replace(after=jobs[-2].folder)
    return Trial(name, dict(labels), seed, tuple(jobs))


def _job(
    given: Given,
    link: Link,
    study: Path,
    name: str,
    sets: Mapping[str, Any],
    seed: int,
    folders: Mapping[str, Path],
    is_last: bool,
    where: str,
) -> Job:
    known = {each.key for each in options(stage_module(link.stage).Config)}
    values: dict[str, Any] = {}
    for key, value in [*recipe_values(link, given.path), *_flat(link.set, known), *_flat(sets, known)]:
        _put(values, key, value, known)
    if link.seeded and "seed" in known:
        values["seed"] = seed
    names = [each.name for each in given.links]
    values = {key: _filled(value, folders, names, f"{where}: {key}") for key, value in values.items()}
    values.pop("resume", None)
    values[link.folder] = "to be named"
    where = where if len(given.links) == 1 else f"{where}, {link.name}"
    identity = _relative(to_dict(config_of(link.stage, values, where)), f"{study}/")
    identity.pop(link.folder, None)
    if is_last:
        target = study / "trials" / name / link.name
    else:
        digest = hashlib.sha256(json.dumps([link.stage, identity], sort_keys=True).encode()).hexdigest()
        target = study / "links" / f"{link.name}-{digest[:10]}"
    resolved = to_dict(config_of(link.stage, values | {link.folder: str(target)}, where))
    needed: Literal["checkpoint", "folder"] = "checkpoint" if "checkpoint_every" in known else "folder"
    resumes = needed if "resume" in known else "never"
    launch = tuple(link.launch.split())
    return Job(link.name, link.stage, target, resolved, identity, launch, resumes, None)


def _put(values: dict[str, Any], key: str, value: Any, known: Set[str]) -> None:
    """Sets one dotted key, inside the mapping that is an option's whole value where there is such a one."""
    parts = key.split(".")
    for at in range(1, len(parts)):
        option = ".".join(parts[:at])
        if key not in known and option in known and isinstance(values.get(option, {}), Mapping):
            values[option] = {**values.get(option, {}), ".".join(parts[at:]): value}
            return
    values[key] = value


def recipe_values(link: Link, path: Path) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a link's recipes, later files on top. Raises ConfigError for one missing."""
    known = {each.key for each in options(stage_module(link.stage).Config)}
    for recipe in link.recipe:
        if not Path(recipe).is_file():
            raise ConfigError(
                f"{path}: link {link.name}: recipe {recipe} does not exist; name a config file, seen from "
                "the folder that talltree is started in"
            )
        with yaml_text.one_line_errors(recipe):
            loader, root = yaml_text.open_mapping(recipe)
            content = {} if root is None else loader.construct_document(root)
        yield from _flat(content, known)


def trial_name(labels: Mapping[str, str], seed: int, number: int | None) -> str:
    """A folder name such as kl.coef=0.1,seed=0 that no other trial has.

    A name that had to be changed or cut ends with a hash of what it stands for.
    """
    parts = [f"{factor}={value}" if factor != "point" else value for factor, value in labels.items()]
    if number is not None:
        parts = [f"{number:04d}"]
    whole = ",".join([*parts, f"seed={seed}"]).replace(", ", ",")
    plain = re.sub(r"[^\w.=,+-]+", "-", whole, flags=re.ASCII).strip("-.")
    if plain == whole and len(plain) <= LONGEST_NAME:
        return plain
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{plain[: LONGEST_NAME - 9]}-{digest}"


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first dotted key whose values differ, with both values (None: absent); None where there is none."""
    left, right = dict(_flat(one)), dict(_flat(other))
    differing = (key for key in [*left, *right] if left.get(key) != right.get(key))
    return next(((key, left.get(key), right.get(key)) for key in differing), None)


def _flat(
    mapping: Mapping[str, Any], known: Iterable[str] | None = None, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted keys; a mapping that is itself the value of a known key stays whole."""
    for name, value in mapping.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and key not in (known or ()):
            yield from _flat(value, known, f"{key}.")
        else:
            yield key, value


def _filled(value: Any, folders: Mapping[str, Path], names: Sequence[str], where: str) -> Any:
    """The value with {LINK} replaced by the folder of that earlier link, in lists and mappings as well."""
    if isinstance(value, Mapping):
        return {key: _filled(each, folders, names, where) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, folders, names, where) for each in value]
    if not isinstance(value, str):
        return value

    def fill(found: re.Match[str]) -> str:
        link = found[1]
        if link in folders:
            return str(folders[link])
        if link in names:
            raise ConfigError(f"{where}: {value!r} needs {link}, which is no earlier link of the chain")
        if value[found.end() :].startswith("/"):  # a path that begins with it
            nearest = difflib.get_close_matches(link, [*folders, *names], 1, 0.0)[0]
            raise ConfigError(f"{where}: {value!r}: no link is called {link!r}; nearest: {nearest}")
        return found[0]

    return PLACEHOLDER.sub(fill, value)


def _relative(value: Any, study: str) -> Any:
    """The value with paths inside the study folder written from there, so that it may be moved."""
    if isinstance(value, Mapping):
        return {key: _relative(each, study) for key, each in value.items()}
    if isinstance(value, list):
        return [_relative(each, study) for each in value]
    return value.replace(study, "") if isinstance(value, str) else value
