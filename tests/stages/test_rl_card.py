"""The model card of the rl stage: written with the weights, without the machine's folders."""

import re

import pytest
import yaml

from talltree.run import environment
from talltree.stages import rl
from talltree.stages.rl.card import reward_without_folders, write_final
from talltree.stages.rl.parts import load_parts

from . import toy


@pytest.mark.parametrize(
    ("reward", "shown"),
    [
        ("alliteration - 0.1*length", "alliteration - 0.1*length"),
        ("{folder}/toy_reward.py:count", "toy_reward.py:count"),
        ("{folder}/toy_reward.py:count - 2*{folder}/other.py:f", "toy_reward.py:count - 2*other.py:f"),
        ("~/my/toy_reward.py:count", "toy_reward.py:count"),
        ("./here/toy_reward.py:count", "toy_reward.py:count"),
        ("toy_reward.py:count", "toy_reward.py:count"),
    ],
)
def test_a_reward_is_named_without_its_folder(reward, shown, tmp_path):
    assert reward_without_folders(reward.format(folder=tmp_path)) == shown


def test_final_has_a_card_that_states_the_run(tmp_path):
    task = toy.make(tmp_path)
    config = rl.Config(
        **task.options(prompts=str(task.prompts), licence="mit", data_note="Toy prompts.", steps=4)
    )
    parts = load_parts(config)
    value = {"mean": 1.0, "low": 0.5, "high": 1.5}
    measured = {
        **dict.fromkeys(("reward", "kl", "length"), value),
        **dict.fromkeys(("distinct_1", "distinct_2", "unique"), 0.5),
        "samples": 2,
    }
    summary = {
        "stage": "rl",
        "steps": 4,
        "kl_coef": 0.05,
        "final_step": 3,
        "stop_reason": "all 4 steps made",
        "evaluated_on": "held-out prompts",
        "before": measured,
        "after": measured,
    }
    (tmp_path / "final").mkdir()
    write_final(tmp_path / "final", config, parts, summary, environment(parts.data_sha256))
    card = (tmp_path / "final" / "README.md").read_text(encoding="utf-8")
    about = yaml.safe_load(card.split("---\n")[1])
    assert about["license"] == "mit" and about["tags"] == ["talltree", "rl", "rloo", "reinforcement-learning"]
    assert str(tmp_path) not in card
    for fact in (
        "Toy prompts.",
        "on the reward `toy_reward.py:count`",
        f"weights SHA-256 `{parts.reference_sha256}`",
        f"- `prompts.jsonl`: SHA-256 `{parts.data_sha256['prompts.jsonl']}`",
        "| reward | 1.0000 (0.5000 to 1.5000) |",
        f"| llama | {sum(p.numel() for p in parts.policy.parameters()):,} |",
    ):
        assert fact in card, fact
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    assert (shown["prompts"], shown["model_name_or_path"], shown["steps"]) == ("prompts.jsonl", "model", 4)
