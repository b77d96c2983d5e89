"""What a run starts from: its config and folder, or the checkpoint and the data that a resume must find."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from talltree import checkpoint
from talltree.data.corpora import MANIFEST
from talltree.errors import RunError
from talltree.models.build import vocabulary_size
from talltree.models.shape import resolved
from talltree.run import Run
from talltree.stages.pretrain.config import Config
from talltree.stages.resuming import resumed_config

MAY_CHANGE = ("max_minutes", "micro_batch_size")
"""What a resume may ask for anew: neither changes the loss but for its last bits."""


def whole_config(config: Config) -> Config:
    """The config with every dimension of the model written out, or that of the run to continue.

    max_minutes are those of this command alone. Raises RunError for a run that has ended, ConfigError where
    the command asks for something else than the run's own config.
    """
    if config.resume is None:
        return replace(config, model=resolved(config.model))
    return replace(
        resumed_config(config, MAY_CHANGE),
        resume=config.resume,
        max_minutes=config.max_minutes,
        output_dir=config.resume,
    )


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of the vocabulary, sorted by token id: a resumed run must find the same one."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def refuse_another_vocabulary(folder: Run, tokenizer: Any, name: str) -> None:
    """Raises RunError where the tokenizer has other tokens than the run's checkpoints have rows for."""
    size = vocabulary_size(tokenizer)
    for _, path in reversed(checkpoint.step_folders(folder.checkpoints)):
        try:
            found = json.loads((path / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        except (OSError, ValueError, KeyError):
            continue  # a damaged checkpoint is named when it is loaded
        if found != size:
            raise RunError(
                f"{folder.folder}: its model has {found:,} tokens and tokenizer {name} {size:,}; give back "
                "the tokenizer that the run began with"
            )
        return


def refuse_changed_corpus(folder: Run, manifest: Mapping[str, Any]) -> None:
    """Raises RunError where corpus options or tokenizer rules give other tokens than corpus.json says."""
    path = Path(folder.folder) / MANIFEST
    if not path.is_file():
        return  # stopped before the corpus was read: nothing has been trained
    stored = json.loads(path.read_text(encoding="utf-8"))
    # As JSON has it: tuples have become lists there.
    now = json.loads(json.dumps(manifest))
    for key in ("tokenizer_sha256", *stored):
        if stored.get(key) != now.get(key):
            what = "tokenizer" if key == "tokenizer_sha256" else "corpus"
            raise RunError(
                f"{folder.folder}: the {what} is not the one that the run began with ({key} in {MANIFEST}: "
                f"{_shown(stored.get(key))}, now {_shown(now.get(key))}); undo the change in config.yaml"
            )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
