"""The floors of the house: imports go downward only, and a few things are nowhere to be found."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from talltree.cli import STAGES

SOURCE = Path(__file__).resolve().parent.parent / "src"

FLOORS = {
    5: ("cli", "demo", "__main__"),
    4: ("stages", "web", "report"),
    3: (
        "sampling",
        "rewards",
        "algorithms",
        "rollout",
        "preflight",
        "stops",
        "console",
        "evals",
        "annotation",
    ),
    2: ("models", "data"),
    1: ("run", "checkpoint", "samples", "interrupt", "config"),
    0: ("types", "errors", "metrics", "maths", "options", "yaml_text", "__init__"),
}
"""Floor -> its rooms: the packages and modules directly under talltree. A new room must be entered here."""

DOORS = {
    ("__main__", "cli"),
    ("run", "checkpoint"),  # a run folder holds checkpoints
    ("run", "samples"),  # and samples
    ("samples", "checkpoint"),  # which are written as safely as checkpoints
    ("rollout", "sampling"),  # a rollout joins sampling, rewards and KL
    ("rollout", "rewards"),
    ("stages", "report"),  # a stage that measures draws what it found
    ("stages", "web"),  # annotate serves the page
}
"""Pairs of different rooms on one floor of which the first may import the second."""

DOORS_ON_THE_GROUND = ("errors", "types", "__init__", "yaml_text", "options")
"""Rooms of floor 0 that other rooms of floor 0 may import, in whole; maths is checked apart."""

LIGHT = [
    *("cli", "config", "options", "yaml_text", "errors", "types", "metrics"),
    *("run", "checkpoint", "samples", "interrupt", "rewards", "report", "data.prompts"),
    *("data.corpus_options", "data.preferences", "data.chosen_rejected"),
    *("annotation.designs", "annotation.scores", "annotation.agreement", "annotation.annotators"),
    *("annotation.exchange", "annotation.simulated", "annotation.summary", "annotation.store", "web"),
    *("evals.finetune", "evals.finetune_options", "evals.glue", "evals.msgs", "evals.results", "evals.seeds"),
    *("stages.table", "stages.process", "models.reward_format"),
]
"""Modules that may not import torch, not even through others; the stages are held to it in test_cli."""


def floor_of(room: str) -> int | None:
    return next((floor for floor, rooms in FLOORS.items() if room in rooms), None)


def modules(source: Path) -> Iterator[tuple[str, ast.Module]]:
    """Every module as (dotted name below talltree, "__init__" for the package itself; its syntax tree)."""
    package = source / "talltree"
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        yield name, ast.parse(path.read_text(encoding="utf-8"), str(path))


def packages(source: Path) -> set[str]:
    package = source / "talltree"
    return {".".join(path.parent.relative_to(package).parts) for path in package.rglob("__init__.py")}


def imports(name: str, tree: ast.AST, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything that a module imports, in functions and for typing too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            here = ["talltree", *([] if name == "__init__" else name.split("."))]
            if not is_package:
                here = here[:-1]
            base = here[: len(here) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{stem}.{alias.name}"


def upward_imports(source: Path, stages: Mapping[str, str]) -> list[str]:
    """Every import that the floors forbid, one line each; `stages` maps a stage's name to its module."""
    inside = packages(source)
    found = []
    for name, tree in modules(source):
        room = name.split(".")[0]
        floor = floor_of(room)
        if floor is None:
            found.append(f"{name}: the room {room} has no floor; enter it in FLOORS")
            continue
        for line, target in imports(name, tree, name in inside or name == "__init__"):
            parts = target.split(".")
            if parts[0] != "talltree":
                continue
            other = parts[1] if len(parts) > 1 and floor_of(parts[1]) is not None else "__init__"
            other_floor = floor_of(other)
            assert other_floor is not None
            place = f"{name}, line {line}: {target}"
            if other_floor > floor:
                found.append(f"{place} lies on floor {other_floor}, above floor {floor}")
            elif other_floor == floor and other != room:
                is_ground = floor == 0 and other in DOORS_ON_THE_GROUND and room != "errors"
                if (room, other) not in DOORS and not is_ground:
                    found.append(f"{place} is another room on floor {floor}")
            elif room == other == "stages" and len(parts) > 2:
                mine, theirs = name.split(".")[1:2], parts[2]
                if f"talltree.stages.{theirs}" in stages.values() and mine != [theirs]:
                    found.append(f"{place} is another stage")
    return found


def foreign_imports_of_maths(source: Path) -> list[str]:
    """Imports of maths/ that are neither torch, nor the standard library, nor maths/ itself."""
    inside = packages(source)
    found = []
    for name, tree in modules(source):
        if name.split(".")[0] != "maths":
            continue
        for line, target in imports(name, tree, name in inside):
            top = target.split(".")[0]
            if target.startswith("talltree.maths") or top == "torch" or top in sys.stdlib_module_names:
                continue
            found.append(f"{name}, line {line}: {target}")
    return found


def blind_excepts(source: Path) -> list[str]:
    """Handlers of everything: `except:`, `except Exception`, `except BaseException`, alone or in a tuple."""
    found = []
    for name, tree in modules(source):
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = [each.id if isinstance(each, ast.Name) else each for each in caught]
            if any(each in (None, "Exception", "BaseException") for each in names):
                found.append(f"{name}, line {node.lineno}")
    return found


def grab_bags(source: Path) -> list[str]:
    """Modules whose name says nothing about what is in them."""
    return [
        name for name, _ in modules(source) if name.split(".")[-1] in ("utils", "helpers", "misc", "common")
    ]


STAGE_MODULES = {stage: module for stage, (module, _) in STAGES.items()}


def test_imports_go_downward_only() -> None:
    assert upward_imports(SOURCE, STAGE_MODULES) == []


def test_maths_imports_torch_and_the_standard_library_only() -> None:
    assert foreign_imports_of_maths(SOURCE) == []


def test_nothing_catches_everything() -> None:
    assert blind_excepts(SOURCE) == []


def test_no_module_is_a_grab_bag() -> None:
    assert grab_bags(SOURCE) == []


def test_light_modules_do_not_import_torch() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module('talltree.' + name)\n"
        "    if 'torch' in sys.modules: sys.exit(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- the checks themselves, on planted trees ---------------------------------------------------------------


def plant(source: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = source / "talltree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return source


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "maths/kl.py",
            "from talltree.run import Run",
            "maths.kl, line 1: talltree.run.Run lies on floor 1, above floor 0",
        ),
        (
            "models/load.py",
            "import talltree.stages.rl",
            "models.load, line 1: talltree.stages.rl lies on floor 4, above floor 2",
        ),
        (
            "models/load.py",
            "\nfrom talltree import rollout",
            "models.load, line 2: talltree.rollout lies on floor 3, above floor 2",
        ),
        (
            "run.py",
            "def f():\n    from .cli import main",
            "run, line 2: talltree.cli.main lies on floor 5, above floor 1",
        ),
        (
            "data/prompts.py",
            "from ..rewards.load import x",
            "data.prompts, line 1: talltree.rewards.load.x lies on floor 3, above floor 2",
        ),
        (
            "data/__init__.py",
            "from ..rewards import x",
            "data, line 1: talltree.rewards.x lies on floor 3, above floor 2",
        ),
        (
            "types.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from talltree.run import Run",
            "types, line 3: talltree.run.Run lies on floor 1, above floor 0",
        ),
        (
            "sampling/draw.py",
            "from talltree.rewards import load",
            "sampling.draw, line 1: talltree.rewards.load is another room on floor 3",
        ),
        (
            "data/corpora.py",
            "from talltree.models import load",
            "data.corpora, line 1: talltree.models.load is another room on floor 2",
        ),
        (
            "checkpoint.py",
            "from talltree.run import Run",
            "checkpoint, line 1: talltree.run.Run is another room on floor 1",
        ),
        (
            "stages/rl.py",
            "from talltree.stages.pretrain import run",
            "stages.rl, line 1: talltree.stages.pretrain.run is another stage",
        ),
        (
            "stages/rl.py",
            "from talltree.stages import pretrain",
            "stages.rl, line 1: talltree.stages.pretrain is another stage",
        ),
        (
            "stages/rl/loop.py",
            "from ..pretrain import run",
            "stages.rl.loop, line 1: talltree.stages.pretrain.run is another stage",
        ),
        ("kitchen.py", "", "kitchen: the room kitchen has no floor; enter it in FLOORS"),
        ("kitchen/sink.py", "", "kitchen.sink: the room kitchen has no floor; enter it in FLOORS"),
    ],
)
def test_a_planted_upward_import_is_found(tmp_path: Path, name: str, text: str, expected: str) -> None:
    plant(tmp_path, {"__init__.py": "", name: text})
    assert upward_imports(tmp_path, STAGE_MODULES) == [expected]


def test_downward_imports_pass(tmp_path: Path) -> None:
    files = {
        "__init__.py": "__version__ = '1'",
        "__main__.py": "from talltree.cli import main",
        "cli.py": "from talltree import __version__\nimport talltree.errors\nfrom talltree.stages import rl",
        "stages/rl/__init__.py": "from talltree.stages.rl.loop import go\nfrom .loop import go",
        "stages/rl/loop.py": "import torch\nfrom ...maths.kl import k1\nfrom talltree import rollout",
        "rollout.py": "from talltree.sampling.decode import sample",
        "sampling/decode.py": "from .draw import draw\nfrom talltree.models import views",
        "run.py": "from talltree import checkpoint, __version__\nfrom talltree.errors import RunError",
        "maths/kl.py": "from talltree.maths.weights import x\nfrom . import weights",
    }
    assert upward_imports(plant(tmp_path, files), STAGE_MODULES) == []


def test_planted_foreign_imports_of_maths_are_found(tmp_path: Path) -> None:
    text = "import math\nimport torch.nn as nn\nimport numpy as np\nfrom talltree.errors import DataError\n"
    plant(tmp_path, {"maths/kl.py": text + "from .weights import x", "data/corpora.py": "import numpy"})
    assert foreign_imports_of_maths(tmp_path) == [
        "maths.kl, line 3: numpy",
        "maths.kl, line 4: talltree.errors.DataError",
    ]


def test_planted_blind_excepts_and_grab_bags_are_found(tmp_path: Path) -> None:
    text = "try:\n    pass\nexcept {}:\n    pass\n"
    caught = {
        "a": "Exception",
        "b": "(ValueError, BaseException) as e",
        "c": "",
        "d": "(KeyError, ValueError)",
    }
    plant(
        tmp_path, {f"data/{name}.py": text.format(what).replace(" :", ":") for name, what in caught.items()}
    )
    plant(tmp_path, {"models/utils.py": ""})
    assert blind_excepts(tmp_path) == ["data.a, line 3", "data.b, line 3", "data.c, line 3"]
    assert grab_bags(tmp_path) == ["models.utils"]
