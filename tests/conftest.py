"""What every test may use: the folder of real models and data, and its two small story models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Child processes find the package, too, where it is not installed.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])

# Before torch is imported: tests compare bits between processes, and bits depend on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"

# Before any hub library is imported: no test may reach the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def find_shared(environment: Mapping[str, str], beside: Path) -> Path:
    """The shared folder: TALLTREE_SHARED, else `shared` beside the checkout.

    A missing one skips the test that asks for it, and fails it where CI is "true": there it must be present.
    """
    folder = Path(environment.get("TALLTREE_SHARED") or beside / "shared")
    return must_exist(folder, f"the shared folder {folder} is missing; set TALLTREE_SHARED", environment)


def find_in_shared(shared: Path, environment: Mapping[str, str], name: str) -> Path:
    """A folder inside the shared one, which skips or fails like it when missing."""
    return must_exist(shared / name, f"{shared / name} is missing from the shared folder", environment)


def must_exist(folder: Path, reason: str, environment: Mapping[str, str]) -> Path:
    """The folder, if it is one; otherwise a failure in CI and a skip elsewhere."""
    if folder.is_dir():
        return folder
    if environment.get("CI", "").lower() in ("true", "1"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data next to the checkout, or at TALLTREE_SHARED."""
    return find_shared(os.environ, ROOT.parent)


@pytest.fixture(scope="session")
def stories260K(shared: Path) -> Path:
    """The real 260K-parameter story model (Llama-type, vocabulary 512)."""
    return find_in_shared(shared, os.environ, "models/stories260K")


@pytest.fixture(scope="session")
def stories15M(shared: Path) -> Path:
    """The real 15M-parameter story model (Llama-type, vocabulary 32,000)."""
    return find_in_shared(shared, os.environ, "models/stories15M")
