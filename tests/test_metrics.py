"""The table of metric keys, and the page that explains it."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from talltree import metrics

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


def page_table(section: str) -> dict[str, metrics.Metric]:
    text = PAGE.read_text(encoding="utf-8").split(f"\n## `{section}`\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \| (.+) \| (?:`(.+?)`|none) \|$", text, flags=re.MULTILINE)
    assert len(rows) == sum(line.startswith("| `") for line in text.splitlines())
    return {key: metrics.Metric(unit, formula, tag or None) for key, unit, formula, tag in rows}


def test_the_rl_page_is_the_rl_table():
    assert page_table("rl") == {**metrics.RL, "reward/NAME": metrics.component("NAME")}


@pytest.mark.parametrize("stage", [name for name in metrics.TABLES if name != "rl"])
def test_a_stage_has_its_table_on_the_page(stage):
    assert page_table(stage) == metrics.TABLES[stage]


def test_every_key_of_the_working_contract_is_there():
    keys = """
    step episodes reward/mean reward/std reward/max kl/sequence kl/token kl/k3 kl/coef
    policy/entropy policy/loss policy/grad_norm policy/ratio_mean policy/clip_share policy/approx_kl
    policy/learning_rate
    completion/length completion/ended diversity/distinct_1 diversity/distinct_2 diversity/unique
    diversity/near_duplicates
    groups/zero_variance advantage/std advantage/raw_mean advantage/raw_std value/loss value/clip_share
    value/explained_variance value/mean value/grad_norm return/mean return/std return/scale
    time/sample time/score time/train time/step time/tokens_per_second
    """
    assert list(metrics.RL) == keys.split()


def test_a_key_of_several_tables_has_one_unit_and_one_tag():
    for one, other in itertools.combinations(metrics.TABLES.values(), 2):
        for key in one.keys() & other.keys():
            assert (one[key].unit, one[key].tag) == (other[key].unit, other[key].tag)


@pytest.mark.parametrize("table", metrics.TABLES.values())
def test_two_keys_of_a_table_never_share_a_tag(table):
    tags = [metric.tag for metric in table.values() if metric.tag is not None]
    assert len(tags) == len(set(tags))
    assert all(tag.startswith(("train/", "eval/")) for tag in tags)


def test_tags_are_the_names_that_trl_logs():
    assert metrics.describe("reward/mean").tag == "train/reward"
    assert metrics.describe("groups/zero_variance").tag == "train/frac_reward_zero_std"
    assert metrics.describe("policy/clip_share").tag == "train/clip_ratio/region_mean"
    assert metrics.describe("loss/validation").tag == "eval/loss"


def test_reward_components():
    assert metrics.component_key("alliteration") == "reward/alliteration"
    assert metrics.describe("reward/mine.py:f").tag == "train/rewards/mine.py:f/mean"
    for taken in ("mean", "std", "max", ""):
        with pytest.raises(ValueError, match="reward component"):
            metrics.component_key(taken)


@pytest.mark.parametrize("key", ["reward", "reward/", "kl", "policy/los", ""])
def test_an_unknown_key_is_refused(key):
    with pytest.raises(KeyError, match=r"docs/metrics\.md"):
        metrics.describe(key)


def test_no_torch_is_imported():
    program = (
        "import sys, talltree.metrics, talltree.run; print({'torch', 'pyarrow', 'numpy'} & set(sys.modules))"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
