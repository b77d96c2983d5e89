"""The critic of PPO: a linear head that reads a value off the hidden states of a causal body.

The body is the policy's (shared) or one of its own (separate), which starts as a copy of the policy's or
from a folder: a reward model, or the critic of an earlier run. With LoRA a separate body trains adapters of
its own, over the very weights of the policy's base where it starts as their copy.
"""

from __future__ import annotations

import itertools
import json
import math
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from talltree.errors import ModelError
from talltree.models.load import context_length, load_tokenizer, save_tokenizer, weights_sha256
from talltree.models.policy import add_lora, trainable
from talltree.models.reward_format import KEY as REWARD_KEY
from talltree.models.reward_format import model_folder
from talltree.models.reward_model import load_member, load_reward_model
from talltree.models.score import rollout_values, state_values
from talltree.models.views import base_model
from talltree.types import Rollout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEY = "talltree_critic"
"""Our key in a saved critic's config.json: {"bias": b} of value = score.weight . h + b."""

FOLDER = "critic"
"""Where a run's last critic lies, beside final/."""


class Critic(NamedTuple):
    """A body without vocabulary head and a value head (hidden -> 1); a shared body is the policy itself.

    source_sha256: the weights that the body was loaded from, None where it is the policy's.
    """

    body: PreTrainedModel
    head: nn.Linear
    is_shared: bool
    source_sha256: str | None

    def parameters(self) -> dict[str, nn.Parameter]:
        """What trains here and not in the policy, by name."""
        found = {f"head.{name}": each for name, each in self.head.named_parameters()}
        if not self.is_shared:
            found |= {f"body.{name}": each for name, each in trainable(self.body).items()}
        return found

    def values(self, rollout: Rollout) -> Tensor:
        """value_NU of a rollout without gradient."""
        return rollout_values(self.body, self.head, rollout)

    def state_values(
        self, prompt_ids: Sequence[Sequence[int]], completion_ids_NT: Tensor, completion_mask_NT: Tensor
    ) -> Tensor:
        """value_NU of some completions, differentiable."""
        return state_values(self.body, self.head, prompt_ids, completion_ids_NT, completion_mask_NT)


class Lora(NamedTuple):
    """Rank, scale and seed of adapters."""

    r: int
    alpha: float
    seed: int


def build_critic(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    body: Literal["separate", "shared"],
    init_from: str | None,
    head: Literal["zero", "loaded"],
    lora: Lora | None,
    longest_text: int,
) -> Critic:
    """The critic of a policy that has no adapters yet, in eval mode and on its device.

    init_from: a reward model's folder, or a run with a critic; a shared body takes the head alone. head
    "zero": every value is 0 at the start. lora: what a separate body trains, None for all of it. Raises
    ModelError for a folder without a head to load, another tokenizer than the policy's, or a short context.
    """
    is_shared = body == "shared"
    own: Any = base_model(policy).base_model
    hidden = policy.config.get_text_config().hidden_size
    if init_from is None:
        made = policy if is_shared else _copy(own, same_weights=lora is not None)
        critic = Critic(made, _zero_head(hidden, policy), is_shared, None)
    else:
        critic = _load(_folder(init_from), head, policy.device)
        _check_reads_the_same(init_from, critic, policy, tokenizer, longest_text)
        if is_shared and critic.head.in_features != hidden:
            raise ModelError(
                f"critic.init_from {init_from} has a head over {critic.head.in_features} numbers, but the "
                f"policy's hidden states have {hidden}; use critic.body separate"
            )
        if is_shared:
            critic = Critic(policy, critic.head, True, None)
    if is_shared or lora is None:
        return critic
    return critic._replace(body=add_lora(critic.body, lora.r, lora.alpha, lora.seed, task_type=None))


def save_critic(folder: Path, critic: Critic, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes body and head in the hub's layout of a sequence classifier with one label; adapters are merged.

    Raises ModelError for an architecture that has no such layout.
    """
    from transformers import AutoModelForSequenceClassification

    body = critic.body
    if hasattr(body, "merge_and_unload"):
        copied: Any = deepcopy(body)
        body = copied.merge_and_unload()
    body = body.base_model  # type: ignore[assignment]
    config = deepcopy(body.config)
    config.num_labels = 1
    bias = float(critic.head.bias.detach())
    setattr(config, KEY, {"bias": bias})
    if hasattr(config, REWARD_KEY):
        delattr(config, REWARD_KEY)  # what it started as: its values are not that model's rewards
    try:
        with torch.device("meta"):
            model: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ModelError(
            f"a critic on {type(body).__name__} cannot be saved: the library has no such sequence classifier"
        ) from error
    setattr(model, model.base_model_prefix, body)
    model.score = nn.Linear(critic.head.in_features, 1, bias=False)
    model.score.weight = nn.Parameter(critic.head.weight.detach())
    model.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(folder, tokenizer)


def _zero_head(hidden: int, policy: PreTrainedModel) -> nn.Linear:
    head = nn.Linear(hidden, 1, device=policy.device, dtype=torch.promote_types(policy.dtype, torch.float32))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    return head


def _copy(body: PreTrainedModel, *, same_weights: bool) -> PreTrainedModel:
    """A model of its own, with weights of its own or, where they stay frozen, the very same ones."""
    tensors = itertools.chain(body.parameters(), body.buffers()) if same_weights else ()
    return deepcopy(body, {id(tensor): tensor for tensor in tensors}).eval()


def _load(folder: Path, head: str, device: torch.device) -> Critic:
    config = _config(folder)
    if REWARD_KEY in config:
        model = load_reward_model(folder, device)
        member, scales = model.members[0], model.format.scales[: model.format.heads]
        gain_H1, bias_H = (torch.tensor([scale[i] for scale in scales], device=device) for i in (0, 1))
        last = model.format.combined["mean"] if model.format.members == 1 else None
        gain, bias = (1.0, 0.0) if last is None else last
        weight_1D = gain * (gain_H1.unsqueeze(1) * member.head).mean(0, keepdim=True)
        bias = gain * float(bias_H.mean()) + bias
    else:
        member = load_member(str(folder), 1, 0, kept_head=head == "loaded")
        nn.Module.to(member.model, device)
        weight_1D, bias = member.head, _bias(config, folder)
    body: Any = member.body
    linear = _zero_head(weight_1D.shape[1], body)
    if head == "loaded":
        with torch.no_grad():
            linear.weight.copy_(weight_1D)
            linear.bias.fill_(bias)
    return Critic(body.eval().requires_grad_(True), linear, False, weights_sha256(body))


def _folder(name: str) -> Path:
    """A run's critic/, else what `model_folder` finds."""
    path = Path(name).expanduser()
    return path / FOLDER if (path / FOLDER).is_dir() else model_folder(path)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{folder} has no config.json, so it holds no reward model or critic; name what talltree reward "
            "wrote, or an earlier run's critic/"
        ) from None
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}); save the model again") from error
    return found if isinstance(found, dict) else {}


def _bias(config: dict[str, Any], folder: Path) -> float:
    found = config.get(KEY, {"bias": 0.0})
    bias = found.get("bias") if isinstance(found, dict) else None
    if not isinstance(bias, float) or not math.isfinite(bias):
        raise ModelError(f"{folder / 'config.json'}: {KEY} is {found!r}, not a bias; save the critic again")
    return bias


def _check_reads_the_same(
    name: str, critic: Critic, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest_text: int
) -> None:
    """A critic reads the policy's token ids, so each must mean the same to it."""
    theirs = load_tokenizer(str(_folder(name))).get_vocab()
    mine = tokenizer.get_vocab()
    other = next((token for token, number in mine.items() if theirs.get(token) != number), None)
    if other is not None:
        known = f"token {theirs[other]}" if other in theirs else "none"
        raise ModelError(
            f"critic.init_from {name} reads other tokens than the policy writes: {other!r} is token "
            f"{mine[other]} of the policy and {known} of the critic; a reward model of another tokenizer can "
            "be the reward, which reads text, but not the critic: leave critic.init_from out"
        )
    if critic.body.config.vocab_size < policy.config.vocab_size:
        raise ModelError(
            f"critic.init_from {name} has {critic.body.config.vocab_size} tokens and the policy "
            f"{policy.config.vocab_size}; name a reward model that was trained from the policy's base"
        )
    room = context_length(critic.body)
    if longest_text > room:
        raise ModelError(
            f"critic.init_from {name} reads {room} tokens, but prompt and completion have up to "
            f"{longest_text}; lower max_completion_length, or leave critic.init_from out"
        )
