"""Reward of a trained reward model: it reads text, so the policy may have any tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from talltree.checkpoint import MANIFEST
from talltree.errors import DataError, ModelError, RewardError
from talltree.models.reward_format import COMBINATIONS, model_folder, read_format

if TYPE_CHECKING:
    from talltree.models.reward_model import RewardModel


@dataclass(frozen=True)
class ModelReward:
    """Reward model in the folder `path`, a run of `talltree reward` or its final/.

    R = the model's reward of prompt + completion after gain and bias: mean 0 and deviation 1 over its
    reference samples. combine: how the members of an ensemble become one number ("mean", "worst",
    "mean_minus_variance"; None: as saved). Raises RewardError for a folder that is no reward model, at once,
    and for a text that is empty or too long; a model that was trained with too_long truncate cuts the
    beginning instead, and the first time says so on stderr.
    """

    path: str
    combine: str | None = None
    device: str = "auto"
    name: ClassVar[str] = "reward_model"

    def __post_init__(self) -> None:
        if self.combine is not None and self.combine not in COMBINATIONS:
            raise RewardError(
                f"reward_model: combine {self.combine!r} is unknown; use {', '.join(COMBINATIONS)}"
            )
        if self.device not in ("auto", "cpu", "cuda"):
            raise RewardError(f"reward_model: device {self.device!r} is unknown; use auto, cpu or cuda")
        try:
            read_format(self.folder)
        except ModelError as error:
            raise RewardError(str(error)) from error

    @property
    def folder(self) -> Path:
        """Where the model itself lies. Raises ModelError as `model_folder` does."""
        return model_folder(Path(self.path).expanduser())

    @property
    def fingerprint_file(self) -> Path:
        """The file whose SHA-256 changes with any file of the model."""
        manifest = self.folder / MANIFEST
        return manifest if manifest.is_file() else self.folder / "model.safetensors"

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        from talltree.models.reward_model import score_texts

        try:
            found, cut = score_texts(self._model, prompts, completions, self.combine)
        except DataError as error:
            raise RewardError(f"reward_model {self.path}: {error}") from error
        if cut:
            self._say_cut(cut, len(found))
        return list(found)

    @cached_property
    def _model(self) -> RewardModel:
        from talltree.models.load import compute_device
        from talltree.models.reward_model import load_reward_model

        return load_reward_model(self.folder, compute_device(self.device))

    def _say_cut(self, cut: int, texts: int) -> None:
        if "_said_cut" not in self.__dict__:
            self.__dict__["_said_cut"] = True
            print(
                f"reward_model {self.path}: {cut} of {texts} texts are longer than the "
                f"{self._model.format.reading.max_length} tokens that it reads; their beginning was left "
                "out, as in its training (said once)",
                file=sys.stderr,
            )
