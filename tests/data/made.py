"""Small corpora and a tokenizer whose tokens are bytes, for the tests of this folder."""

import json

from talltree.data.corpora import open_corpus
from talltree.data.corpus_options import CorpusOptions
from talltree.stages.tokenizer.train import train

TEXTS = [f"Story number {n} tells of {n * 7} trees." for n in range(200)]


def write_jsonl(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def corpus_of(path, **options):
    return open_corpus(CorpusOptions(**{"validation_share": 0.25, **options}), str(path))


def by_sources(rows, **options):
    options = CorpusOptions(**{"validation_share": 0.25, "sources": rows, **options})
    options.check()
    return open_corpus(options)


def byte_tokenizer():
    """EOS is 0, PAD 1, and each byte has a token."""
    return train(["ab"], 258, 99)
