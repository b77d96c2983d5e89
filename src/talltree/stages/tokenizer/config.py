"""The options of the tokenizer stage, and its special tokens."""

from __future__ import annotations

from dataclasses import dataclass

from talltree.config import option
from talltree.data.corpus_options import CorpusOptions, sources_of
from talltree.errors import ConfigError

EOS = "<|endoftext|>"
PAD = "<|pad|>"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of `talltree tokenizer`."""

    dataset_name: str = option("", "corpus: a .txt or .jsonl file, a folder of them, or a hub dataset")
    corpus: CorpusOptions = option(CorpusOptions(), "how the corpus is read, split and mixed; as in pretrain")
    output_dir: str = option("runs/tokenizer", "run folder; the tokenizer is written to its final/")
    vocab_size: int = option(32768, "size of the vocabulary", unit="tokens", low=512, high=65536)
    min_frequency: int = option(2, "how often a pair must occur to be merged", low=1)
    special_tokens: list[str] = option([], "further special tokens, beside the end of text and padding")

    def check(self) -> None:
        """Raises ConfigError for a corpus that is not said, or special tokens that clash."""
        sources_of(self.dataset_name, self.corpus)
        names = [EOS, PAD, *self.special_tokens]
        for name in self.special_tokens:
            if not name.strip() or names.count(name) > 1:
                raise ConfigError(f"special_tokens: {name!r} is blank or there already; {EOS} and {PAD} are")
