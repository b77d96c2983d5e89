"""Log-probs of token sequences under a model: the one door through which evaluations read likelihoods.

A text is read after a start token: the tokenizer's BOS, or its EOS where there is no BOS. It is the last
thing that was read before a text in training, and without it the first token would go unscored. A tokenizer
with neither scores a text from its second token on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from talltree.data.tokens import encode
from talltree.errors import ModelError
from talltree.models.score import likelihoods
from talltree.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEQUENCES_AT_A_TIME = 1024
"""Between two reports of progress; log-probs of so many are in memory at a time, logits never are."""

Heard = Callable[[int], None]
"""Is told how many tokens have been read since it was last told."""


class Passage(NamedTuple):
    """Tokens to score, and those that are read before them."""

    before: Sequence[int]
    scored: Sequence[int]


def start_token(tokenizer: Any) -> int | None:
    """BOS, else EOS, else None."""
    found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return None if found is None else int(found)


def start_words(tokenizer: Any) -> str:
    """What texts are read after, in a sentence for the notes of a result."""
    start = start_token(tokenizer)
    if start is None:
        return "The tokenizer has neither BOS nor EOS: texts are scored from their second token on."
    kind = "BOS" if tokenizer.bos_token_id is not None else "EOS (there is no BOS)"
    token = tokenizer.convert_ids_to_tokens(start)
    return f"Texts are read after {token!r}, the tokenizer's {kind}."


def with_start(tokenizer: Any, texts: Sequence[str], vocabulary: int) -> list[Passage]:
    """Each text's own tokens, a literal special token in it being text, after the start token.

    Raises ModelError for a token that the model does not have.
    """
    start = start_token(tokenizer)
    passages = []
    for text, ids in zip(texts, encode(tokenizer, texts), strict=True):
        if max(ids, default=0) >= vocabulary:
            raise ModelError(
                f"the tokenizer gives token {max(ids)} for {text[:40]!r}, but the model has {vocabulary} "
                "tokens; use the tokenizer that the model was trained with"
            )
        passages.append(Passage(ids[:1], ids[1:]) if start is None else Passage([start], ids))
    return passages


def token_logprobs(
    model: PreTrainedModel, passages: Sequence[Passage], heard: Heard | None = None
) -> Iterator[list[float]]:
    """Log-probs in nats of each passage's scored tokens, in order; none for a passage without any.

    Passages of similar length share a batch, SEQUENCES_AT_A_TIME are sorted at a time. Equal passages are
    read once, so that their log-probs are equal to the last bit. `before` must not be empty.
    """
    for first in range(0, len(passages), SEQUENCES_AT_A_TIME):
        part = [
            (tuple(each.before), tuple(each.scored)) for each in passages[first : first + SEQUENCES_AT_A_TIME]
        ]
        different = list(dict.fromkeys(each for each in part if each[1]))
        found = dict(zip(different, _logprobs(model, different), strict=True)) if different else {}
        if heard is not None:
            heard(sum(len(before) + len(scored) for before, scored in different))
        for each in part:
            yield found[each] if each[1] else []


def _logprobs(
    model: PreTrainedModel, passages: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> list[list[float]]:
    longest = max(len(scored) for _, scored in passages)
    ids_NT = torch.zeros(len(passages), longest, dtype=torch.long)
    length_N = torch.tensor([len(scored) for _, scored in passages])
    for row, (_, scored) in enumerate(passages):
        ids_NT[row, : len(scored)] = torch.tensor(scored)
    mask_NT = torch.arange(longest) < length_N[:, None]
    device = model.device
    nothing = torch.zeros(0)
    read = Rollout(
        [],
        [list(before) for before, _ in passages],
        [],
        ids_NT.to(device),
        mask_NT.to(device),
        nothing,
        nothing,
    )
    logp_NT = likelihoods(model, read, 1.0).double().cpu()
    return [row[:length].tolist() for row, length in zip(logp_NT, length_N.tolist(), strict=True)]
