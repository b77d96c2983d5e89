"""The model card: README.md beside the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

PATHS = ("dataset_name", "tokenizer_name_or_path", "output_dir")


def model_card(config: Mapping[str, Any], summary: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """A pretrained model's data, sizes, losses, config with its hash, versions and licence, as Markdown.

    config, summary and machine are what a run folder holds in config.yaml, summary.json and
    environment.json. Absolute paths appear by their last part only: a card is published.
    """
    recipe = {key: value for key, value in config.items() if key not in ("resume", "max_minutes")}
    recipe |= {key: Path(recipe[key]).name for key in PATHS if Path(recipe[key]).is_absolute()}
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100)
    corpus, validation, final = summary["corpus"], summary["validation"], summary["final"]
    shape = config["model"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    hashes = "\n".join(f"- `{name}`: SHA-256 `{digest}`" for name, digest in corpus["sha256"].items())
    return f"""---
license: {config["licence"]}
library_name: transformers
pipeline_tag: text-generation
---
# {Path(config["output_dir"]).name}

A {shape["architecture"]} language model of {summary["parameters"]:,} parameters, trained from scratch by
`talltree pretrain`: {shape["layers"]} layers, width {shape["hidden_size"]}, {shape["heads"]} heads, context
{shape["context"]} tokens. Weights are stored as {config["final_dtype"]}.

## Data
{config["data_note"] or "Not described."}

| split | documents | words | tokens |
|---|---|---|---|
| train | {corpus["train_documents"]:,} | {corpus["train_words"]:,} | {summary["train_tokens"]:,} |
| held out | {corpus["validation_documents"]:,} | {corpus["validation_words"]:,} | {validation["tokens"]:,} |

The split follows the hash of each text. Left out: {corpus["duplicates_dropped"]:,} exact duplicates and
{corpus["empty_dropped"]:,} empty documents.
{hashes}

## Training
{summary["steps"]:,} updates of {config["batch_size"]} x {shape["context"]} tokens,
{summary["epochs"]:.2f} epochs, {summary["wall_time_seconds"] / 60:.0f} minutes.

| held out | float32, as trained | {config["final_dtype"]}, as stored |
|---|---|---|
| nats per token | {validation["loss"]:.4f} | {final["loss"]:.4f} |
| bits per byte | {validation["bits_per_byte"]:.4f} | {final["bits_per_byte"]:.4f} |

Each held-out document was read from its own start; its end token counts in both figures.

## Config
SHA-256 `{hashlib.sha256(text.encode()).hexdigest()}` of
```yaml
{text}```
Versions: Python {machine["python"]}, {versions}.

## Licence
{config["licence"]}
"""
