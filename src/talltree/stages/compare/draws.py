"""The completions of every side: looked at before anything is written, drawn seed by seed, kept as drawn."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from talltree.errors import ConfigError, DataError
from talltree.interrupt import EXIT_STATUS, Interrupts
from talltree.stages import drawn, fresh
from talltree.stages.compare.measures import texts_by_prompt
from talltree.stages.compare.sides import Plan, Side
from talltree.stages.fresh import Completion, Loaded


class Looked(NamedTuple):
    """A side before it is drawn from: what its draws answer to, or the completions of a file.

    sha256: of the weights, None for a file. counts: completions of each prompt.
    """

    side: Side
    identity: Mapping[str, Any] | None
    sha256: str | None
    completions: list[Completion] | None
    counts: dict[str, int]


class Drawn(NamedTuple):
    """A side with its completions; sha256 of the weights, None for a file of completions."""

    side: Side
    completions: list[Completion]
    sha256: str | None


def look(planned: Plan, device: torch.device) -> list[Looked]:
    """Every side loaded once, one at a time, so that what cannot be compared shows before hours of sampling.

    Raises ConfigError for one model under two names, ModelError for a reference with other tokens, and
    DataError for unequal prompt sets and what does not fit a model.
    """
    reference = _reference(planned, device)
    found: list[Looked] = []
    for side in planned.sides:
        if side.kind == "samples":
            completions = fresh.read_completions(Path(side.source))
            counts = {prompt: len(texts) for prompt, texts in texts_by_prompt(completions).items()}
            found.append(Looked(side, None, None, completions, counts))
            continue
        loaded = fresh.load(side.source, device)
        _require_new(side, loaded, found)
        if reference is not None:
            fresh.require_same_tokens(loaded, reference)
        drawn.require_fit(loaded, planned.prompts, planned.sampling)
        each = planned.sampling.num_generations * len(planned.sampling.seeds)
        counts = dict.fromkeys((prompt.text for prompt in planned.prompts), each)
        found.append(Looked(side, drawn.of_model(loaded), loaded.sha256, None, counts))
    _require_equal_prompts(found)
    return found


def draw(
    planned: Plan, looked: Sequence[Looked], folder: Path, device: torch.device, interrupts: Interrupts
) -> list[Drawn]:
    """The completions of every side, one seed of one model at a time; what is kept already is taken.

    Exits with 130 or 143 after SIGINT or SIGTERM; what is drawn is kept.
    """
    kept = drawn.Kept(folder / drawn.DRAWN, _say)
    reference: Loaded | None = None
    told: dict[str, str] | None = None
    if any(each.identity is not None for each in looked):
        reference = _reference(planned, device)
        told = None if reference is None else drawn.of_model(reference)
    found = []
    for each in looked:
        if each.completions is not None:
            found.append(Drawn(each.side, each.completions, None))
            continue
        loaded: Loaded | None = None
        completions: list[Completion] = []
        for seed in planned.sampling.seeds:
            sampling = planned.sampling._replace(seeds=(seed,))
            key = drawn.key_of(each.side.name, each.identity or {}, told, planned.prompts, sampling)
            one = kept.read(key)
            if one is None:
                if interrupts.requested is not None:
                    _say(
                        f"{interrupts.requested}: what is drawn is kept; go on with talltree compare "
                        f"--resume {folder}"
                    )
                    raise SystemExit(EXIT_STATUS[interrupts.requested])
                started = time.monotonic()
                loaded = loaded or fresh.load(each.side.source, device)
                one = fresh.draw(loaded, planned.prompts, sampling, reference)
                kept.write(key, one)
                taken = time.monotonic() - started
                _say(f"{each.side.name}, seed {seed}: {len(one)} completions in {taken:.1f} s")
            completions += one
        found.append(Drawn(each.side, completions, each.sha256))
    return found


def _reference(planned: Plan, device: torch.device) -> Loaded | None:
    models = any(side.kind == "model" for side in planned.sides)
    return fresh.load(planned.reference, device) if planned.reference is not None and models else None


def _require_new(side: Side, loaded: Loaded, before: Sequence[Looked]) -> None:
    for other in before:
        if other.sha256 == loaded.sha256:
            raise ConfigError(
                f"{other.side.name} and {side.name} are the same model: their weights are equal "
                f"(SHA-256 {loaded.sha256[:12]}), so there is nothing to compare"
            )


def _require_equal_prompts(looked: Sequence[Looked]) -> None:
    if not looked:
        return
    first, *others = [(each.side.name, each.counts) for each in looked]
    for name, counts in others:
        missing = [prompt for prompt in first[1] if prompt not in counts]
        added = [prompt for prompt in counts if prompt not in first[1]]
        if missing or added:
            which, where = (missing[0], name) if missing else (added[0], first[0])
            raise DataError(
                f"{first[0]} and {name} have unequal prompt sets ({len(first[1])} and {len(counts)} prompts; "
                f"{which[:40]!r} is missing in {where}); compare completions of the same prompts"
            )
        for prompt, count in counts.items():
            if count != first[1][prompt]:
                raise DataError(
                    f"{first[0]} and {name} have {first[1][prompt]} and {count} completions of "
                    f"{prompt[:40]!r}; give the same number, for variety depends on it"
                )


def _say(text: str) -> None:
    print(text, flush=True)
