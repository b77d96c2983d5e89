"""What is measured: shapes of models, and rows of a table (a shape, how many sequences, how many tokens)."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from talltree.errors import ConfigError

PROMPT_TOKENS = 4


@dataclass(frozen=True)
class Shape:
    """Dimensions of a model with a tied head; `window` is GPT-Neo's: positions that a local layer sees."""

    name: str
    family: Literal["llama", "gpt_neo", "gpt2"]
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    context: int
    window: int = 256

    @property
    def matrix_parameters(self) -> int:
        """Parameters that take part in matrix products with every token: the roofline's P.

        P = layers * (4 H^2 + m H I) + V H, with m = 3 matrices in Llama's feed-forward layer and 2 in GPT's.
        The tied head counts once; position embeddings, biases and norms do not count.
        """
        matrices = 3 if self.family == "llama" else 2
        layer = 4 * self.hidden**2 + matrices * self.hidden * self.intermediate
        return self.layers * layer + self.vocabulary * self.hidden


@dataclass(frozen=True)
class Row:
    """One job: `sequences` completions of exactly `tokens` tokens, in groups of `group` of one prompt."""

    shape: Shape
    sequences: int
    group: int
    tokens: int = 100

    @property
    def name(self) -> str:
        return f"{self.shape.name}-{self.sequences}"


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("15m", "llama", 32_000, 288, 6, 6, 768, 256),
        Shape("33m", "gpt_neo", 50_257, 768, 4, 16, 3072, 2048),
        Shape("124m", "gpt2", 50_257, 768, 12, 12, 3072, 1024),
    )
}
"""stories15M of llama2.c, TinyStories-33M and GPT-2 small."""

ROWS = {
    row.name: row
    for row in (
        Row(SHAPES["15m"], 10, 10),
        Row(SHAPES["15m"], 64, 8),
        Row(SHAPES["33m"], 10, 10),
        Row(SHAPES["33m"], 64, 8),
        Row(SHAPES["124m"], 8, 8, tokens=64),
    )
}


def find_rows(names: str) -> list[Row]:
    """The rows of a comma-separated list. Raises ConfigError, with the known names, for one that is none."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in ROWS:
            nearest = difflib.get_close_matches(name, ROWS, 1, 0.0)[0]
            raise ConfigError(f"--rows: no row {name!r}; nearest: {nearest}; rows: {', '.join(ROWS)}")
    if not wanted:
        raise ConfigError(f"--rows: {names!r} names no row; rows: {', '.join(ROWS)}")
    return [ROWS[name] for name in wanted]


def to_json(row: Row) -> dict[str, Any]:
    """A row as plain values."""
    return dataclasses.asdict(row)


def from_json(values: Mapping[str, Any]) -> Row:
    """The row that `to_json` wrote."""
    return Row(**{**values, "shape": Shape(**values["shape"])})
