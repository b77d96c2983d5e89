"""What a model is known by in caches: its weights, whatever else decides what it computes, and its tokens."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from talltree.data.tokens import tokenizer_sha256

NOT_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
"""Keys of a model's config that change with its place or the library, not with what it computes."""


def identity(weights_sha256: str, model: Any, tokenizer: Any) -> dict[str, str]:
    """What a cached result answers to: the SHA-256 of weights, config and tokenizer."""
    return {
        "weights_sha256": weights_sha256,
        "config_sha256": config_sha256(model, tokenizer),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
    }


def config_sha256(model: Any, tokenizer: Any) -> str:
    """Of the config, and of the tokens that begin and end a text where other files say otherwise than it."""
    kept = {key: value for key, value in model.config.to_dict().items() if key not in NOT_THE_MODEL}
    if tokenizer.bos_token_id != kept.get("bos_token_id"):
        kept["tokenizer.bos_token_id"] = tokenizer.bos_token_id
    stop = getattr(model.generation_config, "eos_token_id", None)
    if stop is not None and stop != kept.get("eos_token_id"):
        kept["generation_config.eos_token_id"] = stop
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()
