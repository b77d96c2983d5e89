"""Which model a name means, whether it is whole, and what it is known by in results and in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from talltree import checkpoint
from talltree.errors import ConfigError, ModelError, RunError
from talltree.evals.identity import identity
from talltree.models.card import CARD
from talltree.models.load import load_model, load_tokenizer, resolve, weights_sha256
from talltree.run import CONFIG
from talltree.stages.named import labels_of, named, seeds_of_one

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Place(NamedTuple):
    """A model that is asked for: its name in results, and the folder or hub name to load from.

    setting: what it is a training seed of, None where it stands for itself.
    """

    label: str
    source: str
    setting: str | None = None


class Loaded(NamedTuple):
    """A model in memory, its tokenizer, and the hashes that its results are cached by."""

    place: Place
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, str]


def places(names: Sequence[str]) -> list[Place]:
    """Where each model lies; a run folder means its final/, NAME=MODEL,MODEL the seeds of one setting.

    Raises ModelError or RunError where it is not there or a file of it is not as it was written, and
    ConfigError for two names of one model, or names whose files would be one.
    """
    asked = [each for name in names for each in _asked(name)]
    found, names = [each for each, _ in asked], [name for _, name in asked]
    sources = [Path(each.source).resolve() if Path(each.source).is_dir() else each.source for each in found]
    for at, source in enumerate(sources):
        if source in sources[:at]:
            raise ConfigError(
                f"models: {names[sources.index(source)]} and {names[at]} are one model; give it once"
            )
    labels = [each.label for each in found]
    named = [
        each._replace(label=name) if labels.count(each.label) > 1 else each
        for each, name in zip(found, names, strict=True)
    ]
    folders = [folder_name(each.label) for each in named]
    for at, folder in enumerate(folders):
        if folder in folders[:at]:
            raise ConfigError(
                f"models: the rows of {names[folders.index(folder)]} and {names[at]} would both be called "
                f"{folder}; rename one, or evaluate them apart"
            )
    return named


def _asked(given: str) -> list[tuple[Place, str]]:
    """The models of one argument, and what each was called there."""
    name, source = named(given)
    members = seeds_of_one(name, source)
    if len(members) == 1:
        found = place(members[0])
        return [(found._replace(label=name or found.label), given)]
    return [
        (place(member)._replace(label=f"{name}/{label}", setting=name), member)
        for label, member in zip(labels_of(members), members, strict=True)
    ]


def folder_name(label: str) -> str:
    """What the folder of a model's rows is called."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in label).strip(".")


def place(name: str) -> Place:
    """Where one model lies. Raises ModelError or RunError."""
    folder = Path(name).expanduser()
    if (folder / CONFIG).is_file():
        final = folder / "final"
        if not (final / "config.json").is_file():
            raise RunError(
                f"{name} has no final/ with a model in it: the run has not ended; finish it with --resume "
                f"{name}, or name one of its checkpoints"
            )
        return _checked(Place(folder.resolve().name, str(final)))
    source = resolve(name)
    return _checked(Place(_label(name, Path(source)), source))


def _label(name: str, folder: Path) -> str:
    if name == "seedling" or not folder.is_dir():
        return name
    whole = folder.resolve()
    if whole.name == "final":
        return whole.parent.name
    if whole.parent.name == "checkpoints":
        return f"{whole.parent.parent.name}/{whole.name}"
    return whole.name


def _checked(found: Place) -> Place:
    folder = Path(found.source)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model folder {folder} has no weights (*.safetensors); fetch or save the model again"
        )
    if (folder / checkpoint.MANIFEST).is_file():
        checkpoint.verify(folder, may_differ=(CARD,))
    return found


def load(found: Place, device: torch.device) -> Loaded:
    """The model in float32 on its device. Raises ModelError."""
    from torch import nn

    model, tokenizer = load_model(found.source), load_tokenizer(found.source)
    fingerprint = weights_sha256(model)
    nn.Module.to(model, device)
    return Loaded(found, model, tokenizer, identity(fingerprint, model, tokenizer))
