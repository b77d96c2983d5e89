"""The reference samples, which set gain and bias: candidates of the training comparisons, or a model's."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from talltree import checkpoint
from talltree.models.load import context_length, load_model, load_tokenizer, stop_ids
from talltree.rollout import collect, encode_prompts, truncation_at
from talltree.stages.reward.comparisons import Comparison, Texts
from talltree.stages.reward.config import Config
from talltree.types import Prompt

SAMPLES_STREAM = 2**42
"""Added to the seed, for the reference samples."""
AT_A_TIME = 64
FILE = "reference.jsonl"


class References(NamedTuple):
    """Prompt and completion of each reference sample."""

    prompts: list[str]
    completions: list[str]


def reference_samples(
    config: Config, train: list[Comparison], texts: Texts, device: torch.device
) -> References:
    """The samples that the config asks for, at most reference.samples.

    Candidates: those of smallest SHA-256, each text once. Model: prompts of the training comparisons in
    turn, those of smallest SHA-256 first, continued at reference.temperature and cut as rl cuts.
    """
    rows = sorted({row for each in train for row in each.texts})
    asked = config.reference
    if asked.source == "candidates":
        rows.sort(key=lambda row: _digest(texts.prompts[row] + "\0" + texts.completions[row]))
        some = rows[: asked.samples]
        return References([texts.prompts[row] for row in some], [texts.completions[row] for row in some])
    found = sorted({texts.prompts[row] for row in rows}, key=_digest)[: asked.samples]
    prompts = [Prompt(text) for text in sorted(itertools.islice(itertools.cycle(found), asked.samples))]
    name = asked.model_name_or_path or config.model_name_or_path
    model, tokenizer = load_model(name), load_tokenizer(name)
    nn.Module.to(model, device)
    ids_of = encode_prompts(tokenizer, model, prompts, 1)
    room = context_length(model) - max(map(len, ids_of.values()))
    ends = None
    if asked.truncate_token is not None:
        ends = truncation_at(tokenizer, asked.truncate_token, asked.truncate_after, model.config.vocab_size)
    generator = torch.Generator().manual_seed(SAMPLES_STREAM + config.seed)
    completions: list[str] = []
    for start in range(0, len(prompts), AT_A_TIME):
        rollout = collect(
            model,
            tokenizer,
            prompts[start : start + AT_A_TIME],
            ids_of,
            max_completion_length=min(asked.max_completion_length, room),
            truncation=ends,
            stop_ids=stop_ids(model, tokenizer),
            temperature=asked.temperature,
            generator=generator,
        )
        completions += rollout.completions
    return References([prompt.text for prompt in prompts], completions)


def write_references(folder: Path, found: References) -> None:
    """One line a sample."""
    lines = (
        json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False) + "\n"
        for prompt, completion in zip(found.prompts, found.completions, strict=True)
    )
    checkpoint.write_file(folder / FILE, "".join(lines).encode())


def read_references(folder: Path) -> References:
    """What `write_references` wrote."""
    text = (folder / FILE).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    return References([row["prompt"] for row in rows], [row["completion"] for row in rows])


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
