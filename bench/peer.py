"""TRL's RLOOTrainer, the peer, with its best settings for this job.

Fixed by the job: float32, no dropout, beta 0.05, one update a step, temperature 1 without top-k and top-p (so
that the sampled distribution is ours), AdamW, gradient norm clipped at 1, the same reward, no logs, no files.
Attention is the library's default, SDPA where the model has it (Llama, GPT-2; GPT-Neo has its own).

Found by trying, with TRL 1.16, torch 2.13 and one thread of a busy AVX2 machine, two timed steps each on
15m-10 and a single one on the other rows, where 15% may be noise (s a step; peak memory; `--trl '{...}'`
repeats any of them, for a quiet machine to settle).

| setting | 15m-10 | 15m-64 | 33m-10 |
|---|---|---|---|
| the whole batch at once | 8.2; 2.1 GB | 67.4; 6.5 GB | 33.2; 3.5 GB |
| 5 sequences at a time (2 parts) | 8.3; 1.6 GB | | 33.6; 3.0 GB |
| 16 at a time (4 parts) | | 58.6; 3.0 GB | |
| 8 at a time (8 parts) | | 67.3; 2.0 GB | |
| 2 at a time (32 parts) | | 61.3; 1.2 GB | |
| torch_compile | 7.6; 2.3 GB | 65.4; 7.0 GB (16 at a time: 67.0; 3.3 GB) | 35.1; 3.5 GB |
| cache_implementation static | 8.3; 2.1 GB | | |
| eager attention | 8.2; 2.2 GB | | |
| gradient_checkpointing | 8.4; 2.0 GB | | |
| transformers' continuous batching | 17-19; 8.4 GB | | |

So: at most 16 sequences at a time, fastest at 64 here, with half the memory of the whole batch at once
(smaller parts take less still at about the same speed: a memory ratio holds for the setting measured);
torch_compile only where it gained, on 15m-10; the dynamic cache; no gradient checkpointing. Generation takes
the whole batch at once in every case. vLLM is left out.

On a quiet AVX-512 machine with two threads the whole batch at once took 22.7 s and 6.6 GB on 15m-64, 16 at a
time 18.7 s and 3.1 GB; the others were not tried there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from bench.machine import WARM_UP, StepClock, memory
from bench.ours import KL_COEF, LEARNING_RATE, MAX_GRAD_NORM
from bench.shapes import Row, from_json
from bench.weights import SEED, prompt

AT_A_TIME = 16
"""Most sequences of a forward and backward pass; the parts of a batch are equal."""

COMPILED = ("15m-10",)
"""Rows on which torch_compile gained."""

PHASES = ("generate", "old log-probs", "reference", "reward", "forward", "backward", "rest")


def settings(row: Row, device: str, steps: int, output: str) -> dict[str, Any]:
    """Options of RLOOConfig: the same job as ours, and whatever makes it fastest (above)."""
    at_a_time = max(n for n in range(1, AT_A_TIME + 1) if row.sequences % n == 0)
    return {
        "output_dir": output,
        # The job.
        "beta": KL_COEF,
        "num_generations": row.group,
        "max_completion_length": row.tokens,
        "max_steps": steps,
        "num_iterations": 1,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": MAX_GRAD_NORM,
        "weight_decay": 0.0,
        "seed": SEED,
        "disable_dropout": True,
        # float32 on both sides.
        "bf16": False,
        "fp16": False,
        "model_init_kwargs": {"dtype": "float32"},
        # Speed.
        "per_device_train_batch_size": at_a_time,
        "gradient_accumulation_steps": row.sequences // at_a_time,
        "torch_compile": row.name in COMPILED and device == "cpu",
        "gradient_checkpointing": False,
        "use_cpu": device == "cpu",
        # Nothing beside the step.
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "log_completions": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def work(task: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds, phases and sampled tokens of every step after the warm-up, and peak memory."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import RLOOConfig, RLOOTrainer

    row, device = from_json(task["row"]), task["device"]
    total = task["steps"] + WARM_UP
    options = settings(row, device, total, str(Path(task["output"]) / "trl")) | task["trl"]
    groups = row.sequences // row.group
    trainer: Any = RLOOTrainer(
        model=task["model"],
        reward_funcs=alliteration,
        args=RLOOConfig(**options),
        train_dataset=Dataset.from_dict({"prompt": [prompt()] * (groups * total)}),
        processing_class=AutoTokenizer.from_pretrained(task["model"], padding_side="left"),
    )
    clock = StepClock(device)
    sampled = _watch(trainer, clock)
    with clock.running():
        trainer.train()
    steps = []
    for seconds, phases, tokens in zip(
        clock.seconds(), clock.phases[WARM_UP:], sampled[WARM_UP:], strict=True
    ):
        known = {name: phases.get(name, 0.0) for name in PHASES if name != "rest"}
        rest = seconds - sum(known.values())
        steps.append({"seconds": seconds, "phases": {**known, "rest": rest}, "tokens": tokens})
    return {"steps": steps, **memory(device)}


def alliteration(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    """Our reward under a name, which TRL asks of a function."""
    from talltree import rewards

    return rewards.load("alliteration")(prompts, completions)


def _watch(trainer: Any, clock: StepClock) -> list[int]:
    """Puts timers around the trainer's methods, from outside; gives the list that fills with token counts."""
    sampled: list[int] = []
    generate = trainer._generate
    log_probs = trainer._get_per_token_logps_and_entropies

    def timed_generate(prompts: list[str]) -> Any:
        with clock.phase("generate"):
            generated = generate(prompts)
        sampled.append(sum(len(ids) for ids in generated[1]))
        return generated

    def timed_log_probs(model: Any, *arguments: Any, **named: Any) -> Any:
        # With gradient it is part of the forward phase, which is timed as a whole.
        name = "reference" if model is trainer.ref_model else "old log-probs"
        with nullcontext() if torch.is_grad_enabled() else clock.phase(name):
            return log_probs(model, *arguments, **named)

    trainer._generate = timed_generate
    trainer._get_per_token_logps_and_entropies = timed_log_probs
    trainer._calculate_rewards = _timed(trainer._calculate_rewards, clock, "reward")
    trainer._compute_loss = _timed(trainer._compute_loss, clock, "forward")
    trainer.accelerator.backward = _timed(trainer.accelerator.backward, clock, "backward")
    return sampled


def _timed(method: Callable[..., Any], clock: StepClock, name: str) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        with clock.phase(name):
            return method(*arguments, **named)

    return timed
