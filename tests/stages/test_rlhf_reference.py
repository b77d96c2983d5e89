"""Gain and bias of a round's reward model: from the reference's samples, cut as the policy's are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from talltree.data.preferences import Judgement
from talltree.stages.reward.comparisons import Texts, comparison
from talltree.stages.reward.reference import reference_samples
from talltree.stages.rlhf import rounds
from talltree.stages.table import config_of

from .rlhf_toy import make, options

TEMPERATURE, LONGEST, CUT, AFTER = 0.7, 3, 22, 1


def sequences(folder: Path, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """The probability of every completion, by the library's own forward pass: stop token 0, cut at CUT."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    begun: dict[tuple[int, ...], float] = {(): 1.0}
    whole: dict[tuple[int, ...], float] = {}
    for position in range(LONGEST):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids] for ids in begun])).logits[:, -1].double()
        chances = (logits / TEMPERATURE).softmax(1).tolist()
        longer: dict[tuple[int, ...], float] = {}
        for (ids, before), row in zip(begun.items(), chances, strict=True):
            for token, chance in enumerate(row):
                is_cut = token == CUT and position >= AFTER
                is_over = token == 0 or is_cut or position == LONGEST - 1
                (whole if is_over else longer)[(*ids, token)] = before * chance
        begun = longer
    return whole


def kind(words: tuple[str, ...]) -> str:
    """First word, number of words, and whether the word of the cut is last."""
    return f"{words[0] if words else ''} {len(words)} {words[-1:] == (f'w{CUT}',)}"


def mismatch(found: list[str], folder: Path) -> float:
    """P of a chi-square test of the completions against a model's distribution; rare kinds count as one."""
    expected: dict[str, float] = {}
    for ids, chance in sequences(folder, [1, 2]).items():
        name = kind(tuple(f"w{token}" for token in ids if token != 0))
        expected[name] = expected.get(name, 0.0) + chance * len(found)
    frequent = [name for name, count in expected.items() if count >= 5]
    kinds = [kind(tuple(text.split())) for text in found]
    counts = [kinds.count(name) for name in frequent]
    assert sum(expected.values()) == pytest.approx(len(found)) and len(frequent) > 10
    rest = [len(found) - sum(counts)], [len(found) - sum(expected[name] for name in frequent)]
    return float(stats.chisquare([*counts, *rest[0]], [*(expected[n] for n in frequent), *rest[1]]).pvalue)


def test_a_later_rounds_gain_and_bias_come_from_the_reference_cut_as_the_policy_is(tmp_path: Path) -> None:
    task = make(tmp_path)
    rl = {
        "prompt": "w1 w2", "num_generations": 2, "batch_size": 6, "steps": 5, "temperature": TEMPERATURE,
        "max_completion_length": LONGEST, "truncate_token": f"w{CUT}", "truncate_after": AFTER,
    }  # fmt: skip
    loop = options(task, "x", rl=rl, reward={"batch_size": 6, "reference": {"samples": 600}})
    second = rounds.Round(2, tmp_path / "rounds" / "02", str(task.folder / "other"))
    second.folder.mkdir(parents=True)
    second.validation.write_text("")
    config = config_of("reward", rounds.reward_options(loop, second), "reward")
    texts = Texts()
    # What was judged is nothing that either model writes.
    judged = Judgement(prompt="w1 w2", candidates=(" w20 w20 w20 w20", " w21 w21 w21 w21"), best=0)
    found = reference_samples(config, [comparison(judged, texts, 0)], texts, torch.device("cpu"))
    assert found.prompts == ["w1 w2"] * 600
    assert mismatch(found.completions, task.model) > 0.01
    # The check can tell: this is the policy's distribution.
    assert mismatch(found.completions, task.folder / "other") < 1e-6
