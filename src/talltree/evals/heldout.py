"""Held-out loss: nats per token and bits per byte of documents, each read from its own start token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from talltree.data.documents import Document
from talltree.data.sources import OpenSource, read
from talltree.errors import ConfigError, DataError
from talltree.evals.likelihood import Heard, Passage, start_words, token_logprobs, with_start
from talltree.evals.results import Metric, TaskResult
from talltree.evals.statistics import ratio
from talltree.models.load import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DOCUMENTS_AT_A_TIME = 64


class Window(NamedTuple):
    """Tokens begin:end of a document are read and those from `first` on are scored."""

    begin: int
    first: int
    end: int


def windows(length: int, context: int, stride: int) -> list[Window]:
    """Every token of a document but the first is scored once, in windows of at most `context` tokens.

    Each window after the first goes on `stride` tokens further, so that its scored tokens see at least
    context - stride tokens before them. Raises ValueError unless 1 <= stride < context.
    """
    if not 1 <= stride < context:
        raise ValueError(f"stride {stride} is not between 1 and context {context} - 1")
    found = [Window(0, 1, min(length, context))]
    while (done := found[-1].end) < length:
        end = min(done + stride, length)
        found.append(Window(end - context, done, end))
    return found


def documents(opened: OpenSource, most: int | None) -> list[Document]:
    """The first `most` documents that are not empty. Raises DataError where there is none."""
    found = []
    for document in read(opened):
        if document.text:
            found.append(document)
        if most is not None and len(found) == most:
            break
    if not found:
        raise DataError(f"{opened.source.label} has no document with text in it; give another file")
    return found


def stride_of(model: PreTrainedModel, stride: int | None) -> int:
    """The stride, or half of the context. Raises ConfigError for one that the context does not allow."""
    context = context_length(model)
    step = context // 2 if stride is None else stride
    if not 1 <= step < context:
        raise ConfigError(
            f"loss.stride {step} does not fit the model's context of {context} tokens; use 1 to {context - 1}"
        )
    return step


def score_documents(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Sequence[Document],
    *,
    stride: int | None = None,
    end_token: bool = False,
    heard: Heard | None = None,
) -> Iterator[dict[str, Any]]:
    """A row per document: nats, tokens, UTF-8 bytes, windows. stride: None means half of the context.

    end_token: the EOS after a document is scored as well; it adds nats and a token, and no bytes. Raises
    ConfigError for a stride that the context does not allow, and for end_token without an EOS.
    """
    context, step = context_length(model), stride_of(model, stride)
    if end_token and tokenizer.eos_token_id is None:
        raise ConfigError("loss.end_token asks for the EOS after documents, and the tokenizer has none")
    ends = [tokenizer.eos_token_id] if end_token else []
    for at in range(0, len(texts), DOCUMENTS_AT_A_TIME):
        some = texts[at : at + DOCUMENTS_AT_A_TIME]
        whole = with_start(tokenizer, [each.text for each in some], model.config.vocab_size)
        tokens = [[*each.before, *each.scored, *ends] for each in whole]
        cut = [windows(len(ids), context, step) for ids in tokens]
        passages = [
            Passage(ids[each.begin : each.first], ids[each.first : each.end])
            for ids, places in zip(tokens, cut, strict=True)
            for each in places
        ]
        found = token_logprobs(model, passages, heard)
        for number, (document, ids, places) in enumerate(zip(some, tokens, cut, strict=True), at):
            logp = [value for _ in places for value in next(found)]
            assert len(logp) == max(len(ids) - 1, 0)
            yield {
                "document": number,
                "nats": -math.fsum(logp),
                "tokens": len(logp),
                "bytes": len(document.text.encode()),
                "windows": len(places),
            }


def summarise(rows: Sequence[dict[str, Any]], tokenizer: Any, stride: int) -> TaskResult:
    """nats_per_token and bits_per_byte over all documents pooled, their intervals over documents.

    Raises DataError where no token was scored.
    """
    nats, tokens, size = ([row[key] for row in rows] for key in ("nats", "tokens", "bytes"))
    if not sum(tokens):
        raise DataError("no document has a token to score; give longer texts")
    n = len(rows)
    metrics = {
        "nats_per_token": ratio(nats, tokens, "nats / token", n),
        "bits_per_byte": ratio([each / math.log(2) for each in nats], size, "bits / byte", n),
        "documents": Metric(float(n), None, None, n, "documents"),
        "tokens": Metric(float(sum(tokens)), None, None, n, "tokens"),
        "bytes": Metric(float(sum(size)), None, None, n, "bytes"),
    }
    longer = sum(row["windows"] > 1 for row in rows)
    metrics["longer_than_context"] = Metric(float(longer), None, None, n, "documents")
    notes = [
        start_words(tokenizer),
        "Nats per token compare only models with the same tokens; bits per byte compare all.",
    ]
    if longer:
        count = sum(row["windows"] for row in rows if row["windows"] > 1)
        notes.append(
            f"{longer:,} of {n:,} documents are longer than the context: read in {count:,} windows that go "
            f"on {stride} tokens at a time, and nothing was cut."
        )
    return TaskResult(metrics, list(rows), tuple(notes))
