"""The model card: valid metadata, the facts of the run, and no folder of the machine."""

import hashlib
import json
import re

import pytest
import torch
import yaml

from talltree.models.card import is_hub_name, model_card, sizes, without_folders, write_card

from .tiny import gpt2, llama, save

MACHINE = {
    "python": "3.11.7",
    "versions": {"talltree": "0.1.0", "torch": "2.13.0", "peft": None},
    "git": {"talltree": "abc123", "working_directory": None},
    "processor": "x86_64",
    "torch_threads": 2,
    "gpus": ["A GPU"],
    "data_sha256": {"prompts.jsonl": "11aa", "reward kinder.py": "22bb"},
}
CORPUS = {
    **{f"train_{what}": n for what, n in (("documents", 900), ("words", 20_000), ("bytes", 100_000))},
    **{f"validation_{what}": n for what, n in (("documents", 10), ("words", 200), ("bytes", 1_000))},
    **{f"test_{what}": 0 for what in ("documents", "words", "bytes")},
    "duplicates_dropped": 3,
    "empty_dropped": 2,
    "overlaps_dropped": 1,
    "rules": {"split": "by hash"},
    "sources": [
        {
            "name": "tales|old",
            "splits": {
                "train": {"documents": 900, "words": 20_000},
                "validation": {"documents": 10, "words": 200},
            },
            "share_found": 1.0,
            "tokens": 31_000,
            "content_sha256": "33cc",
        }
    ],
    "sha256": {f"tales/{n}.txt": f"{n:04x}" for n in range(25)},
    "near_duplicates": {"threshold": 0.7, "pairs": {"train-validation": {"pairs": 4}}},
}
COMMON = {
    "licence": "cc-by-4.0",
    "data_note": "Old tales: of foxes.",
    "output_dir": "/home/me/run",
    "resume": None,
}
PRETRAIN = COMMON | {
    "dataset_name": "",
    "corpus": {"sources": [{"path": "/home/me/tales", "data_files": "/srv/x/*.txt"}], "cache_dir": "~/cache"},
    "tokenizer_name_or_path": "../words/final",
    "batch_size": 16,
    "sample_prompts": ["/imagine", ""],
}
SFT = COMMON | {"model_name_or_path": "me/base", "lora_r": 4, "dataset_name": "pairs.jsonl"}
RL = COMMON | {
    "model_name_or_path": "/home/me/base",
    "reward": "kinder.py:kinder - 0.1*length",
    "algorithm": "rloo",
    "batch_size": 64,
    "prompts": "/home/me/prompts.jsonl",
    "prompt": "Once upon a time",
}


def interval(mean, half):
    return {
        "mean": mean,
        "low": None if half is None else mean - half,
        "high": None if half is None else mean + half,
    }


SUMMARY_PRETRAIN = {
    "stage": "pretrain",
    "steps": 500,
    "epochs": 2.5,
    "parameters": 3_000_384,
    "train_tokens": 30_000,
    "validation": {"loss": 1.5, "bits_per_byte": 0.75, "tokens": 900},
    "final": {"loss": 1.625, "bits_per_byte": 0.875, "dtype": "bfloat16"},
    "corpus": CORPUS,
}
SUMMARY_SFT = {
    "stage": "sft",
    "loss_on": "completion",
    "steps": 40,
    "epochs": 1.25,
    "parameters": 7,
    "learned_tokens": 5_000,
    "final_step": 30,
    "base_sha256": "44dd",
    "corpus": CORPUS | {"near_duplicates": {"threshold": 0.7}},
    "data": {
        "train": {"examples": 950, "tokens": 9_000, "learned_tokens": 4_000},
        "held_out": {"examples": 12, "tokens": 90, "learned_tokens": 40},
        "too_long": 5,
        "undivided": 6,
        "shared_prompts": 8,
    },
    "before": {"loss": interval(2.5, 0.25), "examples": 12},
    "after": {"loss": interval(2.0, 0.25), "examples": 12},
    "change": interval(-0.5, None),
}
MEASURED = {
    "kl": interval(0.0, 0.0),
    "length": interval(95.5, 0.5),
    "distinct_1": 0.1,
    "distinct_2": 0.4,
    "unique": 1.0,
}
SUMMARY_RL = {
    "stage": "rl",
    "steps": 20,
    "kl_coef": 0.05,
    "final_step": 10,
    "stop_reason": "KL ceiling",
    "parameters": 7,
    "evaluated_on": "held-out prompts",
    "base_sha256": "55ee",
    "before": MEASURED | {"reward": interval(4.75, 0.25), "samples": 256},
    "after": MEASURED | {"reward": interval(10.5, 0.5), "samples": 256},
}
EVERY = [(PRETRAIN, SUMMARY_PRETRAIN), (SFT, SUMMARY_SFT), (RL, SUMMARY_RL)]


def parts(card):
    """(metadata, text) of a card, parted as the hub parts it."""
    _, about, text = re.split(r"^---\n", card, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(about), text


@pytest.mark.parametrize(("config", "summary"), EVERY)
def test_the_metadata_is_what_the_hub_reads(config, summary):
    about, _ = parts(model_card(config, summary, MACHINE))
    expected = {"license": "cc-by-4.0", "library_name": "transformers", "pipeline_tag": "text-generation"}
    assert about.items() >= expected.items()
    assert about["tags"][:2] == ["talltree", summary["stage"]]
    # A folder's name would be refused by the hub: a base model is one of its own names.
    assert about.get("base_model") == ("me/base" if summary["stage"] == "sft" else None)


@pytest.mark.parametrize(("config", "summary"), EVERY)
def test_no_folder_of_the_machine_is_in_it(config, summary):
    card = model_card(config, summary, MACHINE)
    for secret in ("/home", "/srv", "~/", "me/run", "../"):
        assert secret not in card, secret
    assert "runs/again" in card


@pytest.mark.parametrize(
    ("config", "summary", "facts"),
    [
        (
            PRETRAIN,
            SUMMARY_PRETRAIN,
            [
                "500 updates of 16 rows, 2.50 epochs of 30,000 tokens",
                "Old tales: of foxes.",
                "| parameters |\n| --- |\n| 3,000,384 |",
                "| train | 900 | 20,000 | 100,000 | 30,000 |",
                "| validation | 10 | 200 | 1,000 | 900 |",
                r"| tales\|old | 910 | 20,200 | 31,000 | 100.0% | `33cc` |",
                "3 exact duplicates, 2 empty documents, 1 that",
                "(similarity 0.7 and above): train-validation 4 pairs.",
                "- `tales/19.txt`: SHA-256 `0013`\n- and 5 more files",
                "| nats per token | 1.5000 | 1.6250 |",
                "| bits per byte | 0.7500 | 0.8750 |",
                "/imagine",
                "run `talltree pretrain --config config.yaml --output_dir runs/again`",
                "Python 3.11.7, talltree 0.1.0, torch 2.13.0; talltree at commit abc123",
                "x86_64, 2 threads, A GPU",
            ],
        ),
        (
            SFT,
            SUMMARY_SFT,
            [
                "# base, fine-tuned",
                "`me/base` (weights SHA-256 `44dd`)",
                "LoRA adapters of rank 4, merged",
                "| train | 950 | 9,000 | 4,000 |",
                "| validation | 12 | 90 | 40 |",
                "5 were too long, 6 could not",
                "and above): none.",
                "8 had a held-out prompt",
                "| before | 2.5000 (2.2500 to 2.7500) |",
                "| after | 2.0000 (1.7500 to 2.2500) |",
                "| change | -0.5000 |",
                "over 12 held-out examples",
            ],
        ),
        (
            RL,
            SUMMARY_RL,
            [
                "# base, rloo on kinder.py:kinder - 0.1*length",
                "KL coefficient 0.05 per nat; ended by: KL ceiling",
                "Prompts: `prompts.jsonl`.",
                "- `reward kinder.py`: SHA-256 `22bb`",
                "256 fresh samples each, on held-out prompts",
                "| reward | 4.7500 (4.5000 to 5.0000) | 10.5000 (10.0000 to 11.0000) |",
                "| distinct_2 | 0.400 | 0.400 |",
                "| length, tokens | 95.5000 (95.0000 to 96.0000)",
            ],
        ),
    ],
)
def test_it_states_the_facts_of_the_run(config, summary, facts):
    card = model_card(config, summary, MACHINE)
    for fact in facts:
        assert fact in card, fact


def test_the_hash_is_that_of_the_config_shown_and_where_it_ran_does_not_change_it():
    cards = [model_card(PRETRAIN | {"output_dir": name}, SUMMARY_PRETRAIN, MACHINE) for name in ("a", "b")]
    assert cards[0] == cards[1]
    digest, shown = re.search(r"SHA-256 `(\w+)` of\n```yaml\n(.*?)```", cards[0], re.DOTALL).groups()
    assert hashlib.sha256(shown.encode()).hexdigest() == digest
    assert yaml.safe_load(shown)["corpus"]["sources"] == [{"path": "tales", "data_files": "*.txt"}]


@pytest.mark.parametrize("model", [llama(), gpt2()])
def test_sizes_are_those_of_the_saved_files(tmp_path, model):
    save(tmp_path, model.to(torch.bfloat16))
    assert sizes(tmp_path) == {
        "type": model.config.model_type,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": 2,
        "width": 16,
        "heads": model.config.num_attention_heads,
        "context": 64,
        "vocabulary": 23,
        "stored as": "BF16",
    }
    write_card(tmp_path, RL, SUMMARY_RL, MACHINE)
    assert "| 2 | 16 |" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_model_in_several_files_is_counted_whole(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert sizes(tmp_path)["parameters"] == sum(p.numel() for p in model.parameters())


def test_which_values_lose_their_folders():
    given = {
        "a": "/x/y z/b.jsonl",
        "b": ["~/c", "hub/name", "runs/c/final", 3],
        "c": {"d": "C:\\me\\e.txt"},
        "prompt": "/p/q",
        "f": "file:///home/me/g.txt",
        "h": None,
        "i": "/x/y/",
    }
    assert without_folders(json.loads(json.dumps(given))) == {
        "a": "b.jsonl",
        "b": ["c", "hub/name", "runs/c/final", 3],
        "c": {"d": "e.txt"},
        "prompt": "/p/q",
        "f": "g.txt",
        "h": None,
        "i": "y",
    }


def test_names_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [
        is_hub_name(name) for name in ("gpt2", "a/b", "seedling", "here", "/a/b", "runs/a/b", "../a")
    ] == [
        True,
        True,
        False,
        False,
        False,
        False,
        False,
    ]
