"""How a reward model lies on disk: what stands in its config.json, and which folder is one. Without torch.

`final/` is in the hub's layout of a sequence classifier with one label; config.json has one key of our own,
`talltree_reward`. Further members of an ensemble lie in member-1/, member-2/, ...; heads that share a body
lie in reward_heads.safetensors, of which the classifier's own `score.weight` is the first row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from talltree import checkpoint
from talltree.errors import ModelError

KEY = "talltree_reward"
HEADS = "reward_heads.safetensors"
HEAD = "score.weight"
CARD = "README.md"
FORMAT = 1

COMBINATIONS = ("mean", "worst", "mean_minus_variance")


class Scale(NamedTuple):
    """reward = gain * x + bias."""

    gain: float
    bias: float

    def __call__(self, value: Any) -> Any:
        """Of a number or a tensor."""
        return self.gain * value + self.bias


@dataclass(frozen=True)
class Reading:
    """How a text becomes tokens, the same in training and in scoring.

    The tokens of prompt + completion as one text, with the BOS that the tokenizer adds; then end_token, once,
    where that is not None (the text's own end token is not doubled). A text of more than max_length tokens,
    the end token included, is refused, or loses tokens at its beginning (BOS stays) where too_long is
    "truncate".
    """

    end_token: int | None
    max_length: int
    too_long: Literal["refuse", "truncate"]


@dataclass(frozen=True)
class Format:
    """What `talltree_reward` holds.

    scales: one for each head, heads of member 0 first, from logit to a reward of mean 0 and deviation 1 on
    the reference samples. combined: for each way to combine heads, the scale that brings it there again.
    log_odds: times a difference of rewards, combined by `combine`, is the log-odds of a preference in
    training.
    """

    reading: Reading
    members: int
    heads: int
    scales: tuple[Scale, ...]
    combine: str
    variance_weight: float
    combined: Mapping[str, Scale]
    log_odds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values; floats keep every bit."""
        return {
            "format": FORMAT,
            **asdict(self.reading),
            "members": self.members,
            "heads": self.heads,
            "scales": [list(scale) for scale in self.scales],
            "combine": self.combine,
            "variance_weight": self.variance_weight,
            "combined": {name: list(scale) for name, scale in self.combined.items()},
            "log_odds": self.log_odds,
        }


def from_dict(found: Mapping[str, Any]) -> Format:
    """What `to_dict` gave. Raises KeyError, TypeError, ValueError or AttributeError for anything else."""
    if found["format"] != FORMAT:
        raise ValueError(f"format {found['format']} is not {FORMAT}")
    reading = Reading(found["end_token"], int(found["max_length"]), found["too_long"])
    return Format(
        reading,
        int(found["members"]),
        int(found["heads"]),
        tuple(Scale(float(gain), float(bias)) for gain, bias in found["scales"]),
        str(found["combine"]),
        float(found["variance_weight"]),
        {name: Scale(float(gain), float(bias)) for name, (gain, bias) in found["combined"].items()},
        float(found["log_odds"]),
    )


def model_folder(path: Path) -> Path:
    """The folder that holds the model: final/ of a run folder, or the folder itself.

    Raises ModelError where it is missing or the run has not ended.
    """
    if not path.is_dir():
        raise ModelError(f"reward model {path} is not a folder; name a run of talltree reward, or its final/")
    if (path / "config.yaml").is_file() and not (path / "config.json").is_file():
        if not (path / "final").is_dir():
            raise ModelError(
                f"{path} has no final/: the run has not ended; finish it with talltree reward --resume {path}"
            )
        return path / "final"
    return path


def read_format(folder: Path) -> Format:
    """The format of a reward model's folder, its files checked against their manifest where there is one.

    Raises ModelError for a folder that is no reward model, such as a language model without a head, and
    RunError for a damaged one.
    """
    if (folder / checkpoint.MANIFEST).is_file():
        checkpoint.verify(folder, may_differ=(CARD,))
    config = _config(folder)
    if KEY not in config:
        kind = ", ".join(config.get("architectures") or ["unknown"])
        raise ModelError(
            f"{folder} is no reward model: its config.json ({kind}) has no {KEY}, so there is no trained "
            "reward head, and a new one would score at random; train one with talltree reward "
            f"--model_name_or_path {folder}"
        )
    try:
        found = from_dict(config[KEY])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{folder / 'config.json'}: {KEY} cannot be read ({type(error).__name__} {error}); save the "
            "reward model again"
        ) from error
    for each in member_folders(folder, found.members):
        if HEAD not in _stored_names(each):
            raise ModelError(
                f"{each} has no reward head: {HEAD} is not among its weights, and a new one would score at "
                "random; copy the whole folder that talltree reward wrote"
            )
    if found.heads > 1 and not (folder / HEADS).is_file():
        raise ModelError(
            f"{folder} has no {HEADS}, which holds its {found.heads} reward heads; copy the whole folder"
        )
    return found


def member_folders(folder: Path, members: int) -> list[Path]:
    """Where the members of an ensemble lie, the first in the folder itself."""
    return [folder, *(folder / f"member-{number}" for number in range(1, members))]


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} has no config.json, so it is no reward model; name what talltree reward wrote"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}); save the reward model again") from error
    return found if isinstance(found, dict) else {}


def _stored_names(folder: Path) -> set[str]:
    from safetensors import SafetensorError, safe_open

    names: set[str] = set()
    for path in sorted(folder.glob("model*.safetensors")) if folder.is_dir() else []:
        try:
            with safe_open(path, framework="np") as file:
                names.update(file.keys())
        except SafetensorError as error:
            raise ModelError(f"{path} cannot be read ({error}); save the reward model again") from error
    return names
