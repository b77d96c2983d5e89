"""What a run is made of: model, reference, reward, prompts, algorithm and optimiser, loaded and checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from talltree import checkpoint, rewards
from talltree.algorithms import Algorithm, algorithm
from talltree.data.prompts import literal_prompts, read_prompts, split_prompts
from talltree.maths.losses import clipped
from talltree.models.load import compute_device, load_model, load_tokenizer, stop_ids, weights_sha256
from talltree.models.optim import build_optimizer
from talltree.models.policy import Reference, add_lora, trainable
from talltree.rollout import encode_prompts
from talltree.stages.rl.config import Config
from talltree.types import Prompt, Reward

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


REWARD_FILE = "reward"
"""In front of a reward file's name among the hashes: unlike prompts it may be mended between resumes."""


class Parts(NamedTuple):
    """Everything that a step needs besides the counters of `State`; only policy and optimiser change."""

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: Reference
    reference_sha256: str
    reward: Reward
    prompts: list[Prompt]
    held_out: list[Prompt]
    held_out_is_train: bool
    ids_of: dict[str, list[int]]
    stop_ids: tuple[int, ...]
    algorithm: Algorithm
    optimizer: torch.optim.Optimizer
    data_sha256: dict[str, str]


def load_parts(config: Config) -> Parts:
    """Loads what the config names, the quick and the likely mistakes first. Raises TallTreeError."""
    device = compute_device(config.device, config.dtype)
    reward = rewards.load(config.reward)
    prompts, data_sha256 = _prompts(config)
    data_sha256 |= {
        f"{REWARD_FILE} {path.name}": checkpoint.file_sha256(path) for path in rewards.files(config.reward)
    }
    split = split_prompts(prompts, config.held_out)
    policy = load_model(config.model_name_or_path)
    tokenizer = load_tokenizer(config.model_name_or_path)
    stops = stop_ids(policy, tokenizer)
    ids_of = encode_prompts(tokenizer, policy, prompts, config.max_completion_length)
    nn.Module.to(policy, device)
    if config.lora_r is not None:
        policy = add_lora(policy, config.lora_r, config.lora_alpha or 2.0 * config.lora_r, config.seed)
    reference = Reference(policy)
    with reference.model() as model:
        fingerprint = weights_sha256(model)
    optimizer = build_optimizer(
        config.optim, trainable(policy).values(), config.learning_rate, config.weight_decay
    )
    return Parts(
        policy, tokenizer, reference, fingerprint, reward, split.train, split.held_out,
        split.held_out_is_train, ids_of, stops, _algorithm(config), optimizer, data_sha256,
    )  # fmt: skip


def _prompts(config: Config) -> tuple[list[Prompt], dict[str, str]]:
    if config.prompts is None:
        return literal_prompts([config.prompt]), {}
    path = Path(config.prompts).expanduser()
    prompts = read_prompts(path)
    return prompts, {path.name: checkpoint.file_sha256(path)}


def _algorithm(config: Config) -> Algorithm:
    row = algorithm(config.algorithm, **config.algorithm_options())
    if config.clip is None or config.algorithm == "grpo":
        return row
    return row._replace(surrogate=clipped(*config.clip))
