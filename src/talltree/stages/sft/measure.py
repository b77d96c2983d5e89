"""The held-out loss of a model, and what it writes after held-out prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from talltree import checkpoint
from talltree.data.examples import Example
from talltree.errors import ContractError
from talltree.evals.samples import ratio_interval
from talltree.models.score import likelihoods, precision
from talltree.rollout import collect
from talltree.stages.sft.config import Config
from talltree.stages.sft.parts import Parts
from talltree.stages.sft.tokens import Tokens, tensors
from talltree.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLES_STREAM = 2**41
"""Added to the seed. Every milestone draws the same numbers, so that samples differ by the model alone."""


class HeldOut(NamedTuple):
    """Sum of -log p over the learned tokens of each held-out example, in nats, and how many they are."""

    nats: list[float]
    tokens: list[int]

    @property
    def loss(self) -> float:
        """Nats a token over all examples pooled."""
        return math.fsum(self.nats) / sum(self.tokens)

    def interval(self) -> dict[str, Any]:
        """The loss as mean, low and high (95%, over examples), with the counts behind it."""
        found = ratio_interval(self.nats, self.tokens)
        return {"loss": found, "examples": len(self.tokens), "tokens": sum(self.tokens)}


def held_out_loss(config: Config, model: PreTrainedModel, tokens: Sequence[Tokens]) -> HeldOut:
    """The loss of every example. Raises ContractError where it is not finite."""
    batch = tensors(tokens, model.device)
    zeros_NT, ended_N = torch.zeros_like(batch.ids_NT, dtype=torch.float32), batch.mask_NT.any(1)
    texts = Rollout([], batch.prompt_ids, [], batch.ids_NT, batch.mask_NT, zeros_NT, ended_N)
    with precision(model.device, config.dtype == "bfloat16"):
        logp_NT = likelihoods(model, texts, 1.0)
    found = HeldOut((-logp_NT.double().sum(1)).tolist(), batch.mask_NT.sum(1).tolist())
    if not math.isfinite(found.loss):
        raise ContractError(
            f"the held-out loss is {found.loss}: the weights are no longer usable; start again with a lower "
            f"learning_rate than {config.learning_rate:g}"
        )
    return found


def write_rows(path: Path, examples: Sequence[Example], found: HeldOut) -> None:
    """One line an example: prompt, completion, learned tokens and their nats."""
    lines = [
        json.dumps(
            {"prompt": each.prompt, "completion": each.completion, "tokens": tokens, "nats": nats},
            ensure_ascii=False,
        )
        for each, tokens, nats in zip(examples, found.tokens, found.nats, strict=True)
    ]
    checkpoint.write_file(path, ("\n".join(lines) + "\n").encode())


def read_rows(path: Path) -> HeldOut:
    """What `write_rows` wrote, to the last bit."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return HeldOut([row["nats"] for row in rows], [row["tokens"] for row in rows])


def change(before: HeldOut, after: HeldOut) -> dict[str, float | None]:
    """Loss after minus loss before, nats a token, with its 95% interval over the same examples, paired."""
    differences = [new - old for old, new in zip(before.nats, after.nats, strict=True)]
    return ratio_interval(differences, before.tokens)


def written(config: Config, parts: Parts) -> dict[str, list[Any]]:
    """One completion of each sampled prompt at temperature 1, as columns of samples.parquet."""
    rollout = collect(
        parts.model,
        parts.tokenizer,
        parts.sampled,
        parts.ids_of,
        max_completion_length=min(config.max_completion_length, parts.room),
        stop_ids=parts.stop_ids,
        temperature=1.0,
        generator=torch.Generator().manual_seed(SAMPLES_STREAM + config.seed),
    )
    return {
        "prompt": [prompt.text for prompt in rollout.prompts],
        "completion": rollout.completions,
        "prompt_ids": rollout.prompt_ids,
        "completion_ids": [
            ids[mask].tolist()
            for ids, mask in zip(rollout.completion_ids_NT, rollout.completion_mask_NT, strict=True)
        ],
        "logp": rollout.logp_NT.double().sum(1).tolist(),
        "ended": rollout.ended_N.tolist(),
    }
