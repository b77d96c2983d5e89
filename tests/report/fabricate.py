"""A run folder made by hand: stories that alliterate more from step to step, and texts that attack a page."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talltree.run import Run

PROMPT = "Once upon a time"
PLAIN = (
    " there was a little girl named Mia. She had a red ball and a dog. One day it rolled into the pond.",
    " a boy called Tom found a shiny stone near the river. His mother saw it, and she smiled at him.",
    " there lived an old frog who liked to sing. Every evening the animals came to listen to him.",
    " a kind farmer had a grey horse. The horse was sad without a friend, so the farmer bought a goat.",
)
SINGING = (
    " two tiny turtles took their tea to the tall tree. They talked till the tired turtle took a nap.",
    " Ben the big brown bear bought bright blue balloons. But a bold bird broke both, and Ben began to bawl.",
    " Sam saw seven silver snails slide slowly south. She sat and sang soft songs so the snails stayed.",
    " little Lily liked long lazy lunches. Lots of ladybirds landed, and Lily let them lick the lemon.",
)
HOSTILE = (
    " </script><script>document.title='owned'</script> said the cat.",
    " <img src=x onerror=\"document.title='owned'\"> & <!-- a note --> <b>bold</b>.",
    " line\u2028separator and paragraph\u2029separator, then \u0000\u0001\u001b[31m \u007f\u0085 ones.",
    " a happy 🐢 and a family 👩‍👩‍👧 ate 🍎🍎 apples.",
    " الفتاة الصغيرة شربت شايًا \u202eesrever\u202c, she said.",
    " " + "a" * 400,
    " \\u003c/script> and a backslash \\ and \"quotes\" and 'more' {{ x }} ${y} `z`.",
    "",
)


def spans(prompt: str, completion: str) -> list[list[int]]:
    """Ranges of the words whose first letter is that of a neighbour, which the study's reward counts."""
    text, at, words = prompt + completion, 0, []
    for word in text.split():
        at = text.index(word, at)
        words.append((at, at + len(word)))
        at += len(word)
    found = []
    for i, (start, end) in enumerate(words):
        near = words[max(0, i - 1) : i] + words[i + 1 : i + 2]
        if any(text[start].lower() == text[other].lower() for other, _ in near):
            found.append([start, end])
    return found


def reward(prompt: str, completion: str) -> float:
    """Neighbouring words that start with the same letter."""
    words = (prompt + completion).split()
    return float(sum(one[0].lower() == two[0].lower() for one, two in zip(words, words[1:], strict=False)))


def columns(
    step: int, steps: int, size: int, *, scored: bool = True, extra: tuple[str, ...] = ()
) -> dict[str, list[Any]]:
    """The samples of one step; `extra` texts stand in front of the drawn ones."""
    draw = random.Random(step)
    skill = step / steps
    texts = list(extra) + [
        draw.choice(SINGING if draw.random() < skill else PLAIN) + draw.choice(PLAIN + SINGING)
        for _ in range(size)
    ]
    rewards = [reward(PROMPT, text) for text in texts]
    kl = [draw.gauss(18 * skill, 2) + 0.2 * each for each in rewards]
    return {
        "prompt": [PROMPT] * len(texts),
        "completion": texts,
        "prompt_ids": [[1, 2, 3, 4]] * len(texts),
        "completion_ids": [list(range(len(text) // 4 + 1)) for text in texts],
        "reward": list(rewards) if scored else [None] * len(texts),
        "kl": kl,
        "logp": [-60.0 - each for each in kl],
        "ref_logp": [-60.0 - 2 * each for each in kl],
        "advantage": [each - 5.0 for each in rewards],
        "ended": [draw.random() < 0.8 for _ in texts],
        "spans": [spans(PROMPT, text) for text in texts],
    }


def row(step: int, steps: int, *, scored: bool = True) -> dict[str, float | int | None]:
    """One row of metrics.jsonl."""
    draw = random.Random(-step)
    skill = step / steps
    mean = 4 + 9 * skill + draw.gauss(0, 0.4)
    return {
        "step": step,
        "episodes": 64 * step,
        "reward/mean": mean if scored else None,
        "reward/std": 2.0 + draw.random() if scored else None,
        "reward/max": mean + 6 if scored else None,
        "kl/sequence": 18 * skill + abs(draw.gauss(0, 0.5)),
        "kl/token": 0.3 * skill,
        "kl/k3": 0.28 * skill,
        "kl/coef": 0.1,
        "policy/entropy": 1.9 - 0.7 * skill + draw.gauss(0, 0.02),
        "policy/loss": draw.gauss(0, 1),
        "policy/grad_norm": 3 + draw.random() * 2,
        "policy/ratio_mean": 1.0,
        "policy/clip_share": 0.0,
        "policy/learning_rate": 1e-5,
        "completion/length": 58 + draw.gauss(0, 2),
        "completion/ended": 0.8 + draw.gauss(0, 0.03),
        "diversity/distinct_1": 0.30 - 0.05 * skill,
        "diversity/distinct_2": 0.72 - 0.1 * skill,
        "diversity/unique": 1.0,
        "diversity/near_duplicates": 0.1,
        "groups/zero_variance": 0.0,
        "advantage/std": 2.2,
        "time/sample": 0.5 + 0.05 * draw.random(),
        "time/score": 0.1,
        "time/train": 0.3 + 0.05 * draw.random(),
        "time/step": 1.0,
        "time/tokens_per_second": 3700.0,
    }


def measured(mean: float, half: float) -> dict[str, float]:
    """A mean with its interval."""
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summary(steps: int, best_step: int) -> dict[str, Any]:
    """A summary.json as the rl stage writes it."""
    return {
        "stage": "rl",
        "model": "seedling",
        "algorithm": "rloo",
        "reward": "alliteration",
        "steps": steps,
        "stop_reason": "all steps done",
        "best_step": best_step,
        "wall_time_seconds": 250.0,
        "before": {
            "reward": measured(5.0, 0.25),
            "kl": measured(0.0, 0.0),
            "kl_per_token": measured(0.0, 0.0),
            "length": measured(58.2, 1.1),
            "distinct_1": 0.30,
            "distinct_2": 0.72,
            "unique": 1.0,
            "samples": 256,
        },
        "after": {
            "reward": measured(12.5, 0.5),
            "kl": measured(17.2, 0.75),
            "kl_per_token": measured(0.295, 0.01),
            "length": measured(57.0, 1.3),
            "distinct_1": 0.26,
            "distinct_2": 0.63,
            "unique": 0.984,
            "samples": 256,
        },
        "preflight": [
            {"name": "padded = unpadded log-probs", "value": "2.1e-06", "bound": "1e-04", "status": "ok"},
            {"name": "EOS reachable", "value": "81% of stories", "bound": "", "status": "note"},
        ],
    }


CONFIG: Mapping[str, Any] = {
    "model_name_or_path": "seedling",
    "reward": "alliteration",
    "algorithm": "rloo",
    "kl": {"coef": 0.1, "target": None},
    "steps": 300,
    "seed": 0,
}


def write(
    folder: Path,
    steps: int = 3,
    size: int = 4,
    *,
    ended: bool = True,
    scored: bool = True,
    with_samples: bool = True,
    hostile: bool = False,
    merged: bool = True,
    with_metrics: bool = True,
) -> Path:
    """Writes a whole run folder and returns its path."""
    with Run.create(folder, CONFIG, {"python": "3.11.9", "versions": {"torch": "2.9.0"}}) as run:
        for step in range(1, steps + 1):
            if with_metrics:
                run.log(row(step, steps, scored=scored))
            if with_samples:
                extra = HOSTILE if hostile and step == steps else ()
                run.add_samples(step, columns(step, steps, size, scored=scored, extra=extra))
        if merged and with_samples and steps:
            run.merge_samples()
        if ended:
            run.write_summary(summary(steps, max(1, steps - 1)))
    return folder
