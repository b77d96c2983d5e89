"""A toy corpus, its tokenizer and a small config for the pretrain stage."""

import json

import torch

from talltree.data.corpus_options import CorpusOptions
from talltree.models.build import Shape
from talltree.stages.pretrain.config import Config, Schedule
from talltree.stages.pretrain.team import Team
from talltree.stages.tokenizer import train as tokenizer

ALONE = Team(None, 0, 1, torch.device("cpu"), False)
SMALL = {"hidden_size": 16, "layers": 2, "heads": 2, "context": 32}
TINY = Shape(hidden_size=16, layers=2, heads=2, kv_heads=1, intermediate_size=24, context=32)


def make_corpus(folder):
    path = folder / "stories.jsonl"
    names, things = ["Tim", "Tom", "Ann", "Sue", "Max"], ["tree", "frog", "ball", "cake", "boat", "star"]
    texts = [
        f"Once upon a time {a} saw a {b}. {a} and {c} liked the {b}." + " The end." * (i % 3)
        for i, (a, b, c) in enumerate((a, b, c) for a in names for b in things for c in names)
    ]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def make_tokens(corpus, output):
    tokenizer.run(
        tokenizer.Config(
            dataset_name=corpus,
            output_dir=str(output),
            vocab_size=300,
            corpus=CorpusOptions(validation_share=0.2),
        )
    )
    return str(output / "final")


def make_config(corpus, tokens, output):
    return Config(
        dataset_name=corpus, tokenizer_name_or_path=tokens, output_dir=str(output), model=TINY,
        corpus=CorpusOptions(validation_share=0.2), steps=6, batch_size=4, schedule=Schedule(warmup_steps=2),
        validation_every=3, sample_every=3, checkpoint_every=2, log_every=2, keep_checkpoints=9,
    )  # fmt: skip


def exact(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]
