"""What no single command does of the study in docs/findings/preferences.md.

python docs/findings/preferences.py prompts STORIES.jsonl PROMPTS.jsonl
python docs/findings/preferences.py sample MODEL PROMPTS.jsonl OUT_FOLDER
python docs/findings/preferences.py hidden UTILITY LABEL=RL_RUN [LABEL=RL_RUN ...]
python docs/findings/preferences.py plot OUT.png UTILITY REWARD_RUNS... -- LABEL=RL_RUN ...
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from talltree import rewards
from talltree.data.prompts import read_prompts, split_prompts
from talltree.models.load import load_model, load_tokenizer, stop_ids
from talltree.rollout import collect, encode_prompts, truncation_at
from talltree.types import Prompt

WORDS, PROMPTS = 8, 1434
HELD_OUT = 200 / PROMPTS
LENGTH, AFTER = 32, 12
EACH = {"train": 13, "held_out": 8}
"""Completions a prompt: each training one will stand in two tuples, each held-out one in one."""


def prompts(stories: str, out: str) -> None:
    """The first words of real stories, each opening once."""
    texts = [json.loads(line)["text"].split() for line in Path(stories).read_text().splitlines()]
    openings = list(dict.fromkeys(" ".join(words[:WORDS]) for words in texts if len(words) > 2 * WORDS))
    rows = (json.dumps({"prompt": text}) + "\n" for text in openings[:PROMPTS])
    Path(out).write_text("".join(rows))


def sample(model: str, path: str, out: str) -> None:
    """Different completions of every prompt, ended as the rl runs end theirs; one file for each side."""
    policy, tokenizer = load_model(model), load_tokenizer(model)
    split = split_prompts(read_prompts(path), HELD_OUT)
    generator = torch.Generator().manual_seed(0)
    ends = truncation_at(tokenizer, ".", AFTER, policy.config.vocab_size)
    for side, count in EACH.items():
        texts = [prompt.text for prompt in getattr(split, side)]
        ids_of = encode_prompts(tokenizer, policy, [Prompt(text) for text in texts], LENGTH)
        with Path(out, f"{side}.jsonl").open("w") as file:
            for start in range(0, len(texts), 32):
                some = [Prompt(text) for text in texts[start : start + 32] for _ in range(count + 2)]
                drawn = collect(
                    policy, tokenizer, some, ids_of, max_completion_length=LENGTH, truncation=ends,
                    stop_ids=stop_ids(policy, tokenizer), temperature=1.0, generator=generator,
                )  # fmt: skip
                kept: dict[str, list[str]] = {}
                for prompt, completion in zip(some, drawn.completions, strict=True):
                    mine = kept.setdefault(prompt.text, [])
                    if completion.strip() and completion not in mine and len(mine) < count:
                        mine.append(completion)
                for prompt_text, completions in kept.items():
                    file.write(json.dumps({"prompt": prompt_text, "completions": completions}) + "\n")
            print(f"{file.name}: {len(texts)} prompts")


def utilities(run: str, side: str, utility: str) -> list[float]:
    """The hidden utility of each fresh sample that an rl run was measured on."""
    rows = [json.loads(line) for line in Path(run, f"{side}.jsonl").read_text().splitlines()]
    texts = [row["prompt"] for row in rows], [row["completion"] for row in rows]
    totals, _ = rewards.score(rewards.load(utility), *texts, {})
    return [float(total) for total in totals if total is not None]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with a 95% percentile bootstrap over the samples."""
    numbers = np.asarray(values)
    rows = np.random.default_rng(0).integers(len(numbers), size=(4000, len(numbers)))
    low, high = np.percentile(numbers[rows].mean(1), [2.5, 97.5])
    return float(numbers.mean()), float(low), float(high)


def hidden(utility: str, *runs: str) -> None:
    """Before and after of each run: the utility that it never saw, the learned reward, KL, length."""
    for label, folder in (run.split("=", 1) for run in runs):
        summary = json.loads(Path(folder, "summary.json").read_text())
        cells = []
        for side in ("before", "after"):
            mean, low, high = interval(utilities(folder, side, utility))
            learned, kl, length = (summary[side][key]["mean"] for key in ("reward", "kl", "length"))
            cells.append(
                f"hidden {mean:.3f} ({low:.3f} to {high:.3f}), learned {learned:.2f}, "
                f"{kl:.1f} nats, {length:.1f} tokens, distinct-2 {summary[side]['distinct_2']:.2f}"
            )
        print(f"{label}\n  before  {cells[0]}\n  after   {cells[1]}")


def plot(out: str, utility: str, *arguments: str) -> None:
    """Left: held-out accuracy over the number of judgements. Right: hidden utility against KL."""
    cut = arguments.index("--")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    summaries = [json.loads(Path(run, "summary.json").read_text()) for run in arguments[:cut]]
    counts = [each["data"]["train"]["comparisons"] for each in summaries]
    found = [each["after"]["accuracy"] for each in summaries]
    spread = [[a["mean"] - a["low"] for a in found], [a["high"] - a["mean"] for a in found]]
    left.errorbar(counts, [a["mean"] for a in found], spread, marker="o", color="#2e7d32", capsize=3)
    left.set_xscale("log")
    left.set_xticks(counts, [f"{count:,}" for count in counts])
    left.minorticks_off()
    left.axhline(0.5, color="#999999", linewidth=0.8)
    left.set_title("held-out pairs ordered as judged", loc="left", fontsize=10)
    left.set_xlabel("Best-Worst judgements")
    for label, folder in (run.split("=", 1) for run in arguments[cut + 1 :]):
        summary = json.loads(Path(folder, "summary.json").read_text())
        points = [
            (summary[side]["kl"]["mean"], *interval(utilities(folder, side, utility)))
            for side in ("before", "after")
        ]
        colour = "#c77700" if label.lower().startswith("ppo") else "#1f4e9c"
        right.plot([p[0] for p in points], [p[1] for p in points], color=colour, linewidth=1, alpha=0.5)
        end = points[-1]
        right.errorbar([end[0]], [end[1]], [[end[1] - end[2]], [end[3] - end[1]]], fmt="o", color=colour)
        right.annotate(f"  {label}", (end[0], end[1]), color=colour, fontsize=8, va="center")
    right.set_title("hidden utility of fresh held-out samples", loc="left", fontsize=10)
    right.set_xlabel("KL from the start (nats a sequence)")
    right.margins(x=0.25)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=130)
    print(out)


if __name__ == "__main__":
    {"prompts": prompts, "sample": sample, "hidden": hidden, "plot": plot}[sys.argv[1]](*sys.argv[2:])
