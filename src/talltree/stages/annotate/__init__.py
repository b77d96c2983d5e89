"""Judgements of people: a study is made, served on a local page, simulated, counted, exported, imported."""

from __future__ import annotations

import importlib

from talltree.stages.annotate.config import ACTIONS, Config

__all__ = ["POSITIONAL", "Config", "run"]

POSITIONAL = ("action", "folder")


def run(config: Config) -> None:
    """Does the action; each is a module of its own with one `run(config)`."""
    importlib.import_module(ACTIONS[config.action]).run(config)
