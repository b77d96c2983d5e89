"""A causal language model as a classifier: its body, a linear head on the last real token, the training loop.

Texts are padded on the right and the last token is found by length: padding is never seen, position ids start
at 0, and a token of a text that happens to be PAD counts like any other. The library's own class for this,
AutoModelForSequenceClassification, looks for the last token that is not PAD: where a text ends in PAD, it is
another one, and without a pad token it refuses to batch. Dropout is off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from talltree.errors import ContractError, DataError, ModelError
from talltree.evals.classification_items import Item, cut_to_fit
from talltree.evals.classification_metrics import MEASURES, confusion
from talltree.evals.finetune_options import FinetuneOptions
from talltree.models.load import encode
from talltree.models.optim import build_optimizer, schedule, set_learning_rate
from talltree.models.policy import trainable
from talltree.models.score import by_length, precision
from talltree.models.views import base_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_UPDATES_BETWEEN = 200
MAX_GRAD_NORM = 1.0


class Encoded(NamedTuple):
    """Token ids of each of an item's texts, its label, and the words cut off to make them fit."""

    ids: tuple[list[int], ...]
    label: int
    cut_words: int


class Measured(NamedTuple):
    """One look at the stopping rows: the measure, and the mean cross-entropy in nats."""

    update: int
    epoch: float
    measure: float
    loss: float


class Fitted(NamedTuple):
    """What training found: every look at the stopping rows, and the number of the update that was kept."""

    history: list[Measured]
    best_update: int
    updates: int


class Classifier(nn.Module):
    """logits = head(body's hidden state at the last real token); the head is linear, without bias.

    outputs: the number of classes, or 1 where each of an item's texts gets a score. The head starts as
    N(0, initializer_range), drawn from a generator of its own. Raises ModelError for a model without a body.
    """

    def __init__(self, model: PreTrainedModel, outputs: int, seed: int) -> None:
        super().__init__()
        base: Any = base_model(model)
        if base.base_model is base:
            raise ModelError(
                f"{type(base).__name__} has no body apart from its vocabulary head, so no classifier can be "
                "made of it"
            )
        self.model = model
        self.head = nn.Linear(base.config.hidden_size, outputs, bias=False)
        generator = torch.Generator().manual_seed(seed)
        std = float(getattr(base.config, "initializer_range", 0.02))
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=generator) * std)
        # The vocabulary head has no part in this, and where it is tied it stands in the body.
        output = base.get_output_embeddings()
        if output is not None and output.weight is not base.get_input_embeddings().weight:
            output.requires_grad_(False)
        self.to(device=base.device)

    def forward(self, tokens_NS: Tensor, length_N: Tensor) -> Tensor:
        """Token ids padded on the right with anything, and lengths of at least 1 -> logits_NC in float32."""
        body = base_model(self.model).base_model
        hidden_NSH = body(input_ids=tokens_NS, use_cache=False).last_hidden_state
        rows = torch.arange(len(tokens_NS), device=tokens_NS.device)
        return self.head(hidden_NSH[rows, length_N - 1]).float()


def tokens_of(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], most: int) -> list[Encoded]:
    """The token ids of every item, each text of at most `most` tokens. Raises DataError for an empty one."""
    found = []
    for item in items:
        ids, cut = [], 0
        for text in item.texts:
            ids += encode(tokenizer, [text.joined])
            if len(ids[-1]) > most:
                joined, words = cut_to_fit(text, lambda words: len(encode(tokenizer, [words])[0]) <= most)
                ids[-1:] = encode(tokenizer, [joined])
                cut += words
            if not ids[-1]:
                raise DataError(
                    f"row {item.id}: its text {text.joined[:40]!r} has no token; leave the row out"
                )
        found.append(Encoded(tuple(ids), item.label, cut))
    return found


def logits_of(classifier: Classifier, items: Sequence[Encoded]) -> Tensor:
    """Logits (N, classes) of some items, differentiable; where each has several texts, (N, texts)."""
    device = classifier.head.weight.device
    texts = [ids for item in items for ids in item.ids]
    length_N = torch.tensor([len(ids) for ids in texts])
    tokens_NS = torch.zeros(len(texts), int(length_N.max()), dtype=torch.long)
    for row, ids in enumerate(texts):
        tokens_NS[row, : len(ids)] = torch.tensor(ids)
    logits = classifier(tokens_NS.to(device), length_N.to(device))
    return logits.reshape(len(items), -1)


def predict(classifier: Classifier, items: Sequence[Encoded], dtype: str) -> Tensor:
    """Logits of all items in their order, without gradient, on the CPU."""
    found: dict[int, Tensor] = {}
    device = classifier.head.weight.device
    with torch.no_grad(), precision(device, dtype == "bfloat16"):
        for part in _parts(items, device):
            logits = logits_of(classifier, [items[row] for row in part]).cpu()
            found.update(zip(part, logits, strict=True))
    return torch.stack([found[row] for row in range(len(items))])


def fine_tune(
    classifier: Classifier,
    fit: Sequence[Encoded],
    stop: Sequence[Encoded],
    measure: str,
    options: FinetuneOptions,
    seed: int,
    progress: Callable[[str], None],
) -> Fitted:
    """Fits the classifier in place and leaves it at its best measurement on the stopping rows.

    Cross-entropy, AdamW without weight decay, the gradient's norm clipped at 1, and a rate that falls
    linearly, update by update, from the first to the last of max_epochs. Each epoch takes every row once in
    an order drawn by seed; its last batch may be smaller. Better is a higher measure, and the lower loss of
    two equal ones. Raises ContractError where loss or gradient is not finite.
    """
    device = classifier.head.weight.device
    parameters = list(trainable(classifier).values())
    optimizer = build_optimizer("adamw", parameters, options.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    an_epoch = math.ceil(len(fit) / options.batch_size)
    updates = an_epoch * options.max_epochs
    every = options.eval_every or min(an_epoch, MOST_UPDATES_BETWEEN)
    history: list[Measured] = []
    best: tuple[tuple[float, float], int, list[Tensor]] | None = None
    since_best = update = 0
    for _ in range(options.max_epochs):
        order = torch.randperm(len(fit), generator=generator).tolist()
        for start in range(0, len(fit), options.batch_size):
            batch = [fit[row] for row in order[start : start + options.batch_size]]
            set_learning_rate(optimizer, options.learning_rate * schedule("linear", update, updates, 0))
            optimizer.zero_grad(set_to_none=True)
            _gradient(classifier, batch, device, options.dtype)
            norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            if not torch.isfinite(norm):
                raise ContractError(
                    f"update {update + 1}: the gradient is {norm.item()}; give a lower learning_rate than "
                    f"{options.learning_rate:g}"
                )
            optimizer.step()
            update += 1
            if update % every and update < updates:
                continue
            history.append(_measured(classifier, stop, measure, options.dtype, update, update / an_epoch))
            key = (history[-1].measure, -history[-1].loss)
            progress(
                f"update {update} of at most {updates}: {measure} {history[-1].measure:.3f}, "
                f"loss {history[-1].loss:.3f} on {len(stop)} stopping rows"
            )
            if best is None or key > best[0]:
                best, since_best = (key, update, [p.detach().clone() for p in parameters]), 0
            else:
                since_best += 1
            if since_best >= options.patience:
                return _restored(parameters, best, history, update)
    assert best is not None  # the last update is always measured
    return _restored(parameters, best, history, update)


def _restored(
    parameters: Sequence[nn.Parameter],
    best: tuple[Any, int, Sequence[Tensor]],
    history: list[Measured],
    update: int,
) -> Fitted:
    with torch.no_grad():
        for parameter, kept in zip(parameters, best[2], strict=True):
            parameter.copy_(kept)
    return Fitted(history, best[1], update)


def _gradient(classifier: Classifier, batch: Sequence[Encoded], device: torch.device, dtype: str) -> None:
    """The gradient of the mean cross-entropy over a batch, made in parts that fit into memory."""
    for part in _parts(batch, device):
        some = [batch[row] for row in part]
        with precision(device, dtype == "bfloat16"):
            logits = logits_of(classifier, some)
        labels = torch.tensor([item.label for item in some], device=device)
        (cross_entropy(logits, labels, reduction="sum") / len(batch)).backward()


def _measured(
    classifier: Classifier, items: Sequence[Encoded], measure: str, dtype: str, update: int, epoch: float
) -> Measured:
    logits = predict(classifier, items, dtype)
    labels = [item.label for item in items]
    loss = float(cross_entropy(logits.double(), torch.tensor(labels)))
    if not math.isfinite(loss):
        raise ContractError(f"update {update}: the loss on the stopping rows is {loss}; lower learning_rate")
    counts = confusion(labels, logits.argmax(1).tolist(), logits.shape[1])
    return Measured(update, epoch, float(MEASURES[measure](counts)), loss)


def _parts(items: Sequence[Encoded], device: torch.device) -> Iterator[list[int]]:
    """Row numbers of items of similar length, as many at a time as one pass holds."""
    lengths = [[0] * (len(item.ids) * max(map(len, item.ids))) for item in items]
    for part in by_length(lengths, torch.zeros(len(items), 0, dtype=torch.bool, device=device)):
        yield part.tolist()
