"""What is measured along the way: the held-out loss of whole documents, and samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from talltree.errors import ConfigError
from talltree.models.shape import dimensions
from talltree.sampling.decode import sample
from talltree.stages.pretrain.config import Config
from talltree.stages.pretrain.objective import NO_TARGET
from talltree.stages.pretrain.team import Team

ROWS_AT_A_TIME = 32


@torch.no_grad()
def held_out_nats(
    objective: nn.Module, documents: Sequence[list[int]], context: int, eos: int, team: Team
) -> tuple[float, int]:
    """Sum of -log p over EOS doc EOS of each document and the number of tokens predicted, over all processes.

    A document longer than the context goes on in a new row that starts with the last token of the one before.
    Rows are batched by length and padded on the right, where no real token looks. The processes take the
    batches in turn, as many each: one that has none left reads an empty one, for sharded weights are gathered
    by all or not at all.
    """
    batches = held_out_batches(documents, context, eos)
    nats, count = 0.0, 0
    for first in range(0, len(batches), team.size):
        has_one = first + team.rank < len(batches)
        ids, targets = batches[first + team.rank if has_one else first]
        if not has_one:
            targets = torch.full_like(targets, NO_TARGET)
        nats += objective(ids.to(team.device), targets.to(team.device), 1.0).item()
        count += int((targets != NO_TARGET).sum())
    total, tokens = team.sums([nats, count])
    return total, int(tokens)


def held_out_batches(documents: Sequence[list[int]], context: int, eos: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets of EOS doc EOS of each document, ROWS_AT_A_TIME rows of similar length together."""
    whole = [[eos, *document, eos] for document in documents]
    rows = [ids[at : at + context + 1] for ids in whole for at in range(0, len(ids) - 1, context)]
    rows.sort(key=len)
    batches = []
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        some = rows[start : start + ROWS_AT_A_TIME]
        ids = torch.full((len(some), len(some[-1])), eos)
        targets = torch.full_like(ids, NO_TARGET)
        for index, row in enumerate(some):
            ids[index, : len(row)] = torch.tensor(row)
            targets[index, : len(row) - 1] = ids[index, 1 : len(row)]
        batches.append((ids[:, :-1], targets[:, :-1]))
    return batches


def sample_prompt_ids(config: Config, tokenizer: Any) -> list[list[int]]:
    """Token ids of each sample prompt. Raises ConfigError for one without tokens or without room after it."""
    context = dimensions(config.model).context
    prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in config.sample_prompts]
    for prompt, ids in zip(config.sample_prompts, prompt_ids, strict=True):
        if not 0 < len(ids) < context:
            raise ConfigError(
                f"sample_prompts: {prompt[:40]!r} has {len(ids)} tokens; it needs at least 1 and fewer than "
                f"model.context {context}"
            )
    return prompt_ids


def write_samples(model: PreTrainedModel, tokenizer: Any, config: Config, step: int) -> dict[str, list[Any]]:
    """Columns of one continuation of each sample prompt at temperature 1, drawn from (seed, step)."""
    prompt_ids = sample_prompt_ids(config, tokenizer)
    room = dimensions(config.model).context - max(map(len, prompt_ids))
    drawn = sample(
        model, prompt_ids, max_completion_length=room, stop_ids=(tokenizer.eos_token_id,), temperature=1.0,
        generator=torch.Generator().manual_seed(config.seed * 1_000_003 + step),
    )  # fmt: skip
    ids = [
        tokens[mask].tolist() for tokens, mask in zip(drawn.tokens_NT.cpu(), drawn.mask_NT.cpu(), strict=True)
    ]
    return {
        "prompt": config.sample_prompts,
        "completion": [tokenizer.decode(each, skip_special_tokens=True) for each in ids],
        "prompt_ids": prompt_ids,
        "completion_ids": ids,
        "logp": drawn.logp_NT.sum(1).tolist(),
        "ended": drawn.ended_N.tolist(),
    }
