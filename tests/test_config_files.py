"""Configs as YAML and dicts and back, what a resume may change, and what every stage's options keep to."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import random
import string
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from yaml import safe_load

from talltree.cli import STAGES
from talltree.config import flaws, from_dict, option, options, resumed, to_dict, to_yaml
from talltree.errors import ConfigError

from .config_trip import STEPS, Leash, Trip, read, yaml_file

EXTREMES = Trip(
    steps=7,
    learning_rate=1e-05,
    kl=Leash(coef=0.1 + 0.2, target=5e-324),
    words=(
        "no",
        "1e-05",
        "null",
        "",
        "a: b",
        "#",
        "ünïcode\n\t\x85 \u2028",
        "12:30",
        "=",
        "~",
        "0o7",
        "1_000",
    ),
    betas=(1 / 3, 1.0),
    sizes=[10**20],
    shares={"1": 1.7976931348623157e308, "yes": 1e22, "x.y": 0.1},
    name="1e5",
    folder="~",
    window=2e-7,
    quick=True,
)


def test_yaml_gives_back_exactly_the_same_config(tmp_path: Path) -> None:
    for trip in (Trip(), EXTREMES, dataclasses.replace(Trip(), name="null", folder="null")):
        assert read("--config", yaml_file(tmp_path, to_yaml(trip))) == trip


def test_yaml_gives_back_random_floats_and_texts(tmp_path: Path) -> None:
    random_ = random.Random(0)
    for _ in range(20):
        words = tuple("".join(random_.choices(string.printable, k=random_.randrange(9))) for _ in range(20))
        shares = {word: random_.random() * 10.0 ** random_.randrange(-300, 300) for word in words}
        trip = Trip(words=words, shares=shares, learning_rate=10.0 ** -random_.uniform(0, 12), name=words[0])
        assert read("--config", yaml_file(tmp_path, to_yaml(trip))) == trip


def test_yaml_is_the_same_to_other_readers() -> None:
    # PyYAML alone reads a plain 1e-05 as text and a plain no as False.
    assert safe_load(to_yaml(EXTREMES)) == to_dict(EXTREMES)


def test_a_dict_goes_there_and_back() -> None:
    plain = to_dict(EXTREMES)
    assert plain["kl"] == {"coef": 0.1 + 0.2, "target": 5e-324}
    assert plain["betas"] == [1 / 3, 1.0]
    assert from_dict(Trip, plain) == EXTREMES
    assert from_dict(Trip, {"kl.coef": 3, "steps": 4}) == Trip(steps=4, kl=Leash(coef=3.0))


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"stepz": 3}, "stepz: unknown option (value 3); nearest known: steps"),
        ({"kl": {"coef": -1}}, "kl.coef: -1 is not allowed; allowed: float, at least 0 (reward per nat)"),
        ({"kl": None}, "kl: null is not allowed for a group of options; its options: kl.coef, kl.target"),
        ({"steps": True}, f"steps: true is not allowed; {STEPS}"),
    ],
)
def test_a_refused_dict_names_the_key(mapping: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Trip, mapping)
    assert str(caught.value) == expected


def test_a_mutable_default_is_not_shared() -> None:
    assert Trip().sizes is not Trip().sizes
    assert read().sizes is not read().sizes


def test_flaws_finds_a_missing_help_and_a_default_out_of_range() -> None:
    @dataclass(frozen=True)
    class Flawed:
        plain: int = 3
        silent: int = option(3, " ")
        outside: int = option(0, "Out of range.", low=1)
        absent: int = option(None, "Null, though it may not be.")
        fine: Leash = option(Leash(), "")

    globals()["Flawed"] = Flawed
    assert flaws(Flawed) == [
        "fine: no help",
        "plain: no help",
        "silent: no help",
        "default of outside: 0 is not allowed; allowed: int, at least 1",
        "default of absent: null is not allowed; allowed: int",
    ]
    assert flaws(Trip) == []


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_option_is_described_and_its_defaults_hold(stage: str) -> None:
    config_class = importlib.import_module(STAGES[stage][0]).Config
    assert options(config_class)
    assert flaws(config_class) == []
    assert config_class.__dataclass_params__.frozen


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_positional_is_an_option(stage: str) -> None:
    module = importlib.import_module(STAGES[stage][0])
    named = getattr(module, "POSITIONAL", ())
    named = {named} if isinstance(named, str) else set(named)
    assert named <= {each.key for each in options(module.Config)}


def test_importing_config_loads_neither_torch_nor_jsonargparse() -> None:
    code = "import sys, talltree.config; print([m for m in ('torch', 'jsonargparse') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@dataclass(frozen=True)
class Journey:
    """A stage's options that a resume meets."""

    steps: int = option(10, "How many.", low=1)
    parts: int | None = option(None, "How finely.", low=1)
    kl: Leash = option(Leash(coef=0.2), "The leash.")
    output_dir: str = option("runs/a", "A folder.")
    resume: str | None = option(None, "A folder.")


def test_a_resumed_run_keeps_its_config_and_takes_what_may_change() -> None:
    kept = to_dict(Journey(steps=20, parts=2, kl=Leash(coef=0.5), output_dir="runs/b"))
    folder = Path("runs/b")
    expected = Journey(steps=20, parts=2, kl=Leash(coef=0.5), output_dir="runs/b")
    # Nothing asked, the default asked, the run's own asked: all the same.
    for asked in (Journey(resume="runs/b"), Journey(steps=10), Journey(steps=20, output_dir="runs/b")):
        assert resumed(asked, kept, folder) == expected
    assert resumed(Journey(parts=4), kept, folder, ("parts",)) == dataclasses.replace(expected, parts=4)
    assert resumed(Journey(), kept, folder, ("parts", "steps")) == expected
    changed = resumed(Journey(kl=Leash(coef=0.3)), kept, folder, ("kl.coef", "steps"))
    assert changed == dataclasses.replace(expected, kl=Leash(coef=0.3))
    for asked, message in (
        (Journey(steps=30), "where steps is 20, but 30 is asked for"),
        (Journey(kl=Leash(coef=0.3)), "where kl.coef is 0.5, but 0.3 is asked for"),
        (Journey(parts=4), "where parts is 2, but 4 is asked for"),
    ):
        with pytest.raises(ConfigError, match=message):
            resumed(asked, kept, folder)
