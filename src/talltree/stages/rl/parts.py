"""What a run is made of: model, reference, reward, prompts, algorithm and optimiser, loaded and checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from talltree import checkpoint, rewards
from talltree.algorithms import Algorithm, algorithm
from talltree.data.prompts import literal_prompts, read_prompts, split_prompts
from talltree.errors import ModelError, RunError
from talltree.maths.losses import clipped
from talltree.models.critic import Critic, Lora, build_critic
from talltree.models.load import compute_device, load_model, load_tokenizer, stop_ids, weights_sha256
from talltree.models.optim import build_optimizer
from talltree.models.policy import Reference, add_lora, trainable
from talltree.models.score import vocabulary_head
from talltree.models.views import decode_view
from talltree.rollout import encode_prompts, truncation_at
from talltree.stages.rl.config import Config
from talltree.stages.rl.processes import ALONE, Team
from talltree.types import Prompt, Reward, Truncation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


REWARD_FILE = "reward"
"""In front of a reward file's name among the hashes: unlike prompts it may be mended between resumes."""


class Parts(NamedTuple):
    """Everything that a step needs besides the counters of `State`; only policy, critic, optimiser change.

    Of several processes the main one alone has the reward.
    """

    team: Team
    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: Reference
    reference_sha256: str
    base_sha256: str
    critic: Critic | None
    reward: Reward
    prompts: list[Prompt]
    held_out: list[Prompt]
    held_out_is_train: bool
    ids_of: dict[str, list[int]]
    stop_ids: tuple[int, ...]
    truncation: Truncation | None
    recompute_reason: str | None
    algorithm: Algorithm
    optimizer: torch.optim.Optimizer
    data_sha256: dict[str, str]


def load_parts(config: Config, team: Team = ALONE) -> Parts:
    """Loads what the config names, the quick and the likely mistakes first. Raises TallTreeError."""
    device = team.device(compute_device(config.device, config.dtype))
    reward = rewards.load(config.reward) if team.is_main else _elsewhere
    prompts, data_sha256 = _prompts(config)
    data_sha256 |= {
        f"{REWARD_FILE} {path.name}": checkpoint.file_sha256(path) for path in rewards.files(config.reward)
    }
    split = split_prompts(prompts, config.held_out)
    policy = load_model(config.model_name_or_path)
    tokenizer = load_tokenizer(config.model_name_or_path)
    stops = stop_ids(policy, tokenizer)
    ids_of = encode_prompts(tokenizer, policy, prompts, config.max_completion_length)
    truncation = None
    if config.truncate_token is not None:
        truncation = truncation_at(
            tokenizer, config.truncate_token, config.truncation_start, policy.config.vocab_size
        )
    nn.Module.to(policy, device)
    base_sha256 = weights_sha256(policy)
    critic = _critic(config, policy, tokenizer, max(map(len, ids_of.values())))
    if config.lora_r is not None:
        policy = add_lora(policy, config.lora_r, config.lora_alpha or 2.0 * config.lora_r, config.seed)
        critic = critic._replace(body=policy) if critic is not None and critic.is_shared else critic
    other = _other_reference(config, policy, tokenizer)
    reference = Reference(policy, other)
    optimizer = build_optimizer(
        config.optim,
        trainable(policy).values(),
        config.learning_rate,
        config.weight_decay,
        eps=config.adam_epsilon,
        others=() if critic is None else critic.parameters().values(),
        others_rate=(config.critic.learning_rate or config.learning_rate) / config.learning_rate,
    )
    return Parts(
        team, policy, tokenizer, reference,
        base_sha256 if other is None else weights_sha256(other), base_sha256, critic,
        reward, split.train, split.held_out, split.held_out_is_train, ids_of, stops, truncation,
        recompute_reason(config, policy), _algorithm(config), optimizer, data_sha256,
    )  # fmt: skip


def _elsewhere(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
    raise RuntimeError("the reward is the main process's alone")


@contextmanager
def start_model(config: Config, parts: Parts) -> Iterator[PreTrainedModel]:
    """The policy as it was before the first step, for the length of a with block.

    Raises RunError where it had to be loaded again and its weights have changed meanwhile.
    """
    policy: Any = parts.policy
    if config.reference_model_name_or_path is None:
        with parts.reference.model() as model:
            yield model
    elif config.lora_r is not None:
        with policy.disable_adapter():
            yield policy
    else:
        model = load_model(config.model_name_or_path)
        if weights_sha256(model) != parts.base_sha256:
            raise RunError(
                f"{config.model_name_or_path} has changed since the run was started, so what it earned "
                "before cannot be measured; bring the old weights back, and continue with --resume"
            )
        nn.Module.to(model, policy.device)
        yield model


def recompute_reason(config: Config, policy: PreTrainedModel) -> str | None:
    """Why old log-probs are read again in the trainer; None where the sampler's are the trainer's own."""
    if config.dtype == "bfloat16":
        return "the trainer computes in bfloat16, the sampler in float32"
    if config.fast and (decode_view(policy) is None) != (vocabulary_head(policy) is None):
        return "sampler and trainer take different paths through this model, one fast and one the library's"
    return None


def _critic(
    config: Config, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest_prompt: int
) -> Critic | None:
    """The critic where the algorithm takes one; the policy must not have its adapters yet."""
    if config.algorithm != "ppo":
        return None
    lora = None
    if config.lora_r is not None:
        lora = Lora(config.lora_r, config.lora_alpha or 2.0 * config.lora_r, config.seed + 1)
    critic = config.critic
    return build_critic(
        policy,
        tokenizer,
        body=critic.body,
        init_from=critic.init_from,
        head=critic.head,
        lora=lora,
        longest_text=longest_prompt + config.max_completion_length,
    )


def _other_reference(
    config: Config, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel | None:
    """The model that the config names as reference. Raises ModelError if its tokens are not the policy's."""
    name = config.reference_model_name_or_path
    if name is None:
        return None
    model = load_model(name)
    if model.config.vocab_size != policy.config.vocab_size:
        sizes = f"{model.config.vocab_size} tokens and the policy {policy.config.vocab_size}"
        raise ModelError(
            f"reference model {name} has {sizes}; KL needs a reference of the same tokens, as a rule the "
            "model that the policy was tuned from"
        )
    if load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"reference model {name} has another tokenizer than the policy; KL needs a reference of the same "
            "tokens, as a rule the model that the policy was tuned from"
        )
    nn.Module.to(model, policy.device)
    return model


def _prompts(config: Config) -> tuple[list[Prompt], dict[str, str]]:
    if config.prompts is None:
        return literal_prompts([config.prompt]), {}
    path = Path(config.prompts).expanduser()
    prompts = read_prompts(path)
    return prompts, {path.name: checkpoint.file_sha256(path)}


def _algorithm(config: Config) -> Algorithm:
    row = algorithm(config.algorithm, **config.algorithm_options())
    if config.clip is None or config.algorithm in ("grpo", "ppo"):
        return row
    return row._replace(surrogate=clipped(*config.clip))
