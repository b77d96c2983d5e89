"""The held-out measurements of a reward model: what `accuracy` computes, on its scores; and the probes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from talltree import checkpoint
from talltree.data.preferences import to_row
from talltree.errors import ContractError
from talltree.evals.probes import PROBES, probe
from talltree.models.reward_format import Format
from talltree.models.reward_model import RewardModel, all_logits, rewards_of, scaled, score_texts
from talltree.stages.reward import accuracy as measures
from talltree.stages.reward.accuracy import Pair, right
from talltree.stages.reward.config import Config
from talltree.stages.reward.parts import Parts
from talltree.stages.reward.update import losses

FEW = 2_000
"""Comparisons below which a reward model is often near chance. Ziegler et al. 2019; Gao et al. 2022."""


class Scores(NamedTuple):
    """Logits of the held-out texts (T, H), and where each row of the table of texts stands among them."""

    logit_TH: Tensor
    place: dict[int, int]


def scores(config: Config, parts: Parts) -> Scores:
    """The logits of every held-out text. Raises ContractError where one is not finite."""
    rows = sorted({row for each in parts.held_out for row in each.texts})
    logit_TH = all_logits(parts.learner.members, [parts.ids[row] for row in rows])
    if not bool(logit_TH.isfinite().all()):
        raise ContractError(
            "held-out scores are not finite: the weights are no longer usable; start again with a lower "
            f"learning_rate than {config.learning_rate:g}"
        )
    return Scores(logit_TH, {row: number for number, row in enumerate(rows)})


def loss_and_accuracy(config: Config, parts: Parts, found: Scores) -> tuple[float, float]:
    """The loss a held-out judgement, in nats, as in training, mean over heads; and the share of pairs won."""
    score_TH = scaled(found.logit_TH, parts.learner.scales)
    loss_N, won, _, pairs = losses(config, score_TH, parts.held_out, found.place)
    return float(loss_N.mean()), won / pairs


def report(config: Config, parts: Parts, format: Format, found: Scores) -> dict[str, Any]:
    """All figures of the held-out judgements, for the summary."""
    reward_T = rewards_of(found.logit_TH, format)
    pairs = pairs_of(parts, reward_T, found)
    lengths = list(map(len, parts.texts.completions))
    texts = sorted(found.place)
    longer = [
        right(lengths[each.texts[high]] - lengths[each.texts[low]])
        for each in parts.train
        for high, low in each.above
    ]
    seed = config.seed
    return {
        "loss": loss_and_accuracy(config, parts, found)[0],
        "accuracy": measures.accuracy(pairs, seed),
        "best": _best(parts, reward_T, found, seed),
        "by_margin": measures.by_margin(pairs, seed),
        "by_difference": measures.by_difference(pairs, seed),
        "calibration": measures.calibration(pairs, format.log_odds),
        "length": measures.length(
            [float(reward_T[found.place[row]]) for row in texts],
            [lengths[row] for row in texts],
            pairs,
            sum(longer) / len(longer),
        ),
        "agreement": measures.agreement(pairs),
        "annotators": measures.by_annotator(pairs),
    }


def pairs_of(parts: Parts, reward_T: Tensor, found: Scores) -> list[Pair]:
    """Every settled pair of every held-out judgement."""
    reward = reward_T.tolist()
    lengths = list(map(len, parts.texts.completions))
    return [
        Pair(
            reward[found.place[winner]] - reward[found.place[loser]],
            (winner, loser) if parts.by_texts else (each.cluster,),
            each.judgement.annotator,
            each.judgement.margin,
            lengths[winner] - lengths[loser],
            (winner, loser),
        )
        for each in parts.held_out
        for winner, loser in ((each.texts[high], each.texts[low]) for high, low in each.above)
    ]


def probes(config: Config, parts: Parts, format: Format) -> list[dict[str, Any]]:
    """The coherence probes on held-out texts, those of smallest SHA-256 first."""
    if not config.probes:
        return []
    texts = parts.texts
    rows = sorted(
        {row for each in parts.held_out for row in each.texts},
        key=lambda row: hashlib.sha256((texts.prompts[row] + texts.completions[row]).encode()).digest(),
    )[: config.probes]
    # A spoiled copy may have a few tokens more than its text, which is no reason to end the run here.
    reading = dataclasses.replace(format.reading, too_long="truncate")
    format = dataclasses.replace(format, reading=reading)
    model = RewardModel(parts.learner.members, parts.tokenizer, format)
    prompts, completions = ([side[row] for row in rows] for side in (texts.prompts, texts.completions))
    found = (
        probe(name, lambda p, c: score_texts(model, p, c)[0], prompts, completions, config.seed)
        for name in PROBES
    )
    return [each._asdict() for each in found if each is not None]


def write_rows(path: Path, parts: Parts, format: Format, found: Scores) -> None:
    """One line a held-out judgement: its fields, and the reward of each candidate."""
    reward = rewards_of(found.logit_TH, format).tolist()
    texts = parts.texts
    lines = []
    for each in parts.held_out:
        judgement = each.judgement
        rewards = [reward[found.place[texts.row(judgement.prompt, c)]] for c in judgement.candidates]
        row = {**to_row(judgement), "cluster": each.cluster, "rewards": rewards}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    checkpoint.write_file(path, "".join(lines).encode())


def warnings(comparisons: int, after: dict[str, Any]) -> list[str]:
    """What a reader of the summary should know before using the reward model."""
    found = []
    if comparisons < FEW:
        found.append(
            f"{comparisons:,} training comparisons are fewer than {FEW:,}: reward models from so few are "
            "often near chance; collect more before optimising against it"
        )
    low = after["accuracy"]["low"]
    if low is not None and low <= 0.5:
        found.append(
            f"held-out accuracy {after['accuracy']['mean']:.3f} ({low:.3f} to "
            f"{after['accuracy']['high']:.3f}) is not above chance within its interval"
        )
    baseline = after["length"]["baseline_accuracy"]
    if after["accuracy"]["mean"] <= baseline:
        found.append(
            f"held-out accuracy {after['accuracy']['mean']:.3f} is not above that of preferring the "
            f"{after['length']['baseline']} text, {baseline:.3f}"
        )
    return found


def _best(parts: Parts, reward_T: Tensor, found: Scores, seed: int) -> dict[str, Any]:
    """Share of the judgements with a single best whose best scores highest; chance is the mean of 1 / k."""
    hits, units, chance = [], [], []
    for each in parts.held_out:
        size = len(each.texts)
        if sum(high == 0 for high, _ in each.above) < size - 1:
            continue
        reward = reward_T[torch.tensor([found.place[row] for row in each.texts])]
        top = reward == reward.max()
        hits.append(float(top[0]) / float(top.sum()))
        units.append(each.texts if parts.by_texts else (each.cluster,))
        chance.append(1 / size)
    measured = measures.cluster_share(hits, units, seed)
    return measured | {"chance": sum(chance) / len(chance) if chance else None}
