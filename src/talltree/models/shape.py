"""The dimensions of a model that is built from scratch: a known name, single dimensions, or both."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from typing import NamedTuple

from talltree.config import option
from talltree.errors import ConfigError


class Dimensions(NamedTuple):
    """Every dimension of a model; kv_heads and tie_embeddings hold for llama, GPT-2 has neither choice."""

    architecture: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    context: int
    tie_embeddings: bool = True


def _gpt2(hidden_size: int, layers: int, heads: int, context: int = 1024) -> Dimensions:
    return Dimensions("gpt2", hidden_size, layers, heads, heads, 4 * hidden_size, context)


def _llama(hidden: int, layers: int, heads: int, kv_heads: int, wide: int, context: int) -> Dimensions:
    return Dimensions("llama", hidden, layers, heads, kv_heads, wide, context)


NAMES = {
    "seedling": _llama(192, 5, 6, 6, 512, 256),
    "stories260K": _llama(64, 5, 8, 4, 172, 512),
    "stories15M": _llama(288, 6, 6, 6, 768, 256),
    "stories42M": _llama(512, 8, 8, 8, 1376, 1024),
    "stories110M": _llama(768, 12, 12, 12, 2048, 1024),
    "gpt2-tiny": _gpt2(256, 4, 4, context=256),
    "gpt2-small": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
}
"""The story models of the package and of llama2.c; GPT-2 as published (124M, 355M, 774M with 50,257 tokens)
and a tiny one of our own, 3.2M parameters beside its embedding of 256 numbers a token."""


@dataclass(frozen=True)
class Shape:
    """A known model by `name`, in which every dimension that is given takes the place of the name's."""

    name: str = option("seedling", f"known model: {', '.join(NAMES)}")
    architecture: str | None = option(None, "family (null: the name's)", choices=("llama", "gpt2"))
    hidden_size: int | None = option(None, "width of the residual stream (null: the name's)", low=8)
    layers: int | None = option(None, "number of blocks (null: the name's)", low=1)
    heads: int | None = option(None, "attention heads (null: the name's)", low=1)
    kv_heads: int | None = option(
        None, "key and value heads of a llama (null: the name's, or `heads` where that is as many)", low=1
    )
    intermediate_size: int | None = option(
        None, "width of the feed-forward layer (null: the name's; for a gpt2 4 x hidden_size)", low=8
    )
    context: int | None = option(None, "longest sequence (null: the name's)", unit="tokens", low=8)
    tie_embeddings: bool | None = option(None, "one matrix for embedding and head (null: true)")

    def check(self) -> None:
        """Raises ConfigError for an unknown name or dimensions that do not divide."""
        found = dimensions(self)
        if found.hidden_size % (2 * found.heads):
            raise ConfigError(
                f"model.hidden_size {found.hidden_size} is not divisible by twice model.heads {found.heads}; "
                f"try {max(1, found.hidden_size // (2 * found.heads)) * 2 * found.heads}"
            )
        if found.architecture == "llama" and found.heads % found.kv_heads:
            raise ConfigError(
                f"model.heads {found.heads} is not divisible by model.kv_heads {found.kv_heads}; "
                f"try {found.heads}"
            )
        if found.architecture == "gpt2" and not found.tie_embeddings:
            raise ConfigError("model.tie_embeddings false is for llama; a gpt2 head is always tied")


def dimensions(shape: Shape) -> Dimensions:
    """Every dimension of a shape. Raises ConfigError, with the nearest name, for an unknown one."""
    if shape.name not in NAMES:
        # stories15m is a slip of the shift key, so case does not count.
        lower = {name.lower(): name for name in NAMES}
        nearest = lower[difflib.get_close_matches(shape.name.lower(), lower, 1, 0.0)[0]]
        raise ConfigError(
            f"model.name: {shape.name!r} is not known; nearest: {nearest}; names: {', '.join(NAMES)}"
        )
    known = NAMES[shape.name]
    given = {key: value for key, value in asdict(shape).items() if key != "name" and value is not None}
    found = known._replace(**given)
    if "kv_heads" not in given and known.kv_heads == known.heads:
        found = found._replace(kv_heads=found.heads)
    if "intermediate_size" not in given and found.architecture == "gpt2":
        found = found._replace(intermediate_size=4 * found.hidden_size)
    return found


def resolved(shape: Shape) -> Shape:
    """The shape with every dimension written out, as config.yaml keeps it."""
    return Shape(name=shape.name, **dimensions(shape)._asdict())
