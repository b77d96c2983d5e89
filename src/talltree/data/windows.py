"""Rows of a token stream for training, and whether a corpus is large enough for them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from talltree.data.corpora import Corpus
from talltree.data.tokens import TokenStream, encode
from talltree.errors import DataError


def windows_per_epoch(tokens: int, context: int, rows: int = 1) -> int:
    """Rows of context + 1 tokens in an epoch, whatever its offset: floor((tokens - context) / context).

    Raises DataError when that is fewer than `rows`, those of one batch.
    """
    count = (tokens - context) // context
    if count < 1:
        raise DataError(
            f"the training split has {tokens:,} tokens, fewer than two windows of context {context}; "
            "use a larger corpus or a smaller context"
        )
    if count < rows:
        raise DataError(
            f"the training split has {tokens:,} tokens, {count} rows of context {context}, fewer than the "
            f"{rows} of one batch; use a larger corpus, a smaller batch or a smaller context"
        )
    return count


def require_windows(corpus: Corpus, tokenizer: Any, context: int, rows: int) -> None:
    """Refuses a corpus that is too small for one batch; tokenises no more than that takes.

    Raises DataError as `windows_per_epoch` does, with the exact number of tokens.
    """
    tokens = 1
    texts = corpus.texts("train")
    while batch := list(itertools.islice(texts, 64)):
        tokens += sum(len(ids) + 1 for ids in encode(tokenizer, batch))
        if tokens >= (rows + 1) * context:
            return
    windows_per_epoch(tokens, context, rows)


def training_batch(stream: TokenStream, context: int, rows: int, first_row: int, seed: int) -> Tensor:
    """Rows first_row .. first_row + rows - 1 of an endless sequence of windows -> (rows, context + 1).

    Each epoch cuts the stream at its own random offset below `context` and shuffles the windows; neighbouring
    windows share one token, which is predicted once, so a long document goes on in another row. Fewer than
    2 * context tokens at the ends of the stream stay out of an epoch, other ones in each. A pure function of
    its arguments: the row number is the whole data position, so resume needs nothing else.
    """
    per_epoch = windows_per_epoch(len(stream), context)
    starts: list[int] = []
    for epoch in range(first_row // per_epoch, (first_row + rows - 1) // per_epoch + 1):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        offset = int(torch.randint(context, (), generator=generator))
        order = torch.randperm(per_epoch, generator=generator)
        low = max(first_row - epoch * per_epoch, 0)
        high = min(first_row + rows - epoch * per_epoch, per_epoch)
        starts.extend((order[low:high] * context + offset).tolist())
    return torch.stack([torch.from_numpy(stream.window(start, context + 1)) for start in starts])
