"""Texts from a model: shown in the terminal, or written as JSONL that the other stages read as a corpus."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from talltree.config import option
from talltree.console import printable
from talltree.errors import ConfigError, ModelError, RunError

IN_VAIN = 1000
"""Dropped texts in a row after which a model is taken to be unable to write a whole one."""

POSITIONAL = "model_name_or_path"


@dataclass(frozen=True)
class Config:
    """Write texts with a model."""

    model_name_or_path: str = option("seedling", "`seedling`, a local folder or a hub name")
    prompt: str = option(
        "Once upon a time", "what every text starts with; empty needs a tokenizer with a BOS token"
    )
    prompts: str | None = option(None, "JSONL file with a `prompt` column, or .txt; used besides `prompt`")
    prompts_share: float = option(
        1.0, "share of the texts that start with a random one of `prompts`, if given", low=0, high=1
    )
    count: int = option(3, "texts to write", unit="texts", low=1)
    max_completion_length: int = option(
        200, "longest completion; less where the context ends", unit="tokens", low=1
    )
    temperature: float = option(1.0, "logits are divided by this", above=0)
    unended: Literal["keep", "cut", "drop"] = option(
        "keep", "texts that the model did not end: keep, cut after the last sentence, or drop"
    )
    batch_size: int = option(64, "texts sampled at a time", unit="texts", low=1)
    seed: int = option(0, "seed of the draws", low=0)
    output: str | None = option(
        None, "JSONL file to write {text, prompt} to; null: the terminal; must not exist"
    )

    def check(self) -> None:
        """Raises ConfigError if the output exists, or the part of it that an interrupted command wrote."""
        if self.output is None:
            return
        path = Path(self.output).expanduser()
        for taken in (path, _partial(path)):
            if taken.exists():
                raise ConfigError(
                    f"output {taken} exists and is not overwritten; choose another file, or move it"
                )


class Text(NamedTuple):
    """What was written; `whole` unless the model had not ended it."""

    prompt: str
    text: str
    whole: bool


def run(config: Config) -> None:
    """Writes `count` texts; where some are dropped, others take their place."""
    if config.output is not None:
        _write(config, Path(config.output).expanduser())
        return
    for each in _texts(config):
        print(printable(each.text) + ("" if each.whole else " […]"), end="\n\n", flush=True)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _write(config: Config, path: Path) -> None:
    partial = _partial(path)
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            for each in _texts(config):
                file.write(json.dumps({"text": each.text, "prompt": each.prompt}, ensure_ascii=False) + "\n")
                written += 1
                if written % config.batch_size == 0:
                    print(f"{written} of {config.count} texts", file=sys.stderr, flush=True)
        partial.rename(path)
    except OSError as error:
        raise RunError(
            f"cannot write output {partial}: {error.strerror}; {written} texts are in it"
        ) from error
    finally:
        if written == 0 and partial.is_file():
            partial.unlink()
    print(f"{written} texts in {path}")


def _texts(config: Config) -> Iterator[Text]:
    import torch

    from talltree.data.prompts import literal_prompts, read_prompts
    from talltree.models.load import context_length, load_model, load_tokenizer, stop_ids
    from talltree.models.memory import when_out_of_memory
    from talltree.rollout import collect, encode_prompts
    from talltree.types import Prompt

    common = Prompt(config.prompt) if not config.prompt else literal_prompts([config.prompt])[0]
    others = read_prompts(config.prompts) if config.prompts is not None else [common]
    model, tokenizer = load_model(config.model_name_or_path), load_tokenizer(config.model_name_or_path)
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    ids_of = encode_prompts(tokenizer, model, [common, *others], 1)
    length = min(config.max_completion_length, context_length(model) - max(map(len, ids_of.values())))
    stops = stop_ids(model, tokenizer)
    generator = torch.Generator().manual_seed(config.seed)
    written = in_vain = 0
    while written < config.count:
        size = min(config.batch_size, config.count - written)
        picks = torch.randint(len(others), (size,), generator=generator).tolist()
        from_others = (torch.rand(size, generator=generator) < config.prompts_share).tolist()
        prompts = [others[i] if other else common for i, other in zip(picks, from_others, strict=True)]
        with when_out_of_memory(functools.partial(_memory_advice, size, length)):
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
            in_vain = 0 if text else in_vain + 1
            if text:
                written += 1
                yield Text(prompt.text, text, ended or config.unended == "cut")
        if in_vain >= IN_VAIN:
            raise ModelError(
                f"the last {in_vain} texts of {config.model_name_or_path} were empty or not ended within "
                f"{length} tokens, {written} of {config.count} texts are written; raise "
                "max_completion_length, or set unended keep"
            )


def _memory_advice(texts: int, length: int) -> str:
    fix = f"--batch_size {texts // 2}" if texts > 1 else f"--max_completion_length {length // 2}"
    return f"out of memory with {texts} texts at a time of up to {length} tokens; try {fix}"


def _whole_sentences(text: str) -> str:
    """The text up to its last full stop, exclamation or question mark with its quote; empty without one."""
    ends = [match.end() for match in re.finditer(r"""[.!?]["”']?(?=\s|$)""", text)]
    return text[: ends[-1]] if ends else ""
