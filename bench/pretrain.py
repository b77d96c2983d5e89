"""Pretraining, ours against the `transformers` Trainer: same weights, rows, batch, precision and threads.

Both sides read the same token cache and start from the same model file; AdamW, gradient norm clipped at 1,
float32, no checkpoint, validation or sample within the timed steps. Attention is SDPA on both sides.

The Trainer's best settings, found by trying on the 15m shape with 16 rows of 256 tokens, transformers 5.23,
torch 2.13, two threads of an AVX2 machine (median s a step of 4; peak memory;
`--trainer '{...}'` repeats any; the differences between the first four are within noise):

| setting | s a step | peak |
|---|---|---|
| all 16 rows at once | 4.13 | 3.1 GB |
| 8 rows at a time | 4.10 | 2.0 GB |
| 8 at a time, torch_compile | 4.05 (against ours in turn: slower, 4.23 for 4.15) | 2.0 GB |
| 8 at a time, eager attention | 4.20 | 2.1 GB |
| 4 at a time | 4.42 | 1.4 GB |

So: 8 at a time, fused AdamW, not compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.machine import WARM_UP, StepClock, memory
from bench.shapes import Shape
from bench.weights import SEED

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
MAX_GRAD_NORM = 1.0
DOCUMENT_TOKENS = 200
HELD_OUT = 0.02


def write_corpus(shape: Shape, rows: int, folder: Path) -> None:
    """Writes a corpus of random words for `rows` rows of the context, and a tokenizer, into a folder."""
    import json

    import numpy as np

    from bench.weights import tokenizer, word
    from talltree.models.load import save_tokenizer

    save_tokenizer(_made(folder / "words"), tokenizer(shape.vocabulary))
    generator = np.random.default_rng(SEED)
    # A hash holds some documents out, and two rows' worth is lost at the ends of an epoch.
    documents = int((rows + 4) * shape.context / DOCUMENT_TOKENS * 1.2) + 200
    with (folder / "corpus.jsonl").open("w") as file:
        for _ in range(documents):
            ids = generator.integers(2, shape.vocabulary, DOCUMENT_TOKENS)
            file.write(json.dumps({"text": " ".join(word(int(each)) for each in ids)}) + "\n")


def settings(task: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the pretrain stage for a task: shape, rows, steps, folder of the data, and `ours` on top."""
    shape, total = Shape(**task["shape"]), task["steps"] + WARM_UP
    options = {
        "dataset_name": f"{task['data']}/corpus.jsonl",
        "tokenizer_name_or_path": f"{task['data']}/words",
        "corpus": {
            "cache_dir": f"{task['data']}/cache", "validation_share": HELD_OUT, "near_duplicates": False,
        },
        "model": {
            "architecture": "gpt2" if shape.family == "gpt2" else "llama", "hidden_size": shape.hidden,
            "layers": shape.layers, "heads": shape.heads, "kv_heads": shape.heads,
            "intermediate_size": shape.intermediate, "context": shape.context,
        },
        "output_dir": f"{task['output']}/run",
        "steps": total,
        "batch_size": task["rows"],
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        "schedule": {"warmup_steps": 1},
        "seed": SEED,
        "compile": True,
        "sample_prompts": [],
        "validation_every": total,
        "checkpoint_every": total,
    }  # fmt: skip
    return options | task["ours"]


def trainer_settings(task: Mapping[str, Any]) -> dict[str, Any]:
    """Options of TrainingArguments: the same job as ours, and whatever makes it fastest (above)."""
    at_a_time = max(n for n in range(1, AT_A_TIME + 1) if task["rows"] % n == 0)
    return {
        "output_dir": f"{task['output']}/trainer",
        # The job.
        "max_steps": task["steps"] + WARM_UP,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "cosine",
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        "adam_beta2": 0.98,
        "seed": SEED,
        "bf16": False,
        # Speed.
        "per_device_train_batch_size": at_a_time,
        "gradient_accumulation_steps": task["rows"] // at_a_time,
        "optim": "adamw_torch_fused",
        "torch_compile": False,
        "use_cpu": task["device"] == "cpu",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        # Nothing beside the step.
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    } | task["trainer"]


AT_A_TIME = 8
"""Rows of a forward and backward pass of the Trainer: as fast as 16, with less memory."""


def work(task: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the corpus (side "data"), or gives the seconds of every step of a side after the warm-up."""
    if task["side"] == "data":
        total = task["steps"] + WARM_UP
        write_corpus(Shape(**task["shape"]), total * task["rows"], Path(task["data"]))
        return {}
    with StepClock(task["device"]).running() as clock:
        (_ours if task["side"] == "ours" else _trainer)(task)
    tokens = task["rows"] * Shape(**task["shape"]).context
    steps = [{"seconds": seconds, "phases": {}, "tokens": tokens} for seconds in clock.seconds()]
    return {"steps": steps, **memory(task["device"])}


def _ours(task: Mapping[str, Any]) -> None:
    from talltree.config import from_dict
    from talltree.stages import pretrain

    pretrain.run(from_dict(pretrain.Config, settings(task)))


def _trainer(task: Mapping[str, Any]) -> None:
    """The same rows through the Trainer: inputs are a row's first tokens, labels the library's own shift."""
    from datasets import Dataset
    from transformers import AutoTokenizer, Trainer, TrainingArguments, default_data_collator

    from talltree.config import from_dict
    from talltree.data.corpora import open_corpus
    from talltree.data.tokens import load_tokens
    from talltree.data.windows import training_batch
    from talltree.models.build import build
    from talltree.stages.pretrain import Config

    config = from_dict(Config, settings({**task, "ours": {}}))
    tokenizer: Any = AutoTokenizer.from_pretrained(config.tokenizer_name_or_path)
    stream = load_tokens(
        open_corpus(config.corpus, config.dataset_name), tokenizer, Path(str(config.corpus.cache_dir))
    ).train
    context, total = Shape(**task["shape"]).context, task["steps"] + WARM_UP
    rows = training_batch(stream, context, total * task["rows"], 0, SEED)[:, :-1].tolist()
    trainer = Trainer(
        model=build(config.model, tokenizer, SEED),
        args=TrainingArguments(**trainer_settings(task)),
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        data_collator=default_data_collator,
    )
    trainer.train()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
