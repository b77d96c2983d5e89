"""The dimensions of a model that is built from scratch."""

from __future__ import annotations

from dataclasses import dataclass

from talltree.config import option
from talltree.errors import ConfigError


@dataclass(frozen=True)
class Shape:
    """The dimensions of a model; kv_heads and tie_embeddings hold for llama: GPT-2 has neither choice."""

    architecture: str = option("llama", "family of the model", choices=("llama", "gpt2"))
    hidden_size: int = option(192, "width of the residual stream", low=8)
    layers: int = option(5, "number of blocks", low=1)
    heads: int = option(6, "attention heads", low=1)
    kv_heads: int = option(6, "key and value heads (llama)", low=1)
    intermediate_size: int = option(512, "width of the feed-forward layer", low=8)
    context: int = option(256, "longest sequence", unit="tokens", low=8)
    tie_embeddings: bool = option(True, "one matrix for the embedding and the head")

    def check(self) -> None:
        """Raises ConfigError for dimensions that do not divide."""
        if self.hidden_size % (2 * self.heads):
            raise ConfigError(
                f"model.hidden_size {self.hidden_size} is not divisible by twice model.heads {self.heads}; "
                f"try {max(1, self.hidden_size // (2 * self.heads)) * 2 * self.heads}"
            )
        if self.architecture == "llama" and self.heads % self.kv_heads:
            raise ConfigError(
                f"model.heads {self.heads} is not divisible by model.kv_heads {self.kv_heads}; "
                f"try {self.heads}"
            )
        if self.architecture == "gpt2" and not self.tie_embeddings:
            raise ConfigError("model.tie_embeddings false is for llama; a gpt2 head is always tied")
