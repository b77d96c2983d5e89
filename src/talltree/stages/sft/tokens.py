"""Examples as tokens: the boundary between prompt and completion, the end token, and batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from talltree.data.examples import Example
from talltree.errors import ConfigError, DataError, ModelError
from talltree.models.load import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHORS = ("\n", ".", "a")
"""What may stand before a completion tokenised by itself, so that it is not taken for a text's start."""

GROUP = 50
"""Batches' worth of shuffled examples that are sorted by length together."""


class Tokens(NamedTuple):
    """An example's ids. The first `prompt` of them are its prompt's, those from `start` on are learned."""

    ids: list[int]
    prompt: int
    start: int


class Batch(NamedTuple):
    """prompt_ids: what is read only, a list each; ids_NT, mask_NT: what is learned, left-aligned."""

    prompt_ids: list[list[int]]
    ids_NT: Tensor
    mask_NT: Tensor


def end_token(stop_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a completion: the tokenizer's EOS if the model stops there, else a stop token.

    A stop token that is also PAD is taken only where there is no other.
    """
    wanted = [tokenizer.eos_token_id, *stop_ids]
    stops = [token for token in wanted if token in stop_ids]
    return next((token for token in stops if token != tokenizer.pad_token_id), stops[0])


def tokenise(
    tokenizer: PreTrainedTokenizerBase, example: Example, eos: int, *, on_text: bool, vocabulary: int
) -> Tokens:
    """The prompt's own tokens, then the completion's, then EOS once where the text ends.

    The prompt has exactly the tokens that sampling and RL give it. The completion has those that follow them
    in the tokens of the whole text; where a token would straddle the boundary, it is tokenised by itself, in
    mid-text. An empty prompt is the BOS that the tokenizer adds, or else the text's first token. Raises
    DataError for a special token inside the text, or a boundary that no tokens can give; ModelError for a
    token that the model does not have.
    """
    text = example.prompt + example.completion
    prompt, whole = encode(tokenizer, [example.prompt, text])
    if whole[: len(prompt)] == prompt:
        completion = whole[len(prompt) :]
    else:
        completion = _in_mid_text(tokenizer, example.completion)
        if _text(tokenizer, prompt + completion) != _text(tokenizer, whole):
            raise DataError(
                f"{example.where}: the tokenizer has no tokens for {example.completion[:20]!r} after "
                f"{example.prompt[-20:]!r}; move the boundary to a space"
            )
    while example.ends and completion and completion[-1] == eos:
        completion.pop()
    _check_special(tokenizer, example, completion)
    ids = [*prompt, *completion, *([eos] if example.ends else [])]
    if max(ids) >= vocabulary:
        raise ModelError(
            f"the tokenizer gives token {max(ids)} for {example.where}, but the model has {vocabulary} "
            "tokens; use the tokenizer that the model was trained with"
        )
    read_only = max(len(prompt), 1)
    if len(ids) <= read_only:
        raise DataError(f"{example.where}: nothing is left to learn in {text[:40]!r}; remove the row")
    return Tokens(ids, read_only, 1 if on_text else read_only)


def _in_mid_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    for anchor in ANCHORS:
        before, both = encode(tokenizer, [anchor, anchor + text])
        if both[: len(before)] == before:
            return both[len(before) :]
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _check_special(tokenizer: PreTrainedTokenizerBase, example: Example, completion: list[int]) -> None:
    """Raises DataError for one; unknown words are no such thing, unless their token also ends texts."""
    ends = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    special = set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - ends)
    found = next((token for token in completion if token in special), None)
    if found is not None:
        raise DataError(
            f"{example.where}: the text holds {tokenizer.convert_ids_to_tokens(found)!r}, a special token, "
            "which would be learned as such; remove it (an end token is added where the text ends)"
        )


def fitting(
    examples: Sequence[Example], tokens: Sequence[Tokens], longest: int, context: int, too_long: str
) -> list[int]:
    """The places of the examples of at most `longest` tokens.

    Raises DataError for a longer one, with their number, unless too_long is "drop".
    """
    over = [place for place, each in enumerate(tokens) if len(each.ids) > longest]
    if over and too_long != "drop":
        what = "the model's context" if longest == context else "max_length"
        raise DataError(
            f"{len(over)} of {len(tokens)} examples are longer than {what} of {longest} tokens, such as "
            f"{examples[over[0]].where} with {len(tokens[over[0]].ids)} (end token included); shorten "
            "them, or leave them out with --too_long drop"
        )
    return [place for place, each in enumerate(tokens) if len(each.ids) <= longest]


def check_length(max_length: int | None, context: int) -> int:
    """The longest example. Raises ConfigError where max_length is more than the context."""
    if max_length is not None and max_length > context:
        raise ConfigError(f"max_length {max_length} is more than the model's context of {context} tokens")
    return context if max_length is None else max_length


# Batches


def batches_per_epoch(count: int, batch_size: int) -> int:
    """ceil(count / batch_size)."""
    return math.ceil(count / batch_size)


def epoch_batches(lengths: Sequence[int], batch_size: int, epoch: int, seed: int) -> list[list[int]]:
    """The batches of an epoch, as rows: each example once, those of similar length together.

    Shuffled by seed and epoch alone, sorted by length within stretches of GROUP batches, cut, and the batches
    shuffled. Their sizes differ by at most one, so that no small one gets a whole update to itself.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    count = batches_per_epoch(len(lengths), batch_size)
    sizes = [len(part) for part in torch.arange(len(lengths)).tensor_split(count)]
    cuts = [sum(sizes[:stop]) for stop in range(0, count, GROUP)] + [len(lengths)]
    groups = [sorted(order[a:b], key=lengths.__getitem__) for a, b in zip(cuts, cuts[1:], strict=False)]
    rows = iter([row for group in groups for row in group])
    batches = [[next(rows) for _ in range(size)] for size in sizes]
    return [batches[place] for place in torch.randperm(count, generator=generator).tolist()]


def tensors(tokens: Sequence[Tokens], device: torch.device) -> Batch:
    """The batch of some examples; the learned part is padded on the right by its mask."""
    learned = [each.ids[each.start :] for each in tokens]
    ids_NT = torch.zeros(len(tokens), max(map(len, learned)), dtype=torch.long)
    mask_NT = torch.zeros_like(ids_NT, dtype=torch.bool)
    for row, ids in enumerate(learned):
        ids_NT[row, : len(ids)] = torch.tensor(ids)
        mask_NT[row, : len(ids)] = True
    return Batch([each.ids[: each.start] for each in tokens], ids_NT.to(device), mask_NT.to(device))


def parts_of(batch: Batch, rows: Iterator[Tensor]) -> Iterator[Batch]:
    """The batch in parts, each as wide as its own longest."""
    for part in rows:
        width = int(batch.mask_NT[part].sum(1).max())
        yield Batch(
            [batch.prompt_ids[row] for row in part.tolist()],
            batch.ids_NT[part, :width],
            batch.mask_NT[part, :width],
        )


def columns(tokens: Sequence[Tokens]) -> dict[str, Any]:
    """Counts of examples and of learned and read tokens, for the summary."""
    return {
        "examples": len(tokens),
        "tokens": sum(len(each.ids) for each in tokens),
        "learned_tokens": sum(len(each.ids) - each.start for each in tokens),
    }
