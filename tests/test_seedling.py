"""The story model in the package: its size, its layout, and that it really tells stories."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from talltree.models.load import SEEDLING, load_model, load_tokenizer, stop_ids
from talltree.models.score import likelihood
from talltree.sampling.decode import sample


def test_at_most_8_megabytes_and_no_pickle() -> None:
    files = [path for path in SEEDLING.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}


def test_the_hub_classes_load_it() -> None:
    model = AutoModelForCausalLM.from_pretrained(SEEDLING, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(SEEDLING)
    assert 3_500 <= len(tokenizer) <= 4_500
    assert model.config.vocab_size >= len(tokenizer)
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_card_states_its_origin() -> None:
    card = (SEEDLING / "README.md").read_text(encoding="utf-8")
    for fact in ("stories15M", "held-out", "apache-2.0", "recipes/seedling.yaml", "Once upon a time"):
        assert fact in card, fact


def test_it_ends_its_stories_and_varies_them() -> None:
    model, tokenizer = load_model("seedling"), load_tokenizer("seedling")
    prompt = tokenizer("Once upon a time")["input_ids"]
    drawn = sample(
        model,
        [prompt] * 24,
        max_completion_length=240,
        stop_ids=stop_ids(model, tokenizer),
        temperature=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    assert float(drawn.ended_N.float().mean()) > 0.5
    assert len({tuple(tokens.tolist()) for tokens in drawn.tokens_NT}) == 24


def test_it_prefers_real_stories_to_shuffled_ones(shared: Path) -> None:
    model, tokenizer = load_model("seedling"), load_tokenizer("seedling")
    lines = (shared / "data/tinystories/train.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    generator = torch.Generator().manual_seed(0)
    wins = 0
    for line in lines:
        words = json.loads(line)["text"].split()[:80]
        shuffled = [words[i] for i in torch.randperm(len(words), generator=generator)]
        real_nats, shuffled_nats = (
            -_logp(model, tokenizer(" ".join(text))["input_ids"]) for text in (words, shuffled)
        )
        wins += real_nats < shuffled_nats
    assert wins == 20


def _logp(model: torch.nn.Module, ids: list[int]) -> float:
    tokens = torch.tensor([ids[1:]])
    with torch.no_grad():
        logp_NT = likelihood(model, [ids[:1]], tokens, torch.ones_like(tokens, dtype=torch.bool), 1.0)  # type: ignore[arg-type]
    return float(logp_NT.sum())
