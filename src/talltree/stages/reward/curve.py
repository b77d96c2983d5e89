"""The learning curve: the same start, trained on nested shares of the comparisons, measured alike."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from talltree import checkpoint
from talltree.models.reward_model import rewards_of
from talltree.stages.reward.accuracy import accuracy
from talltree.stages.reward.config import Config
from talltree.stages.reward.measure import loss_and_accuracy, pairs_of, scores
from talltree.stages.reward.parts import MEMBER_SEEDS, Parts, format_of, fresh_members, learner_of
from talltree.stages.reward.reference import References
from talltree.stages.reward.update import batches_per_epoch, epoch_batches, update

FILE = "learning_curve.jsonl"


def learning_curve(
    config: Config,
    parts: Parts,
    references: References,
    folder: Path,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> list[dict[str, Any]] | None:
    """The points of the shares below 1, each on disk before the next is trained; None where `stop` says so.

    A share is the beginning of the training comparisons in their nested order, at least two; a point is
    accuracy and loss on all held-out ones. What learning_curve.jsonl holds already is not trained again.
    """
    path = folder / FILE
    done = _read(path)
    for share in sorted({share for share in config.learning_curve if share < 1}):
        if any(row["share"] == share for row in done):
            continue
        count = max(2, math.ceil(share * len(parts.train)))
        point = _trained_on(config, parts._replace(train=parts.train[:count]), references, stop)
        if point is None:
            return None
        done.append({"share": share, "comparisons": count, **point})
        checkpoint.write_file(path, "".join(json.dumps(row) + "\n" for row in done).encode())
        say(f"learning curve: {count:,} comparisons, held-out accuracy {point['accuracy']['mean']:.3f}")
    return done


def _trained_on(
    config: Config, parts: Parts, references: References, stop: Callable[[], bool]
) -> dict[str, Any] | None:
    learner = learner_of(config, fresh_members(config, parts.tokenizer, parts.device))
    parts = parts._replace(learner=learner)
    start = format_of(config, parts, references, None)
    parts = parts._replace(learner=learner._replace(scales=start.scales))
    size = min(config.batch_size, len(parts.train))
    per_epoch = batches_per_epoch(len(parts.train), size)
    steps = math.ceil(config.epochs * per_epoch)
    for step in range(steps):
        if stop():
            return None
        epoch, done = divmod(step, per_epoch)
        batches = [
            epoch_batches(len(parts.train), size, epoch, config.seed + MEMBER_SEEDS * number)[done]
            for number in range(config.members)
        ]
        rows = [[parts.train[row] for row in batch] for batch in batches]
        update(config, parts.learner, parts.ids, rows, step, steps)
    end = format_of(config, parts, references, start.scales)
    found = scores(config, parts)
    pairs = pairs_of(parts, rewards_of(found.logit_TH, end), found)
    return {"accuracy": accuracy(pairs, config.seed), "loss": loss_and_accuracy(config, parts, found)[0]}


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
