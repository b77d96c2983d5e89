"""What a run is made of: model, tokens of train and held-out examples, optimiser, loaded and checked."""

from __future__ import annotations

import hashlib
import itertools
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from talltree.data.corpora import Corpus, open_corpus
from talltree.data.documents import Document
from talltree.data.examples import (
    Example,
    SentenceSplit,
    by_first_prompt,
    continuations,
    whole,
    with_pairs,
    without_shared,
)
from talltree.errors import DataError
from talltree.models.load import (
    compute_device,
    context_length,
    encode,
    load_model,
    load_tokenizer,
    stop_ids,
    weights_sha256,
)
from talltree.models.optim import build_optimizer
from talltree.models.policy import add_lora, trainable
from talltree.stages.sft.config import Config
from talltree.stages.sft.tokens import (
    Tokens,
    batches_per_epoch,
    check_length,
    columns,
    end_token,
    fitting,
    tokenise,
)
from talltree.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Parts(NamedTuple):
    """Everything but the step's number; only model and optimiser change.

    counts: what became of the data, for the summary. sampled: held-out prompts to continue, with their ids.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    base_sha256: str
    train: list[Tokens]
    held_out: list[Tokens]
    held_out_examples: list[Example]
    sampled: list[Prompt]
    ids_of: dict[str, list[int]]
    room: int
    stop_ids: tuple[int, ...]
    optimizer: torch.optim.Optimizer
    steps: int
    corpus: Corpus
    counts: dict[str, Any]


def load_parts(config: Config) -> Parts:
    """Loads what the config names and checks it before there is a folder. Raises TallTreeError."""
    device = compute_device(config.device, config.dtype)
    opened = open_corpus(config.corpus, config.dataset_name)
    tokenizer = load_tokenizer(config.model_name_or_path)
    longest_text = tokenizer.model_max_length
    # Lengths are checked here, where the message can name the row; the library would only warn.
    tokenizer.model_max_length = sys.maxsize
    corpus, examples = _examples(config, tokenizer, opened)
    model = load_model(config.model_name_or_path)
    stops, context = stop_ids(model, tokenizer), context_length(model)
    longest, eos = check_length(config.max_length, context), end_token(stops, tokenizer)
    split_train = without_shared(examples.train, examples.held_out)
    both, on_text = [*split_train, *examples.held_out], config.loss_on == "text"
    tokens = [
        tokenise(tokenizer, each, eos, on_text=on_text, vocabulary=model.config.vocab_size) for each in both
    ]
    tokenizer.model_max_length = longest_text
    kept = fitting(both, tokens, longest, context, config.too_long)
    train = [tokens[place] for place in kept if place < len(split_train)]
    held_places = [place for place in kept if place >= len(split_train)]
    if len(train) < config.batch_size or not held_places:
        raise DataError(_too_few(config, corpus, len(train), len(held_places), len(both) - len(kept)))
    held_out = [tokens[place] for place in held_places]
    held_out_examples = [both[place] for place in held_places]
    nn.Module.to(model, device)
    fingerprint = weights_sha256(model)
    if config.lora_r is not None:
        model = add_lora(model, config.lora_r, config.lora_alpha or 2.0 * config.lora_r, config.seed)
    sampled, ids_of = _sampled(config, tokenizer, held_out_examples, held_out)
    return Parts(
        model, tokenizer, fingerprint, train, held_out, held_out_examples, sampled, ids_of,
        context - max(map(len, ids_of.values()), default=0), stops,
        build_optimizer("adamw", trainable(model).values(), config.learning_rate, config.weight_decay),
        _steps(config, len(train)),
        corpus,
        {
            "train": columns(train),
            "held_out": columns(held_out),
            "too_long": len(both) - len(kept),
            "undivided": examples.undivided,
            "shared_prompts": len(examples.train) - len(split_train),
        },
    )  # fmt: skip


class Examples(NamedTuple):
    """The examples of either split, and how many pieces of texts could not be divided."""

    train: list[Example]
    held_out: list[Example]
    undivided: int


def _examples(config: Config, tokenizer: PreTrainedTokenizerBase, opened: Corpus) -> tuple[Corpus, Examples]:
    """The corpus as it is read for `split`, and its examples."""
    plan = SentenceSplit(config.prompt_sentences, config.prompt_tokens, config.example_tokens)

    def count(text: str) -> int:
        return len(encode(tokenizer, [text])[0])

    if config.split == "none":
        corpus = with_pairs(opened)
    else:
        corpus = by_first_prompt(opened, plan, count)
    documents: dict[str, list[Document]] = {"train": [], "validation": []}
    for split, _, document in corpus.documents(*documents):
        documents[split].append(document)
    if config.split == "none":
        return corpus, Examples(whole(documents["train"]), whole(documents["validation"]), 0)
    train, undivided = continuations(documents["train"], plan, count)
    held_out, undivided_too = continuations(documents["validation"], plan, count)
    if not train:
        raise DataError(
            f"no text of {_labels(corpus)} has a sentence for its prompt and one for its completion "
            f"({undivided} were tried); set prompt_sentences or prompt_tokens otherwise, or give longer texts"
        )
    return corpus, Examples(train, held_out, undivided + undivided_too)


def _labels(corpus: Corpus) -> str:
    return ", ".join(opened.source.label for opened in corpus.sources)


def _too_few(config: Config, corpus: Corpus, train: int, held_out: int, too_long: int) -> str:
    after = f" after {too_long} that are too long" if too_long else ""
    if not held_out:
        return (
            f"no held-out example of {_labels(corpus)} is left{after}; give shorter ones, or a larger "
            "corpus.validation_share"
        )
    fix = f", or set batch_size {train} or less" if train else ""
    return (
        f"{_labels(corpus)} has {train} training examples{after}, fewer than batch_size "
        f"{config.batch_size}; give more of them{fix}"
    )


def _steps(config: Config, examples: int) -> int:
    """Updates of the run: `steps`, or those of `epochs` epochs, rounded up."""
    if config.steps is not None:
        return config.steps
    return math.ceil((config.epochs or 1.0) * batches_per_epoch(examples, config.batch_size))


def _sampled(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    held_out: Sequence[Tokens],
) -> tuple[list[Prompt], dict[str, list[int]]]:
    """`samples` held-out prompts, equal ones adjacent, and the token ids of each.

    Those of smallest SHA-256, each once before any comes again.
    """
    ids_of: dict[str, list[int]] = {}
    for example, tokens in zip(examples, held_out, strict=True):
        ids = tokens.ids[: tokens.prompt]
        ids_of.setdefault(example.prompt or str(tokenizer.decode(ids, skip_special_tokens=True)), ids)
    texts = sorted(ids_of, key=lambda text: hashlib.sha256(text.encode()).digest())[: config.samples]
    repeated = sorted(itertools.islice(itertools.cycle(texts), config.samples))
    return [Prompt(text) for text in repeated], {text: ids_of[text] for text in texts}
