"""One update: the loss of a batch of comparisons, its gradient in parts, and the optimisers' step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from talltree.errors import ContractError
from talltree.maths.preferences import (
    Pairs,
    bradley_terry_loss,
    centring,
    plackett_luce_loss,
    softmax_loss,
)
from talltree.models.optim import clipped_norm, schedule, set_learning_rate
from talltree.models.reward_format import Scale
from talltree.models.reward_model import Member, logits
from talltree.stages.reward.comparisons import Comparison
from talltree.stages.reward.config import Config

TOKENS_IN_A_PART = {"cpu": 4096, "cuda": 131072}
"""Tokens whose activations are kept at a time. Fixed by the device: a busy machine gives the same bits."""


class Learner(NamedTuple):
    """The networks that train, an optimiser each, and the scales that their losses see: one for each head."""

    members: tuple[Member, ...]
    optimizers: tuple[torch.optim.Optimizer, ...]
    scales: tuple[Scale, ...]


class Judged(NamedTuple):
    """Sums over comparisons: loss (nats), settled pairs, of them won (a tie counts half), and differences."""

    loss: float
    pairs: int
    won: float
    difference: float


def update(
    config: Config,
    learner: Learner,
    ids: Sequence[Sequence[int]],
    batches: Sequence[Sequence[Comparison]],
    step: int,
    steps: int,
) -> dict[str, Any]:
    """One optimiser update after `step` others, and its row: one batch for each member.

    A member's loss is the mean over its batch of the judgements' losses, the mean over its heads, with 1/N in
    front before the batch is split into parts. Raises ContractError, all weights untouched, where the loss or
    a gradient is not finite.
    """
    started = time.monotonic()
    rate = config.learning_rate * schedule(config.lr_scheduler_type, step, steps, config.warmup_steps)
    try:
        judged, norms = [], []
        for number, (member, batch) in enumerate(zip(learner.members, batches, strict=True)):
            scales = learner.scales[number * config.heads : (number + 1) * config.heads]
            judged.append(backward(config, member, scales, ids, batch))
            norms.append(clipped_norm(learner.optimizers[number], config.max_grad_norm))
        loss = sum(each.loss / len(batch) for each, batch in zip(judged, batches, strict=True)) / len(judged)
        norm = sum(norms) / len(norms)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ContractError(
                f"loss {loss} with gradient norm {norm} is not finite; the weights were left as they were: "
                f"start again with a lower learning_rate than {config.learning_rate:g}"
            )
        for optimizer in learner.optimizers:
            set_learning_rate(optimizer, rate)
            optimizer.step()
    finally:
        for optimizer in learner.optimizers:
            optimizer.zero_grad(set_to_none=True)
    tokens = sum(len(ids[row]) for batch in batches for each in batch for row in each.texts)
    seconds = time.monotonic() - started
    pairs = sum(each.pairs for each in judged)
    return {
        "step": step + 1,
        "comparisons": len(batches[0]),
        "tokens": tokens,
        "preference/loss": loss,
        "preference/accuracy": sum(each.won for each in judged) / pairs,
        "preference/difference": sum(each.difference for each in judged) / pairs,
        "grad_norm": norm,
        "learning_rate": rate,
        "time/step": seconds,
        "time/tokens_per_second": tokens / seconds,
    }


def backward(
    config: Config,
    member: Member,
    scales: Sequence[Scale],
    ids: Sequence[Sequence[int]],
    batch: Sequence[Comparison],
) -> Judged:
    """Accumulates the gradient of the batch's mean loss, part by part, and gives the sums over the batch.

    A part holds whole judgements; their candidates may pass through the model together or apart.
    """
    total = Judged(0.0, 0, 0.0, 0.0)
    for part in parts_of(config, ids, batch, member.head.device):
        rows = sorted({row for each in part for row in each.texts})
        place = {row: number for number, row in enumerate(rows)}
        logit_TH = logits(member, [ids[row] for row in rows], bfloat16=config.dtype == "bfloat16")
        score_TH = torch.stack([scale(logit_TH[:, h]) for h, scale in enumerate(scales)], 1)
        loss_N, won, difference, pairs = losses(config, score_TH, part, place)
        loss = loss_N.sum() / len(batch)
        loss.backward()
        total = Judged(
            total.loss + loss.item() * len(batch),
            total.pairs + pairs,
            total.won + won,
            total.difference + difference,
        )
    return total


def losses(
    config: Config, score_TH: Tensor, comparisons: Sequence[Comparison], place: dict[int, int]
) -> tuple[Tensor, float, float, int]:
    """The loss of each comparison, not in their order, and won pairs, differences and pairs as sums.

    score_TH: of the texts; place[row of a text] is its row there.
    """
    found, won, difference, pairs = [], 0.0, 0.0, 0
    for (above, _), alike in kinds(comparisons).items():
        rows_NK = torch.tensor([[place[row] for row in each.texts] for each in alike], device=score_TH.device)
        score_NKH = score_TH[rows_NK]
        margin_N = None
        if config.margin:
            margin_N = config.margin * score_TH.new_tensor([each.margin for each in alike])
        losses_NH = [
            judgement_loss(config, score_NK, above, margin_N) + config.centring * centring(score_NK)
            for score_NK in score_NKH.unbind(2)
        ]
        found.append(torch.stack(losses_NH).mean(0))
        mean_NK = score_NKH.detach().mean(2).double()
        winners, losers = ([pair[side] for pair in above] for side in (0, 1))
        difference_NP = mean_NK[:, winners] - mean_NK[:, losers]
        won += float((difference_NP > 0).sum()) + 0.5 * float((difference_NP == 0).sum())
        difference += float(difference_NP.sum())
        pairs += difference_NP.numel()
    return torch.cat(found), won, difference, pairs


def judgement_loss(config: Config, score_NK: Tensor, above: Pairs, margin_N: Tensor | None) -> Tensor:
    """The loss (N,) that the config names, of judgements that settle the same pairs; the top stands first."""
    if config.loss == "softmax":
        return softmax_loss(score_NK, 0, config.label_smoothing, margin_N)
    if config.loss == "bradley_terry":
        return bradley_terry_loss(score_NK, above, config.label_smoothing, margin_N)
    return plackett_luce_loss(score_NK, above, config.label_smoothing, margin_N)


def kinds(
    comparisons: Sequence[Comparison],
) -> dict[tuple[tuple[tuple[int, int], ...], int], list[Comparison]]:
    """The comparisons by what they settle and among how many."""
    found: dict[tuple[tuple[tuple[int, int], ...], int], list[Comparison]] = {}
    for each in comparisons:
        found.setdefault((each.above, len(each.texts)), []).append(each)
    return found


def parts_of(
    config: Config, ids: Sequence[Sequence[int]], batch: Sequence[Comparison], device: torch.device
) -> Iterator[list[Comparison]]:
    """The batch in parts of comparisons of similar length: as many as asked for, or as few as fit."""
    sizes = [sum(len(ids[row]) for row in each.texts) for each in batch]
    order = sorted(range(len(batch)), key=lambda place: max(len(ids[row]) for row in batch[place].texts))
    count = config.gradient_accumulation_steps
    if count is not None:
        for places in torch.tensor(order).tensor_split(min(count, len(batch))):
            yield [batch[place] for place in places.tolist()]
        return
    room = TOKENS_IN_A_PART.get(device.type, TOKENS_IN_A_PART["cpu"])
    part: list[Comparison] = []
    tokens = 0
    for place in order:
        if part and tokens + sizes[place] > room:
            yield part
            part, tokens = [], 0
        part.append(batch[place])
        tokens += sizes[place]
    yield part


def batches_per_epoch(count: int, batch_size: int) -> int:
    """ceil(count / batch_size)."""
    return math.ceil(count / batch_size)


def epoch_batches(count: int, batch_size: int, epoch: int, seed: int) -> list[list[int]]:
    """The batches of an epoch, each row once, shuffled by seed and epoch; sizes differ by at most one."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    return [part.tolist() for part in order.tensor_split(batches_per_epoch(count, batch_size))]
