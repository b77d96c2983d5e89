"""A toy task for the rl stage: a tiny random model, prompts, a reward file, and how to compare two runs."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from talltree.run import Run
from talltree.stages import rl

from ..tiny import llama, save

REWARD = '''
def count(prompts, completions):
    """How often the word w7 occurs; w1, w3 and w5 count a tenth."""
    value = {"w7": 1.0, "w1": 0.1, "w3": 0.1, "w5": 0.1}
    return [sum(value.get(word, 0.0) for word in text.split()) for text in completions]
'''


class Toy(NamedTuple):
    """Where the pieces of the task lie; `run` makes a run with small options and returns its folder."""

    folder: Path
    model: Path
    prompts: Path
    reward: str

    def options(self, **changed: object) -> dict[str, object]:
        return {
            "model_name_or_path": str(self.model),
            "prompt": "w1 w2",
            "reward": f"{self.reward}:count",
            "num_generations": 3,
            "batch_size": 6,
            "steps": 3,
            "max_completion_length": 6,
            "eval_samples": 2,
            "checkpoint_every": 1,
            "keep_checkpoints": 100,
        } | changed

    def arguments(self, **changed: object) -> list[str]:
        """The same for the command line."""
        return [str(word) for key, value in self.options(**changed).items() for word in (f"--{key}", value)]

    def run(self, name: str, **changed: object) -> Path:
        output = self.folder / name
        rl.run(rl.Config(output_dir=str(output), **self.options(**changed)))
        return output


def make(folder: Path) -> Toy:
    """The toy task in a folder."""
    model = save(folder / "model", llama())
    prompts = folder / "prompts.jsonl"
    texts = ["w1 w2", "w3", "w4 w5 w6", "w7 w8", "w9"]
    prompts.write_text("".join(json.dumps({"prompt": t, "tens": 10 * i}) + "\n" for i, t in enumerate(texts)))
    reward = folder / "toy_reward.py"
    reward.write_text(REWARD)
    return Toy(folder, model, prompts, str(reward))


def rows(run: Path) -> list[dict[str, object]]:
    """The metrics but for what a clock measured."""
    return [
        {key: value for key, value in row.items() if not key.startswith("time/")}
        for row in Run.open(run).metrics()
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def summary(run: Path) -> dict[str, object]:
    return {key: value for key, value in Run.open(run).summary().items() if key != "wall_time_seconds"}


def assert_same(left: Path, right: Path, *, checkpoints: bool = True) -> None:
    """Two ended runs agree in every bit: metrics, samples, measurements, final/ and checkpoints."""
    assert rows(left) == rows(right)
    assert Run.open(left).samples().to_pylist() == Run.open(right).samples().to_pylist()
    assert summary(left) == summary(right)
    for name in ("before.jsonl", "after.jsonl"):
        assert (left / name).read_bytes() == (right / name).read_bytes(), name
    assert contents(left / "final") == contents(right / "final")
    if checkpoints:
        assert contents(left / "checkpoints") == contents(right / "checkpoints")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


COUNT = '''
calls = 0

def scripted(prompts, completions):
    """Call 0 is the preflight's, call N is step N; the measurements before and after come last."""
    global calls
    calls += 1
    return values(calls - 1, completions)
'''


def scripted(task, name, body):
    """A reward whose values depend on the number of the call: `body` is the rest of values(call, texts)."""
    path = task.folder / f"{name}.py"
    path.write_text(COUNT + f"\ndef values(call, texts):\n    {body}\n")
    return f"{path}:scripted"


def checkpoint(run, step):
    return weights(run / "checkpoints" / f"step-{step}")


def assert_equal_weights(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name
