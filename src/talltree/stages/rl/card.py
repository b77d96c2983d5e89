"""What becomes final/: the policy and its model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talltree import rewards
from talltree.config import to_dict
from talltree.models.card import write_card
from talltree.models.load import save_model
from talltree.stages.rl.config import Config
from talltree.stages.rl.parts import Parts


def write_final(
    target: Path, config: Config, parts: Parts, summary: Mapping[str, Any], machine: Mapping[str, Any]
) -> None:
    """Writes the policy into the folder `target`, adapters merged, with the card of the ended run."""
    save_model(target, parts.policy, parts.tokenizer)
    named = to_dict(config) | {"reward": reward_without_folders(config.reward)}
    write_card(target, named, {**summary, "base_sha256": parts.base_sha256}, machine)


def reward_without_folders(reward: str) -> str:
    """The reward as it was asked for, each file of the user's own by its name alone."""
    for path in rewards.files(reward):
        home = str(path).replace(str(Path.home()), "~", 1)
        for spelling in (f"./{path}", home, str(path)):
            reward = reward.replace(spelling, path.name)
    return reward
