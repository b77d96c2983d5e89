"""Our sampler against transformers' `generate`, in one process, in turn.

`generate` samples from the whole distribution (top_k 0, top_p 1) with its dynamic cache, its default and the
best found: on 15m-10 with one thread that took 2.8 s, the static cache 2.9 s, and 4.0 s compiled (each the
best of several on a busy machine). It returns tokens alone; ours returns their log-probs as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench.machine import synchronise
from bench.shapes import from_json
from bench.weights import PAD, SEED, STOP, prompt_ids
from talltree.models.load import load_model
from talltree.sampling.decode import sample

CONTESTANTS = ("ours", "ours, library's cache", "generate")


def work(task: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds and sampled tokens of each contestant's repetitions, taken in turn after one that warms up."""
    row, device = from_json(task["row"]), task["device"]
    model: Any = load_model(task["model"])
    model.to(device)
    prompts = [prompt_ids()] * row.sequences
    generator = torch.Generator().manual_seed(SEED)
    inputs = torch.tensor(prompts, device=device)
    mask = torch.ones_like(inputs)

    def ours(**options: Any) -> int:
        sampled = sample(
            model,
            prompts,
            max_completion_length=row.tokens,
            stop_ids=(STOP,),
            temperature=1.0,
            generator=generator,
            **options,
        )
        return int(sampled.mask_NT.sum())

    def library() -> int:
        ids = model.generate(
            input_ids=inputs,
            attention_mask=mask,
            max_new_tokens=row.tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=STOP,
            pad_token_id=PAD,
            **task["generate"],
        )
        stops = (ids[:, inputs.shape[1] :] == STOP).long()
        return int((stops.cumsum(1) - stops == 0).sum())

    runs: dict[str, Callable[[], int]] = dict(
        zip(CONTESTANTS, (ours, lambda: ours(fast=False), library), strict=True)
    )
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    tokens: dict[str, list[int]] = {name: [] for name in runs}
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        for repetition in range(task["repetitions"] + 1):
            for name, run in runs.items():
                synchronise(device)
                started = time.perf_counter()
                count = run()
                synchronise(device)
                if repetition:
                    seconds[name].append(time.perf_counter() - started)
                    tokens[name].append(count)
    return {"seconds": seconds, "tokens": tokens}
