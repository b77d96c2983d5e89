"""A toy task for the reward stage: tuples of words of which w7 is liked, on a tiny random model."""

import json
import random

from talltree.stages import reward

from ..tiny import llama, save

COMMON = {"batch_size": 8, "learning_rate": 0.02, "checkpoint_every": 2, "validation_every": 3, "probes": 4}


def liking(text):
    return text.split().count("w7")


def tuples(count, size=4, seed=0, annotators=1):
    """Rows of a preferences file: best and worst by how often w7 stands in them, ties by position."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        texts = []
        while len(texts) < size:
            words = [f"w{generator.randint(1, 12)}" for _ in range(generator.randint(2, 9))]
            text = " " + " ".join(words)
            if text not in texts and liking(text) not in map(liking, texts):
                texts.append(text)
            elif generator.random() < 0.5:
                text += " w7 w7"
                if liking(text) not in map(liking, texts):
                    texts.append(text)
        order = sorted(range(size), key=lambda place: -liking(texts[place]))
        rows.append(
            {
                "prompt": f"w{1 + number % 13} w{1 + number // 13}", "candidates": texts,
                "best": order[0], "worst": order[-1], "annotator": f"a{number % annotators}",
                "margin": number % 3,
            }
        )  # fmt: skip
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judged(folder, name, rows):
    return str(write(folder / f"{name}.jsonl", rows))


def make(folder, count=60, **how):
    save(folder / "model", llama())
    write(folder / "judgements.jsonl", tuples(count, **how))
    return folder


def config(folder, name="run", **changed):
    return reward.Config(
        **COMMON
        | {
            "model_name_or_path": str(folder / "model"),
            "dataset_name": str(folder / "judgements.jsonl"),
            "output_dir": str(folder / name),
        }
        | changed
    )
