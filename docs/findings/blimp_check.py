"""BLiMP without this package: python docs/findings/blimp_check.py FOLDER DATA NAME=MODEL ... PARADIGM ...

transformers alone reads one sentence at a time after the tokenizer's BOS, in float64, and adds up log p.
Each item is compared with the rows that `talltree evaluate` wrote to FOLDER.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def nats(model, tokenizer, sentence: str) -> float:
    """Sum of log p(token | what stands before it), over the tokens of `sentence`."""
    ids = [tokenizer.bos_token_id, *tokenizer(sentence, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    logp = torch.log_softmax(logits, dim=-1)
    return sum(float(logp[at, token]) for at, token in enumerate(ids[1:]))


def main(folder: str, data: str, *words: str) -> None:
    """Prints a line for each model and paradigm; ends with status 1 if an item differs."""
    models = dict(word.split("=", 1) for word in words if "=" in word)
    paradigms = [word for word in words if "=" not in word]
    differing = 0
    for name, path in models.items():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
        lines = (Path(folder) / "rows" / name / "blimp.jsonl").read_text(encoding="utf-8").split("\n")
        rows = {(row["paradigm"], row["item"]): row for line in lines if line for row in [json.loads(line)]}
        for paradigm in paradigms:
            text = (Path(data) / f"{paradigm}.jsonl").read_text(encoding="utf-8")
            pairs = [json.loads(line) for line in text.split("\n") if line]
            won, unequal, furthest = 0.0, 0, 0.0
            for item, pair in enumerate(pairs):
                good = nats(model, tokenizer, pair["sentence_good"])
                bad = nats(model, tokenizer, pair["sentence_bad"])
                outcome = 0.5 if abs(good - bad) < 1e-9 else float(good > bad)
                row = rows[paradigm, item]
                unequal += outcome != row["won"]
                furthest = max(furthest, abs(good - row["good_nats"]), abs(bad - row["bad_nats"]))
                won += outcome
            differing += unequal
            print(
                f"{name}  {paradigm}  {100 * won / len(pairs):.1f}%  "
                f"{len(pairs) - unequal} of {len(pairs)} items equal, sums within {furthest:.1e} nats",
                flush=True,
            )
    sys.exit(1 if differing else 0)


main(*sys.argv[1:])
