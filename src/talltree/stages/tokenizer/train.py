"""Stage `tokenizer`: a byte-level BPE tokenizer from a corpus, in the hub's layout.

Every byte has a token of its own, so any text can be written and comes back unchanged; digits stand alone.
`<|endoftext|>` both ends a document and starts one: the tokenizer puts it before every text, so that a model
that was trained on EOS doc EOS doc EOS continues a prompt as the beginning of a document, and an empty prompt
is still one token. `<|pad|>` is a token of its own and never trained on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from talltree import checkpoint
from talltree.config import to_dict
from talltree.data.corpora import Corpus, open_corpus, save_manifest
from talltree.data.tokens import encode
from talltree.errors import DataError
from talltree.models.load import save_tokenizer
from talltree.run import Run, environment, refuse_used
from talltree.stages.tokenizer.config import EOS, PAD, Config


def train(
    texts: Iterable[str], vocab_size: int, min_frequency: int, special_tokens: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """The tokenizer of these texts: special tokens, 256 bytes, then merges in order of their frequency.

    The special tokens are EOS (0), PAD (1) and those given. Deterministic; texts may be a stream. The
    vocabulary is smaller than asked where no pair is left that occurs min_frequency times.
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
            special_tokens=[EOS, PAD, *special_tokens],
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
        **({"additional_special_tokens": list(special_tokens)} if special_tokens else {}),
        clean_up_tokenization_spaces=False,
    )


def run(config: Config) -> None:
    """Train on the corpus's training split alone, measure on its validation split, write the run folder."""
    started = time.perf_counter()
    refuse_used(Path(config.output_dir))
    corpus = open_corpus(config.corpus, config.dataset_name)
    documents, _, _ = corpus.count("train")
    tokenizer = train(corpus.texts("train"), config.vocab_size, config.min_frequency, config.special_tokens)
    if len(tokenizer) < config.vocab_size:
        raise DataError(
            f"only {len(tokenizer)} tokens can be made of {documents:,} training documents with "
            f"min_frequency {config.min_frequency}, vocab_size {config.vocab_size} was asked for; use a "
            f"larger corpus or --vocab_size {len(tokenizer)}"
        )
    _, words, size = corpus.count("validation")
    held_out = held_out_tokens(tokenizer, corpus)
    manifest = corpus.manifest()
    with Run.create(config.output_dir, to_dict(config), environment(corpus.sha256)) as folder:
        checkpoint.save_folder(folder.final, lambda path: save_tokenizer(path, tokenizer))
        save_manifest(folder.folder, manifest)
        folder.write_summary(
            {
                "stage": "tokenizer",
                "vocab_size": len(tokenizer),
                "corpus": manifest,
                "validation_bytes_per_token": size / held_out,
                "validation_tokens_per_word": held_out / words,
                "wall_time_seconds": time.perf_counter() - started,
            }
        )
    print(
        f"{len(tokenizer)} tokens from {documents:,} documents "
        f"({manifest['duplicates_dropped']:,} duplicates dropped); "
        f"held-out text: {size / held_out:.2f} bytes a token, {held_out / words:.2f} tokens a word\n"
        f"written to {folder.final}"
    )


def held_out_tokens(tokenizer: PreTrainedTokenizerFast, corpus: Corpus) -> int:
    """Tokens of the validation split, without EOS."""
    texts = corpus.texts("validation")
    total = 0
    while batch := list(itertools.islice(texts, 256)):
        total += sum(map(len, encode(tokenizer, batch)))
    return total
