"""Stage `tokenizer`: a byte-level BPE tokenizer from a corpus, in the hub's layout.

Every byte has a token of its own, so any text can be written and comes back unchanged; digits stand alone.
`<|endoftext|>` both ends a document and starts one: the tokenizer puts it before every text, so that a model
that was trained on EOS doc EOS doc EOS continues a prompt as the beginning of a document, and an empty prompt
is still one token. `<|pad|>` is a token of its own and never trained on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from talltree import checkpoint
from talltree.config import to_dict
from talltree.data.corpora import encode, load_corpus
from talltree.errors import DataError
from talltree.models.load import save_tokenizer
from talltree.run import Run, environment
from talltree.stages.tokenizer.config import EOS, PAD, Config


def train(texts: Iterable[str], vocab_size: int, min_frequency: int) -> PreTrainedTokenizerFast:
    """The tokenizer of these texts: 2 special tokens, 256 bytes, then merges in order of their frequency.

    Deterministic. The vocabulary is smaller than asked where no pair is left that occurs min_frequency times.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=[EOS, PAD],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{EOS} $A", pair=f"{EOS} $A {EOS} $B", special_tokens=[(EOS, tokenizer.token_to_id(EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def run(config: Config) -> None:
    """Train on the corpus's training split, measure on its validation split, write the run folder."""
    started = time.perf_counter()
    corpus = load_corpus(config.dataset_name, config.separator, config.validation_share)
    tokenizer = train(corpus.train, config.vocab_size, config.min_frequency)
    if len(tokenizer) < config.vocab_size:
        raise DataError(
            f"{config.dataset_name}: only {len(tokenizer)} tokens can be made of {len(corpus.train)} "
            f"documents with min_frequency {config.min_frequency}, vocab_size {config.vocab_size} was asked "
            f"for; use a larger corpus or --vocab_size {len(tokenizer)}"
        )
    held_out = sum(map(len, encode(tokenizer, corpus.validation)))
    counts = corpus.counts
    with Run.create(config.output_dir, to_dict(config), environment(corpus.sha256)) as folder:
        checkpoint.save_folder(folder.final, lambda path: save_tokenizer(path, tokenizer))
        folder.write_summary(
            {
                "stage": "tokenizer",
                "vocab_size": len(tokenizer),
                "corpus": corpus.manifest(),
                "validation_bytes_per_token": counts.validation_bytes / held_out,
                "validation_tokens_per_word": held_out / counts.validation_words,
                "wall_time_seconds": time.perf_counter() - started,
            }
        )
    print(
        f"{len(tokenizer)} tokens from {counts.train_documents:,} documents "
        f"({counts.duplicates_dropped:,} duplicates dropped); "
        f"held-out text: {counts.validation_bytes / held_out:.2f} bytes a token, "
        f"{held_out / counts.validation_words:.2f} tokens a word\nwritten to {folder.final}"
    )
