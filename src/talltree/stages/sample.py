"""Texts from a model: shown in the terminal, or written as JSONL that the other stages read as a corpus."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from talltree.config import option
from talltree.errors import ConfigError, RunError

POSITIONAL = "model_name_or_path"


@dataclass(frozen=True)
class Config:
    """Write texts with a model."""

    model_name_or_path: str = option("seedling", "`seedling`, a local folder or a hub name")
    prompt: str = option("Once upon a time", "what every text starts with; empty needs a tokenizer with a BOS token")
    prompts: str | None = option(None, "JSONL file with a `prompt` column, or .txt; used besides `prompt`")
    prompts_share: float = option(
        1.0, "share of the texts that start with a random one of `prompts`, where that is given", low=0, high=1
    )
    count: int = option(3, "texts to write", unit="texts", low=1)
    max_completion_length: int = option(200, "longest completion; less where the context ends", unit="tokens", low=1)
    temperature: float = option(1.0, "logits are divided by this", above=0)
    unended: Literal["keep", "cut", "drop"] = option(
        "keep", "texts that the model did not end: keep them, cut them after their last sentence, or drop them"
    )
    batch_size: int = option(64, "texts sampled at a time", unit="texts", low=1)
    seed: int = option(0, "seed of the draws", low=0)
    output: str | None = option(None, "JSONL file to write {text, prompt} to; null: the terminal; must not exist")

    def check(self) -> None:
        """Raises ConfigError if the output exists."""
        if self.output is not None and Path(self.output).exists():
            raise ConfigError(f"output {self.output} exists and is not overwritten; choose another file")


def run(config: Config) -> None:
    """Writes `count` texts; where some are dropped, others take their place."""
    if config.output is None:
        for text, ended in _texts(config):
            print(text if ended else f"{text} […]", end="\n\n", flush=True)
        return
    path = Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    written = 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            for text, _ in _texts(config):
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                written += 1
                if written % config.batch_size == 0:
                    print(f"{written} of {config.count} texts", file=sys.stderr, flush=True)
    except OSError as error:
        raise RunError(f"cannot write {partial}: {error.strerror}; {written} texts are in it") from error
    partial.rename(path)
    print(f"{written} texts in {path}")


def _texts(config: Config) -> Iterator[tuple[str, bool]]:
    import torch

    from talltree.data.prompts import read_prompts
    from talltree.models.load import context_length, load_model, load_tokenizer, stop_ids
    from talltree.rollout import collect, encode_prompts
    from talltree.types import Prompt

    model, tokenizer = load_model(config.model_name_or_path), load_tokenizer(config.model_name_or_path)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    common = Prompt(config.prompt)
    others = read_prompts(Path(config.prompts)) if config.prompts is not None else [common]
    ids_of = encode_prompts(tokenizer, model, [common, *others], 1)
    length = min(config.max_completion_length, context_length(model) - max(map(len, ids_of.values())))
    stops = stop_ids(model, tokenizer)
    generator = torch.Generator().manual_seed(config.seed)
    written = 0
    while written < config.count:
        size = min(config.batch_size, config.count - written)
        picks = torch.randint(len(others), (size,), generator=generator).tolist()
        from_others = (torch.rand(size, generator=generator) < config.prompts_share).tolist()
        prompts = [others[i] if other else common for i, other in zip(picks, from_others, strict=True)]
        rollout = collect(
            model,
            tokenizer,
            sorted(prompts, key=lambda prompt: prompt.text),
            ids_of,
            max_completion_length=length,
            stop_ids=stops,
            temperature=config.temperature,
            generator=generator,
        )
        for prompt, completion, ended in zip(
            rollout.prompts, rollout.completions, rollout.ended_N.tolist(), strict=True
        ):
            text = (prompt.text + completion).strip()
            if not ended and config.unended != "keep":
                text = _whole_sentences(text) if config.unended == "cut" else ""
            if text:
                written += 1
                yield text, ended or config.unended == "cut"


def _whole_sentences(text: str) -> str:
    """The text up to its last full stop, exclamation or question mark with its quote; empty if there is none."""
    ends = [match.end() for match in re.finditer(r"""[.!?]["”']?(?=\s|$)""", text)]
    return text[: ends[-1]] if ends else ""
