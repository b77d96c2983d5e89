"""Draws that are kept: completions under the SHA-256 of all that decides them, so none is drawn twice.

A stage that was stopped finds what it had; another model, reference, prompt or setting has another key, and
an entry of which a byte has changed is named and drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from talltree.evals import cache
from talltree.evals.identity import identity
from talltree.evals.results import TaskResult
from talltree.rollout import encode_prompts, truncation_at
from talltree.stages.fresh import Completion, Loaded, Sampling
from talltree.types import Prompt

DRAWN = "drawn"
VERSION = 1
"""Raised when the same model, prompts and settings would give other draws."""


class Kept(NamedTuple):
    """Where draws are kept, and where a damaged entry is told of."""

    folder: Path
    say: Callable[[str], None]

    def read(self, key: Mapping[str, Any]) -> list[Completion] | None:
        """The completions that `write` kept under this key; None where there are none, or damaged ones."""
        found = cache.load(self.folder, key, self.say)
        return None if found is None else [Completion(**row) for row in found.rows]

    def write(self, key: Mapping[str, Any], completions: Sequence[Completion]) -> None:
        """Keeps completions. Raises RunError for a full disk."""
        cache.store(self.folder, key, TaskResult({}, [each._asdict() for each in completions]))


def require_fit(loaded: Loaded, prompts: Sequence[Prompt], sampling: Sampling) -> None:
    """Raises DataError, ModelError or ConfigError, as drawing would, before anything is drawn or written."""
    encode_prompts(loaded.tokenizer, loaded.model, prompts, sampling.max_completion_length)
    if sampling.cut is not None:
        truncation_at(loaded.tokenizer, *sampling.cut, loaded.model.config.vocab_size)


def of_model(loaded: Loaded) -> dict[str, str]:
    """What draws of a model answer to."""
    return identity(loaded.sha256, loaded.model, loaded.tokenizer)


def key_of(
    name: str,
    source: Mapping[str, Any],
    reference: Mapping[str, Any] | None,
    prompts: Sequence[Prompt],
    sampling: Sampling,
) -> dict[str, Any]:
    """The key of `name`'s draws; source and reference: what tells the models, as `of_model` or a manifest."""
    settings = sampling._asdict() | {"cut": None if sampling.cut is None else sampling.cut._asdict()}
    return {
        "task": f"what {name} wrote",
        "version": VERSION,
        "source": dict(source),
        "reference": None if reference is None else dict(reference),
        "prompts": list(dict.fromkeys(prompt.text for prompt in prompts)),
        "sampling": settings | {"seeds": list(sampling.seeds)},
    }
