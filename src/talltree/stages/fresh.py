"""Fresh completions of a model for stages that measure models: drawn from a seed, with KL, as plain rows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from talltree import checkpoint
from talltree.data.documents import jsonl_rows
from talltree.errors import ContractError, DataError, ModelError
from talltree.maths.kl import k1, sequence_kl
from talltree.models.load import load_model, load_tokenizer, stop_ids, weights_sha256
from talltree.models.score import likelihoods
from talltree.rollout import collect, encode_prompts, truncation_at
from talltree.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FRESH_STREAM = 2**42
"""Added to the seed, so that no training and no training's own measurement draws the same numbers."""


class Completion(NamedTuple):
    """One completion: tokens with the stop token, kl in nats from the reference; None where not known."""

    prompt: str
    completion: str
    seed: int
    ended: bool | None = None
    tokens: int | None = None
    kl: float | None = None


class Loaded(NamedTuple):
    """A model to sample from, on its device, with what sampling needs."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    sha256: str


class Cut(NamedTuple):
    """A completion ends with the first token whose text is `token`, at position `after` (from 0) or later."""

    token: str
    after: int


class Sampling(NamedTuple):
    """How completions are drawn: num_generations of each prompt for each seed; cut: None for at their end."""

    seeds: tuple[int, ...]
    num_generations: int
    max_completion_length: int
    temperature: float
    cut: Cut | None = None


def load(name: str, device: torch.device) -> Loaded:
    """A model by name or folder. Raises ModelError."""
    return prepared(name, load_model(name), load_tokenizer(name), device)


def prepared(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> Loaded:
    """A model that is loaded already, moved to the device."""
    torch.nn.Module.to(model, device)
    return Loaded(name, model, tokenizer, stop_ids(model, tokenizer), weights_sha256(model))


def require_same_tokens(loaded: Loaded, reference: Loaded) -> None:
    """Raises ModelError where KL has no meaning because the two models write other tokens."""
    same = loaded.tokenizer.get_vocab() == reference.tokenizer.get_vocab()
    if not same or loaded.model.config.vocab_size != reference.model.config.vocab_size:
        raise ModelError(
            f"{loaded.name} and the reference {reference.name} have different tokenizers, so the KL between "
            "them is not defined; name another reference, or none"
        )


def draw(
    loaded: Loaded, prompts: Sequence[Prompt], sampling: Sampling, reference: Loaded | None = None
) -> list[Completion]:
    """The completions of every seed in turn, prompt by prompt: the same seed pairs the draws of two models.

    kl is logp - ref_logp summed over the completion, at the temperature sampled with. Raises DataError and
    ModelError for prompts that do not fit the model, ConfigError for a cut that is not one of its tokens,
    ContractError for log-probs that are not finite.
    """
    vocabulary = loaded.model.config.vocab_size
    truncation = sampling.cut and truncation_at(loaded.tokenizer, *sampling.cut, vocabulary)
    different = list(dict.fromkeys(prompt.text for prompt in prompts))
    repeated = [Prompt(text) for text in different for _ in range(sampling.num_generations)]
    ids_of = encode_prompts(loaded.tokenizer, loaded.model, repeated, sampling.max_completion_length)
    drawn: list[Completion] = []
    for seed in sampling.seeds:
        rollout = collect(
            loaded.model,
            loaded.tokenizer,
            repeated,
            ids_of,
            max_completion_length=sampling.max_completion_length,
            stop_ids=loaded.stop_ids,
            temperature=sampling.temperature,
            generator=torch.Generator().manual_seed(FRESH_STREAM + seed),
            truncation=truncation,
        )
        if not torch.isfinite(rollout.logp_NT).all():
            raise ContractError(f"a log-prob of {loaded.name} is not finite: its weights are not usable")
        kl_N: list[float | None] = [None] * len(repeated)
        if reference is not None:
            ref_logp_NT = likelihoods(reference.model, rollout, sampling.temperature)
            if not torch.isfinite(ref_logp_NT).all():
                raise ContractError(f"a log-prob of the reference {reference.name} is not finite")
            kl_N = sequence_kl(k1(rollout.logp_NT, ref_logp_NT), rollout.completion_mask_NT).tolist()
        drawn += [
            Completion(prompt.text, text, seed, ended, tokens, kl)
            for prompt, text, ended, tokens, kl in zip(
                repeated,
                rollout.completions,
                rollout.ended_N.tolist(),
                rollout.completion_mask_NT.sum(1).tolist(),
                kl_N,
                strict=True,
            )
        ]
    return drawn


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON lines, written aside and renamed."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    checkpoint.write_file(path, "".join(lines).encode())


def read_completions(path: Path) -> list[Completion]:
    """Completions of a JSONL file: prompt and completion, and where they are there seed, ended, tokens, kl.

    Raises DataError, naming file, line and column, where one of them is of another kind, or no number.
    """
    if not path.is_file():
        raise DataError(
            f"samples {path} not found; give a .jsonl file with the columns prompt and completion"
        )
    found = []
    for where, row in jsonl_rows(path):
        for column in ("prompt", "completion"):
            if not isinstance(row.get(column), str):
                raise DataError(f"{where}: {column} {str(row.get(column))[:40]!r} is no text")
        seed = row.get("seed", 0)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise DataError(f"{where}: seed {seed!r} is not a whole number")
        ended, tokens, kl = (row.get(column) for column in ("ended", "tokens", "kl"))
        if ended is not None and not isinstance(ended, bool):
            raise DataError(f"{where}: ended {str(ended)[:40]!r} is neither true nor false")
        for column, value in (("tokens", tokens), ("kl", kl)):
            is_number = (
                isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            )
            if value is not None and not is_number:
                raise DataError(f"{where}: {column} {str(value)[:40]!r} is no finite number")
        found.append(Completion(row["prompt"], row["completion"], seed, ended, tokens, kl))
    if not found:
        raise DataError(f"samples {path} holds no completion")
    return found
