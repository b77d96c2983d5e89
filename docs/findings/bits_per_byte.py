"""Held-out text in bits per byte: python docs/findings/bits_per_byte.py TEXTS.jsonl MODEL [MODEL ...].

Each text is read alone from the model's start token, its first 120 words so that every context holds it; bits
per byte can be compared between tokenizers.
"""

import json
import math
import sys
from pathlib import Path

import torch

from talltree.models.load import load_model, load_tokenizer
from talltree.models.score import likelihood

TEXTS, WORDS = 200, 120


def main(corpus: str, *names: str) -> None:
    """Prints one line a model."""
    lines = Path(corpus).read_text(encoding="utf-8").splitlines()[-TEXTS:]
    texts = [" ".join(json.loads(line)["text"].split()[:WORDS]) for line in lines]
    size = sum(len(text.encode()) for text in texts)
    for name in names:
        model, tokenizer = load_model(name), load_tokenizer(name)
        nats, count = 0.0, 0
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            ids = ids if ids[0] == tokenizer.bos_token_id else [tokenizer.bos_token_id, *ids]
            tokens = torch.tensor([ids[1:]])
            with torch.no_grad():
                logp_NT = likelihood(model, [ids[:1]], tokens, torch.ones_like(tokens, dtype=torch.bool), 1.0)
            nats -= float(logp_NT.sum())
            count += tokens.numel()
        parameters = sum(p.numel() for p in model.parameters())
        print(
            f"{name}: {parameters:,} parameters, {nats / count:.3f} nats/token, "
            f"{nats / math.log(2) / size:.3f} bits/byte over {len(texts)} texts of {size:,} bytes"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
