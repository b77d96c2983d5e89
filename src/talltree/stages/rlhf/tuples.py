"""What is put before the judges in one round: completions of the policy, and of the reference beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from talltree import checkpoint
from talltree.annotation.study import StudyTuple, make_tuple
from talltree.data.prompts import literal_prompts, read_prompts, split_prompts
from talltree.errors import ModelError
from talltree.models.load import compute_device, load_model, load_tokenizer, stop_ids
from talltree.rollout import collect, encode_prompts, truncation_at
from talltree.types import Prompt

POLICY, REFERENCE = "policy", "reference"
TRIES = 20
"""Draws after which a model that keeps repeating itself is taken to have nothing different to say."""


class Asked(NamedTuple):
    """The tuples of one round; nothing is trained on those of `validation`."""

    training: list[StudyTuple]
    validation: list[StudyTuple]


def draw_tuples(
    rl: Any, policy: str, reference: str, *, training: int, validation: int, k: int, seed: int
) -> Asked:
    """Tuples of k different completions of one prompt each, sampled as the rl stage will sample.

    rl: the rl stage's Config, for prompts, lengths, temperature and truncation. Training tuples are the
    policy's, on training prompts in a shuffled order that begins anew when all were used. Validation tuples
    are on held-out prompts (training ones where nothing is held out), half from the policy, half from the
    reference; one in which both wrote the same text is left out. Raises ModelError for a model that cannot
    write k different completions.
    """
    everything = literal_prompts([rl.prompt]) if rl.prompts is None else read_prompts(Path(rl.prompts))
    split = split_prompts(everything, rl.held_out)
    generator = torch.Generator().manual_seed(seed)
    asked = list(_in_turn(split.train, training, generator))
    held_out = list(_in_turn(split.held_out, validation, generator))
    mine = k if policy == reference else k // 2
    by_policy = _write(
        rl, policy, [(each, k) for each in asked] + [(each, mine) for each in held_out], generator
    )
    by_reference: list[list[str]] = [[] for _ in held_out]
    if policy != reference:
        by_reference = _write(rl, reference, [(each, k - mine) for each in held_out], generator)
    name = REFERENCE if policy == reference else POLICY
    tuples = [
        make_tuple(prompt.text, written, [name] * k)
        for prompt, written in zip(asked, by_policy[: len(asked)], strict=True)
    ]
    checks = []
    for prompt, ours, theirs in zip(held_out, by_policy[len(asked) :], by_reference, strict=True):
        texts = dict.fromkeys(ours, name) | dict.fromkeys(theirs, REFERENCE)
        if len(texts) == k:
            checks.append(make_tuple(prompt.text, list(texts), list(texts.values())))
    return Asked(_different(tuples), _different(checks))


def _in_turn(prompts: Sequence[Prompt], count: int, generator: torch.Generator) -> Iterator[Prompt]:
    order: list[int] = []
    for _ in range(count):
        order = order or torch.randperm(len(prompts), generator=generator).tolist()
        yield prompts[order.pop()]


def _write(
    rl: Any, name: str, wanted: Sequence[tuple[Prompt, int]], generator: torch.Generator
) -> list[list[str]]:
    """For each prompt so many different, non-empty completions of the model; repeats are drawn again."""
    device = compute_device(rl.device, rl.dtype)
    tokenizer, model = load_tokenizer(name), load_model(name)
    torch.nn.Module.to(model, device)
    ids_of = encode_prompts(tokenizer, model, [prompt for prompt, _ in wanted], rl.max_completion_length)
    ends = None
    if rl.truncate_token is not None:
        ends = truncation_at(tokenizer, rl.truncate_token, rl.truncation_start, model.config.vocab_size)
    found: list[list[str]] = [[] for _ in wanted]
    for _ in range(TRIES):
        missing = [
            (place, prompt)
            for place, (prompt, count) in enumerate(wanted)
            for _ in range(count - len(found[place]))
        ]
        if not missing:
            return found
        rollout = collect(
            model, tokenizer, [prompt for _, prompt in missing], ids_of,
            max_completion_length=rl.max_completion_length, stop_ids=stop_ids(model, tokenizer),
            truncation=ends,
            temperature=rl.temperature, generator=generator, fast=rl.fast,
        )  # fmt: skip
        for (place, _), text in zip(missing, rollout.completions, strict=True):
            if text.strip() and text not in found[place]:
                found[place].append(text)
    prompt, count = next((each, n) for (each, n), texts in zip(wanted, found, strict=True) if len(texts) < n)
    raise ModelError(
        f"{name} wrote fewer than {count} different completions of {prompt.text[:40]!r} in {TRIES} tries; it "
        "may have collapsed: stop the rounds before, or raise rl.temperature"
    )


def _different(tuples: Sequence[StudyTuple]) -> list[StudyTuple]:
    return list({each.tuple_id: each for each in tuples}.values())


def save_asked(path: Path, asked: Asked) -> None:
    """The tuples as JSONL, whole or not at all: prompt, candidates, sources, and what each is for."""
    rows = [
        {"use": use, "prompt": each.prompt, "candidates": each.candidates, "sources": each.sources}
        for use, tuples in asked._asdict().items()
        for each in tuples
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    checkpoint.write_file(path, lines.encode())


def load_asked(path: Path) -> Asked:
    """What `save_asked` wrote."""
    tuples: dict[str, list[StudyTuple]] = {"training": [], "validation": []}
    # Not str.splitlines, which also cuts at characters that a model may write, such as U+2028.
    for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
        row = json.loads(line)
        tuples[row["use"]].append(make_tuple(row["prompt"], row["candidates"], row["sources"]))
    return Asked(**tuples)
