"""The options of the tokenizer stage, and its special tokens."""

from __future__ import annotations

from dataclasses import MISSING, dataclass

from talltree.config import option

EOS = "<|endoftext|>"
PAD = "<|pad|>"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of `talltree tokenizer`."""

    dataset_name: str = option(MISSING, "corpus: a .jsonl (column `text`) or .txt file, or a folder of them")
    output_dir: str = option("runs/tokenizer", "run folder; the tokenizer is written to its final/")
    vocab_size: int = option(4096, "size of the vocabulary", unit="tokens", low=512, high=65536)
    min_frequency: int = option(2, "how often a pair must occur to be merged", low=1)
    separator: str = option(EOS, "what stands between the documents of a .txt file")
    validation_share: float = option(
        0.01, "share of the documents that is held out, as pretrain does", above=0, high=0.5
    )
