"""How runs drew their completions in training, so that what measures them draws and scores as they did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from talltree.errors import ConfigError
from talltree.stages.fresh import Cut
from talltree.stages.table import config_of

OPTIONS = (
    "max_completion_length",
    "temperature",
    "truncate_token",
    "truncate_after",
    "missing_eos_penalty",
)
"""Options of rl that decide how completions are drawn, where they end, and what one without an end scores."""


class AsTrained(NamedTuple):
    """Settings of a run; missing_end: the score of a completion without its required end, None for none."""

    max_completion_length: int
    temperature: float
    cut: Cut | None
    missing_end: float | None

    @property
    def how_cut(self) -> str:
        """Where completions end, in words."""
        return "no token" if self.cut is None else f"{self.cut.token!r} from position {self.cut.after}"


def rl_options(kept: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rl options of a run's config: its own, or those of the rl group of a loop of rounds."""
    inner = kept.get("rl")
    if isinstance(inner, Mapping) and "rounds" in kept:
        return dict(inner) | {"model_name_or_path": kept.get("model_name_or_path")}
    return kept


class Prompts(NamedTuple):
    """Where a run's prompts are from: a file and the share of it that is held out, or one prompt."""

    file: str | None
    held_out: float
    one: str


def prompts_of(kept: Mapping[str, Any], where: str) -> Prompts:
    """The prompts of a run's config. Raises ConfigError for what rl refuses."""
    own = {key: value for key, value in rl_options(kept).items() if key in ("prompts", "held_out", "prompt")}
    config = config_of("rl", {"reward": "length", **own}, where)
    return Prompts(config.prompts, config.held_out, config.prompt)


def as_trained(
    runs: Mapping[str, Mapping[str, Any]], asked: Mapping[str, Any], fields: Sequence[str] = AsTrained._fields
) -> AsTrained:
    """The settings that all runs (name -> config) have, but for what is asked for; rl's defaults for none.

    asked: some of OPTIONS; None where the runs decide, truncate_token "" for no cut. fields: those of
    AsTrained in which the runs have to agree. Raises ConfigError where they do not, and for what rl refuses.
    """
    wanted = {key: value for key, value in asked.items() if value is not None}
    if wanted.get("truncate_token") == "":
        wanted |= {"truncate_token": None, "truncate_after": None}
    found = {}
    for name, kept in (runs or {"": {}}).items():
        own = {key: value for key, value in rl_options(kept).items() if key in OPTIONS}
        found[name] = _settings(own | wanted, name)
    first, *others = found.values()
    for field in fields:
        if any(getattr(each, field) != getattr(first, field) for each in others):
            raise _differ(field, found)
    return first


def _settings(options: Mapping[str, Any], where: str) -> AsTrained:
    # A reward, because rl must have one; none is asked.
    config = config_of("rl", {"reward": "length", **options}, where or "rl's options")
    cut = None if config.truncate_token is None else Cut(config.truncate_token, config.truncation_start)
    return AsTrained(config.max_completion_length, config.temperature, cut, config.missing_end)


def _differ(field: str, found: Mapping[str, AsTrained]) -> ConfigError:
    options = {"cut": "truncate_token", "missing_end": "missing_eos_penalty"}
    option = options.get(field, field)
    listed = ", ".join(
        f"{name}: {each.how_cut if field == 'cut' else getattr(each, field)}" for name, each in found.items()
    )
    and_after = " (and --truncate_after; '' for no cut)" if field == "cut" else ""
    return ConfigError(
        f"the runs differ in {option} ({listed}); name one for all as --{option}{and_after}, or measure them "
        "apart"
    )
