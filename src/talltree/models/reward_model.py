"""Reward models: a causal body without vocabulary head, read at the last real token by a linear head.

Texts are padded on the right, so that position ids count from 0, no real token attends to padding, and
neither a mask nor position ids are needed. Logits have the shape (N, H): H heads on one body. The bias of a
head is 0 and stays 0: it cancels in every comparison, and the scale after training sets the level.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from talltree.errors import DataError, ModelError
from talltree.models.load import (
    Loaded,
    encode,
    load_tokenizer,
    load_with,
    refuse_mismatched,
    refuse_missing,
    resolve,
    save_tokenizer,
)
from talltree.models.reward_format import (
    COMBINATIONS,
    HEAD,
    HEADS,
    KEY,
    Format,
    Reading,
    Scale,
    member_folders,
    read_format,
)
from talltree.models.score import by_length, precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PAD = "<|pad|>"


class Member(NamedTuple):
    """A sequence classifier whose `score` has H rows, and its body: model.base_model, maybe in adapters."""

    model: PreTrainedModel
    body: Any

    @property
    def head(self) -> nn.Parameter:
        """(H, hidden)."""
        return self.model.score.weight  # type: ignore[union-attr,return-value]


@dataclass(frozen=True)
class RewardModel:
    """Everything that turns prompts and completions into rewards."""

    members: tuple[Member, ...]
    tokenizer: PreTrainedTokenizerBase
    format: Format


# Reading


def token_ids(
    tokenizer: PreTrainedTokenizerBase, reading: Reading, prompts: Sequence[str], completions: Sequence[str]
) -> tuple[list[list[int]], list[int]]:
    """The ids of every text by `reading`, and the rows that were too long and lost their beginning.

    Raises DataError for a text too long where that is refused, and for one without a token.
    """
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    found, cut = [], []
    for row, ids in enumerate(encode(tokenizer, texts)):
        if reading.end_token is not None and ids[-1:] != [reading.end_token]:
            ids = [*ids, reading.end_token]
        if not ids:
            raise DataError(f"text {row} is empty, and there is no token to read a reward at; leave it out")
        if len(ids) > reading.max_length:
            if reading.too_long == "refuse":
                raise DataError(
                    f"text {row} ({texts[row][:40]!r}...) has {len(ids)} tokens, more than the "
                    f"{reading.max_length} that the reward model reads; shorten it, or train the model "
                    "with --too_long truncate"
                )
            cut.append(row)
            start = 1 if ids[0] == tokenizer.bos_token_id else 0
            ids = [*ids[:start], *ids[len(ids) - reading.max_length + start :]]
        found.append(ids)
    return found, cut


def end_token(name_or_path: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a text: the tokenizer's EOS unless it is PAD, else another stop token of the model.

    Where no other is known, EOS after all: `with_pad` then gives PAD a token of its own. Raises ModelError
    where there is no EOS.
    """
    from transformers import GenerationConfig

    stops: list[int] = []
    source = resolve(name_or_path)
    if not Path(source).is_dir() or (Path(source) / "generation_config.json").is_file():
        try:
            asked = GenerationConfig.from_pretrained(source).eos_token_id
        except OSError:  # a hub model without one
            asked = None
        stops = [] if asked is None else [asked] if isinstance(asked, int) else list(asked)
    wanted = [tokenizer.eos_token_id, *stops, getattr(model.config, "eos_token_id", None)]
    known = [
        token for each in wanted if each is not None for token in ([each] if isinstance(each, int) else each)
    ]
    if not known:
        raise ModelError(
            f"{name_or_path} has no end-of-sequence token to append; set eos_token_id in its config.json, or "
            "train with --eos none"
        )
    return next((token for token in known if token != tokenizer.pad_token_id), known[0])


# The network


def load_member(name_or_path: str, heads: int, seed: int, *, kept_head: bool = False) -> Member:
    """A causal LM's body, or a sequence classifier's, with new heads ~ N(0, 1/(hidden + 1)), dropout off.

    kept_head: the classifier's own head instead. Raises ModelError where the architecture has no classifier
    that reads its last token, weights are missing, or there is no head to keep.
    """
    loaded = _sequence_classifier(name_or_path)
    model: Any = loaded.model
    refuse_missing(name_or_path, [name for name in loaded.missing if name != HEAD])
    misfits = loaded.mismatched if kept_head else [each for each in loaded.mismatched if each[0] != HEAD]
    refuse_mismatched(name_or_path, misfits)
    if kept_head:
        if HEAD in loaded.missing:
            raise ModelError(
                f"model {name_or_path} has no reward head to keep ({HEAD} is not among its weights); use "
                "--head new"
            )
    else:
        hidden = model.score.in_features
        generator = torch.Generator().manual_seed(seed)
        weight_HD = torch.empty(heads, hidden).normal_(0.0, (hidden + 1) ** -0.5, generator=generator)
        _set_head(model, weight_HD)
    return Member(model, model.base_model)


def add_reward_lora(member: Member, r: int, alpha: float, seed: int) -> Member:
    """LoRA adapters on every linear layer of the body, which changes nothing at first (B = 0); head and
    adapters train, the body's own weights do not. Hu et al. 2021, arXiv:2106.09685.
    """
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body: Any = member.model.base_model
        adapted = get_peft_model(
            body,
            LoraConfig(
                r=r,
                lora_alpha=alpha,  # type: ignore[arg-type]
                lora_dropout=0.0,
                target_modules="all-linear",
                fan_in_fan_out=type(body).__name__ == "GPT2Model",
            ),
        )
    return Member(member.model.eval(), adapted)


def with_pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, end: int | None) -> None:
    """Makes PAD a token that no text ends with, in tokenizer and config.json, adding one where need be.

    The library's own classifiers find the last real token by comparing ids with PAD. A new token has an
    embedding of 0, which no text reads. Raises ModelError for a tokenizer with more tokens than the model.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == end:
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.padding_side = "right"
    number = int(tokenizer.pad_token_id)
    if number > model.config.vocab_size:
        raise ModelError(
            f"the tokenizer has tokens up to {number - 1}, but the model has {model.config.vocab_size} "
            "tokens; use the tokenizer that the model was trained with"
        )
    if number == model.config.vocab_size:
        model.resize_token_embeddings(number + 1, mean_resizing=False)
        embedding: Any = model.get_input_embeddings()
        with torch.no_grad():
            embedding.weight[number] = 0.0
    model.config.pad_token_id = number


def logits(
    member: Member, ids: Sequence[Sequence[int]], rows: int | None = None, *, bfloat16: bool = False
) -> Tensor:
    """Head . h(last token) of every text -> (N, H), in the order given, with gradient unless that is off.

    Texts of similar length pass together, `rows` at a time or as many as the device likes; which ones do
    changes a logit by float32's rounding alone.
    """
    device = member.head.device
    none_N0 = torch.zeros(len(ids), 0, dtype=torch.bool, device=device)
    pieces, places = [], []
    for part in by_length(ids, none_N0, rows):
        chosen = [ids[row] for row in part.tolist()]
        last_N = torch.tensor([len(each) - 1 for each in chosen], device=device)
        tokens_NS = torch.zeros(len(chosen), int(last_N.max()) + 1, dtype=torch.long)
        for row, each in enumerate(chosen):
            tokens_NS[row, : len(each)] = torch.tensor(each)
        with precision(device, bfloat16):
            hidden_NSD = member.body(input_ids=tokens_NS.to(device), use_cache=False).last_hidden_state
        last_ND = hidden_NSD[torch.arange(len(chosen), device=device), last_N]
        pieces.append(last_ND.to(member.head.dtype) @ member.head.T)
        places.append(part)
    order = torch.argsort(torch.cat(places))
    return torch.cat(pieces)[order]


def all_logits(members: Sequence[Member], ids: Sequence[Sequence[int]]) -> Tensor:
    """The logits of every member side by side, (N, members * H), without gradient, float64 on the CPU.

    Computed in float32 whatever the training was in: what is measured is what the saved model will give.
    """
    with torch.no_grad():
        found = [logits(member, ids).double().cpu() for member in members]
    return torch.cat(found, 1)


# Rewards


def combine(reward_NH: Tensor, how: str, variance_weight: float) -> Tensor:
    """One reward from those of H heads -> (N,): mean, min ("worst"), or mean - weight * variance over heads.

    The variance is sum((r - mean)^2) / H: 0 for one head. Coste et al. 2023, arXiv:2310.02743.
    """
    mean_N = reward_NH.mean(1)
    if how == "worst":
        return reward_NH.amin(1)
    if how == "mean_minus_variance":
        return mean_N - variance_weight * reward_NH.var(1, correction=0)
    return mean_N


def rewards_of(logit_NH: Tensor, format: Format, how: str | None = None) -> Tensor:
    """Rewards (N,) from logits: each head's scale, the combination, and its scale."""
    how = how or format.combine
    return format.combined[how](combine(scaled(logit_NH, format.scales), how, format.variance_weight))


def score_texts(
    model: RewardModel, prompts: Sequence[str], completions: Sequence[str], how: str | None = None
) -> tuple[list[float], int]:
    """The reward of every completion, and how many texts were too long and lost their beginning.

    Raises DataError as `token_ids` does.
    """
    if not prompts:
        return [], 0
    ids, cut = token_ids(model.tokenizer, model.format.reading, prompts, completions)
    return rewards_of(all_logits(model.members, ids), model.format, how).tolist(), len(cut)


def scale_to_unit(value_N: Tensor) -> Scale | None:
    """The scale that gives the values mean 0 and deviation 1 (sum of squares / N); None where all are equal.

    Equal within float32's rounding: a deviation below 1e-6 of their size.
    """
    mean, deviation = float(value_N.mean()), float(value_N.std(correction=0))
    if not deviation > 1e-6 * max(abs(mean), 1e-6):
        return None
    return Scale(1.0 / deviation, -mean / deviation)


def fitted_format(
    logit_NH: Tensor,
    reading: Reading,
    members: int,
    how: str,
    variance_weight: float,
    loss_scales: Sequence[Scale] | None = None,
) -> Format | None:
    """The format whose rewards of the reference samples have mean 0 and deviation 1; None as `scale_to_unit`.

    logit_NH: the reference samples'. loss_scales: those under which the loss saw the logits; None: the new
    ones. They give log_odds, exactly for one head; for several as the ratio of deviations, combined by `how`.
    """
    heads = logit_NH.shape[1]
    scales = [scale for head in range(heads) if (scale := scale_to_unit(logit_NH[:, head])) is not None]
    if len(scales) < heads:
        return None
    scaled_NH = scaled(logit_NH, scales)
    combined = {}
    for name in COMBINATIONS:
        scale = scale_to_unit(combine(scaled_NH, name, variance_weight))
        if scale is None:
            return None
        combined[name] = scale
    seen_NH = scaled(logit_NH, loss_scales or scales)
    log_odds = float(combine(seen_NH, how, variance_weight).std(correction=0))
    return Format(reading, members, heads // members, tuple(scales), how, variance_weight, combined, log_odds)


def scaled(logit_NH: Tensor, scales: Sequence[Scale]) -> Tensor:
    """Each head's logits under its scale, one shape."""
    return torch.stack([scale(logit_NH[:, head]) for head, scale in enumerate(scales)], 1)


# Saving and loading


def save_reward_model(folder: Path, model: RewardModel) -> None:
    """Writes the hub's layout of a sequence classifier with one label; adapters are merged."""
    for member, place in zip(model.members, member_folders(folder, model.format.members), strict=True):
        place.mkdir(exist_ok=True)
        merged: Any = _merged(member).model
        merged.config.num_labels = 1
        setattr(merged.config, KEY, model.format.to_dict())
        heads = merged.score
        if model.format.heads > 1:
            _set_head(merged, heads.weight[:1])
        merged.save_pretrained(place, safe_serialization=True)
        merged.score = heads
    if model.format.heads > 1:
        from safetensors.torch import save_file

        stored = {f"member-{n}": m.head.detach().cpu().contiguous() for n, m in enumerate(model.members)}
        save_file(stored, folder / HEADS)
    save_tokenizer(folder, model.tokenizer)


def load_reward_model(folder: Path, device: torch.device) -> RewardModel:
    """What `save_reward_model` wrote, bit for bit, in eval mode and without gradient.

    Raises ModelError for a folder that is no reward model or lacks a part, RunError for a damaged one.
    """
    found = read_format(folder)
    members = []
    for number, place in enumerate(member_folders(folder, found.members)):
        loaded = _sequence_classifier(str(place))
        refuse_missing(str(place), loaded.missing)
        refuse_mismatched(str(place), loaded.mismatched)
        if found.heads > 1:
            from safetensors.torch import load_file

            _set_head(loaded.model, load_file(folder / HEADS)[f"member-{number}"])
        for parameter in loaded.model.parameters():
            # Weights mapped from a file may lie at any address, and products differ in the last bit with it.
            parameter.data = parameter.data.clone()
        nn.Module.to(loaded.model, device).requires_grad_(False)
        members.append(Member(loaded.model, loaded.model.base_model))
    return RewardModel(tuple(members), reading_tokenizer(str(folder)), found)


def reading_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer, which leaves lengths to `token_ids`, where the message can name the text."""
    tokenizer = load_tokenizer(name_or_path)
    tokenizer.model_max_length = sys.maxsize
    return tokenizer


def _set_head(model: Any, weight_HD: Tensor) -> None:
    linear = nn.Linear(weight_HD.shape[1], weight_HD.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight_HD.detach().clone())
    model.score = linear


def _merged(member: Member) -> Member:
    if not hasattr(member.body, "merge_and_unload"):
        return member
    model, body = deepcopy((member.model, member.body))
    return Member(model, body.merge_and_unload())


def _sequence_classifier(name_or_path: str) -> Loaded:
    """The library's classifier with one label in float32. Raises ModelError for one that cannot serve."""
    loaded = load_with("AutoModelForSequenceClassification", name_or_path, num_labels=1)
    score = getattr(loaded.model, "score", None)
    if type(score) is not nn.Linear or score.bias is not None:
        raise ModelError(
            f"model {name_or_path} ({type(loaded.model).__name__}) has no head that reads the last token of "
            "a causal body; use a causal language model such as GPT-2, GPT-Neo or Llama"
        )
    return loaded
