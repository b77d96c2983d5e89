"""What a run is made of: comparisons, tokens, networks and optimisers, loaded and checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from talltree import checkpoint
from talltree.data.preferences import Judgement, read_preferences
from talltree.errors import ConfigError, ContractError, DataError, ModelError
from talltree.models.load import compute_device, context_length, weights_sha256
from talltree.models.optim import build_optimizer
from talltree.models.policy import trainable
from talltree.models.reward_format import Format, Reading, Scale
from talltree.models.reward_model import (
    Member,
    add_reward_lora,
    all_logits,
    end_token,
    fitted_format,
    load_member,
    reading_tokenizer,
    token_ids,
    with_pad,
)
from talltree.stages.reward.comparisons import (
    Comparison,
    Texts,
    check_countable,
    comparison,
    usable,
)
from talltree.stages.reward.config import Config
from talltree.stages.reward.reference import References
from talltree.stages.reward.split import Split, given, nested_order, split
from talltree.stages.reward.update import Learner, batches_per_epoch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEMBER_SEEDS = 7_919
"""Between the seeds of two members' adapters and orders of the data."""


class Parts(NamedTuple):
    """Everything but the step's number; only the learner changes.

    ids: the tokens of every text in `texts`. counts: what became of the data, for the summary. by_texts: as
    in `Split`.
    """

    tokenizer: PreTrainedTokenizerBase
    reading: Reading
    texts: Texts
    ids: list[list[int]]
    train: list[Comparison]
    held_out: list[Comparison]
    learner: Learner
    base_sha256: str
    steps: int
    data_sha256: dict[str, str]
    counts: dict[str, Any]
    by_texts: bool

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.learner.members[0].head.device


def load_parts(config: Config) -> Parts:
    """Loads what the config names and checks it before there is a folder. Raises TallTreeError."""
    device = compute_device(config.device, config.dtype)
    paths = [Path(name).expanduser() for name in (config.dataset_name, config.validation_name) if name]
    judgements = [read_preferences(path, config.ignore_columns) for path in paths]
    divided, counts = _divided(config, *judgements)
    tokenizer = reading_tokenizer(config.model_name_or_path)
    members = fresh_members(config, tokenizer, device)
    model = members[0].model
    base_sha256 = weights_sha256(model)
    reading = _reading(config, members[0], tokenizer)
    texts = Texts()
    sides = [
        [comparison(each, texts, cluster) for each, cluster in zip(judgements_, clusters, strict=True)]
        for judgements_, clusters in (
            (divided.train, [0] * len(divided.train)),
            (divided.held_out, divided.clusters),
        )
    ]
    ids, cut = _ids(config, tokenizer, reading, texts, [each for side in sides for each in side])
    if (highest := max(map(max, ids))) >= model.config.vocab_size:
        raise ModelError(
            f"the tokenizer gives token {highest}, but the model has {model.config.vocab_size} tokens; use "
            "the tokenizer that the model was trained with"
        )
    train, held_out = sides
    if config.too_long == "drop":
        too_long = set(cut)
        train, held_out = ([each for each in side if not too_long.intersection(each.texts)] for side in sides)
        counts["left_out"]["too_long"] = sum(map(len, sides)) - len(train) - len(held_out)
    available = len(train)
    if config.comparisons is not None:
        if config.comparisons > available:
            raise DataError(
                f"comparisons {config.comparisons} is more than the {available} training judgements of "
                f"{config.dataset_name}; ask for fewer, or give more"
            )
        train = train[: config.comparisons]
    if len(train) < config.batch_size or not held_out:
        raise DataError(_too_few(config, len(train), len(held_out), counts))
    if config.loss == "plackett_luce":
        check_countable([*train, *held_out])
    counts |= {
        "train": _sizes(train, ids),
        "held_out": _sizes(held_out, ids),
        "available": available,
        "truncated_texts": len(cut) if config.too_long == "truncate" else 0,
        "max_length": reading.max_length,
    }
    return Parts(
        tokenizer, reading, texts, ids, train, held_out,
        learner_of(config, members), base_sha256,
        math.ceil(config.epochs * batches_per_epoch(len(train), config.batch_size)),
        {
            f"{use}{path.name}": checkpoint.file_sha256(path)  # the two may have the same name
            for use, path in zip(("", "validation "), paths, strict=False)
        },
        counts, divided.by_texts,
    )  # fmt: skip


def fresh_members(
    config: Config, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[Member, ...]:
    """The networks as they start, without adapters, on the device."""
    end = None
    members = []
    for number in range(config.members):
        member = load_member(
            config.model_name_or_path,
            config.heads,
            config.seed + MEMBER_SEEDS * number,
            kept_head=config.head == "kept",
        )
        if config.eos == "append":
            end = end_token(config.model_name_or_path, member.model, tokenizer)
        with_pad(member.model, tokenizer, end)
        nn.Module.to(member.model, device)
        members.append(member)
    return tuple(members)


def learner_of(config: Config, members: Sequence[Member]) -> Learner:
    """The networks with their adapters and optimisers; scales come from reference samples later."""
    if config.lora_r is not None:
        alpha = config.lora_alpha or 2.0 * config.lora_r
        members = [
            add_reward_lora(member, config.lora_r, alpha, config.seed + MEMBER_SEEDS * number)
            for number, member in enumerate(members)
        ]
    optimizers = tuple(
        build_optimizer("adamw", trainable(m.model).values(), config.learning_rate, config.weight_decay)
        for m in members
    )
    return Learner(tuple(members), optimizers, ())


def format_of(
    config: Config, parts: Parts, references: References, loss_scales: Sequence[Scale] | None
) -> Format:
    """The format that the networks as they are have on the reference samples; see `fitted_format`.

    Raises ContractError where a head gives all of them the same score, or one that is not finite.
    """
    ids, _ = token_ids(parts.tokenizer, parts.reading, references.prompts, references.completions)
    logit_NH = all_logits(parts.learner.members, ids)
    found = None
    if bool(logit_NH.isfinite().all()):
        found = fitted_format(
            logit_NH,
            parts.reading,
            config.members,
            config.ensemble.combine,
            config.ensemble.variance_weight,
            loss_scales,
        )
    if found is None:
        raise ContractError(
            f"the {len(ids)} reference samples all get the same score {float(logit_NH[0, 0]):g}, so there is "
            "no scale that gives them deviation 1; give more varied ones, or check the model"
        )
    return found


def _divided(
    config: Config, judgements: list[Judgement], validation: list[Judgement] | None = None
) -> tuple[Split, dict[str, Any]]:
    """Train and held-out judgements that the loss can learn from, train in its nested order."""
    kept, left_out = usable(judgements, config.loss)
    some = [judgements[place] for place in kept]
    if not some:
        raise DataError(
            f"{config.dataset_name} holds {len(judgements)} judgements and none to learn from: "
            f"{_words(left_out)}"
        )
    if validation is None:
        divided = split(some, config.validation_share, config.seed, config.split_by)
    else:
        held, too = usable(validation, config.loss)
        left_out = {name: count + too[name] for name, count in left_out.items()}
        divided = given(some, [validation[place] for place in held], config.split_by)
    # Single items may have cost a judgement its best.
    held, too = usable(divided.held_out, config.loss)
    train, also = usable(divided.train, config.loss)
    left_out = {name: count + too[name] + also[name] for name, count in left_out.items()}
    divided = divided._replace(
        train=nested_order([divided.train[place] for place in train], config.seed),
        held_out=[divided.held_out[place] for place in held],
        clusters=[divided.clusters[place] for place in held],
    )
    counts = {
        "judgements": len(judgements) + len(validation or ()),
        "left_out": left_out,
        "split": {"rule": divided.rule, **divided.counts},
    }
    return divided, counts


def _reading(config: Config, member: Member, tokenizer: PreTrainedTokenizerBase) -> Reading:
    context = context_length(member.model)
    if config.max_length is not None and config.max_length > context:
        raise ConfigError(
            f"max_length {config.max_length} is more than the model's context of {context} tokens"
        )
    end = None
    if config.eos == "append":
        end = end_token(config.model_name_or_path, member.model, tokenizer)
    policy = "truncate" if config.too_long == "truncate" else "refuse"
    return Reading(end, config.max_length or context, policy)  # type: ignore[arg-type]


def _ids(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
    texts: Texts,
    comparisons: Sequence[Comparison],
) -> tuple[list[list[int]], list[int]]:
    """The tokens of every text, and the rows of those too long. Raises DataError where that is refused."""
    cutting = Reading(reading.end_token, reading.max_length, "truncate")
    ids, cut = token_ids(tokenizer, cutting, texts.prompts, texts.completions)
    if cut and config.too_long == "refuse":
        too_long = set(cut)
        judgements = sum(bool(too_long.intersection(each.texts)) for each in comparisons)
        first = texts.prompts[cut[0]] + texts.completions[cut[0]]
        raise DataError(
            f"{len(cut)} of {len(ids)} texts, in {judgements} judgements, are longer than the "
            f"{reading.max_length} tokens that the model reads, such as {first[:40]!r}...; cut their "
            "beginning with --too_long truncate, or leave the judgements out with --too_long drop"
        )
    return ids, cut


def _sizes(comparisons: Sequence[Comparison], ids: Sequence[Sequence[int]]) -> dict[str, int]:
    rows = {row for each in comparisons for row in each.texts}
    return {
        "comparisons": len(comparisons),
        "pairs": sum(len(each.above) for each in comparisons),
        "texts": len(rows),
        "tokens": sum(len(ids[row]) for row in rows),
        "annotators": len({each.judgement.annotator for each in comparisons}),
    }


def _too_few(config: Config, train: int, held_out: int, counts: dict[str, Any]) -> str:
    after = f" ({left_out} left out)" if (left_out := _words(counts["left_out"])) else ""
    if not held_out:
        return (
            f"no held-out judgement of {config.dataset_name} is left beside {train} to train{after}; give "
            "more, or a larger validation_share, or validation_name"
        )
    if shared := counts["split"].get("shared_prompt"):
        after += f" besides {shared} with a held-out prompt, which --split_by items keeps"
    fix = f", or set batch_size {train} or less" if train else ""
    return (
        f"{config.dataset_name} has {train} training judgements{after}, fewer than batch_size "
        f"{config.batch_size}; give more of them{fix}"
    )


def _words(left_out: dict[str, int]) -> str:
    names = {
        "ties": "ties",
        "rated_alone": "ratings of a single text",
        "without_best": "without a single best",
        "too_long": "too long",
    }
    return ", ".join(f"{count:,} {names[name]}" for name, count in left_out.items() if count)
