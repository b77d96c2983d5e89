"""The log-likelihood of completions under a model, as the hidden utility of simulated annotators."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from talltree.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def mean_logp(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
) -> list[float]:
    """Mean log-probability in nats of a completion's tokens after its prompt, at temperature 1.

    The tokens are those of prompt + completion as one text; those that the prompt alone has too are read and
    not counted, and neither is the first token where the prompt is empty. No end token is counted. Raises
    DataError for a completion without tokens of its own and for a text longer than the model's context.
    """
    import torch

    from talltree.models.load import context_length, encode
    from talltree.models.score import likelihoods
    from talltree.types import Prompt, Rollout

    if not completions:
        return []
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    whole, before = encode(tokenizer, texts), encode(tokenizer, prompts)
    room = context_length(model)
    cuts = []
    for text, ids, prefix in zip(texts, whole, before, strict=True):
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, prefix, strict=False)))
        cuts.append(max(same, 1))
        if len(ids) <= cuts[-1]:
            raise DataError(f"the text {text[:60]!r} has no token after its prompt to take the likelihood of")
        if len(ids) > room:
            raise DataError(
                f"the text {text[:60]!r} has {len(ids)} tokens, the model reads {room}; shorten it"
            )
    prompt_ids = [ids[:cut] for ids, cut in zip(whole, cuts, strict=True)]
    completion_ids = [ids[cut:] for ids, cut in zip(whole, cuts, strict=True)]
    longest = max(map(len, completion_ids), default=0)
    ids_NT = torch.zeros(len(texts), longest, dtype=torch.long, device=model.device)
    mask_NT = torch.zeros(len(texts), longest, dtype=torch.bool, device=model.device)
    for row, ids in enumerate(completion_ids):
        ids_NT[row, : len(ids)] = torch.tensor(ids)
        mask_NT[row, : len(ids)] = True
    given = Rollout(
        prompts=[Prompt(prompt) for prompt in prompts],
        prompt_ids=prompt_ids,
        completions=list(completions),
        completion_ids_NT=ids_NT,
        completion_mask_NT=mask_NT,
        logp_NT=torch.zeros(mask_NT.shape),
        ended_N=torch.ones(len(texts), dtype=torch.bool),
    )
    logp_NT = likelihoods(model, given, 1.0)
    return [float(total) for total in logp_NT.sum(1) / mask_NT.sum(1)]
