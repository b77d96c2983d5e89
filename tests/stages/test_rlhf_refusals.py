"""The rlhf loop: what is refused before anything starts, and how a stage that fails is named."""

from __future__ import annotations

import pytest

from talltree.errors import ConfigError
from talltree.stages import rlhf

from . import toy
from .rlhf_toy import make, options


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> toy.Toy:
    return make(tmp_path_factory.mktemp("rlhf"))


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"rl": {"stepz": 3}}, r"rl: stepz: unknown option .*nearest known: steps"),
        ({"rl": {"reward": "length"}}, "rl.reward is given by the loop itself; leave it out"),
        ({"reward": {"reference": {"source": "candidates"}}}, "reward.reference.source is given by the loop"),
        ({"reward": {"reference.temperature": 0.5}}, "reward.reference.temperature is given by the loop"),
        ({"reward": {"loss": "softmex"}}, r"reward: loss: 'softmex' is not allowed.*nearest: softmax"),
        ({"simulate": {"lapses": 0.1}}, "simulate needs one hidden utility: reward, or model_name_or_path"),
        ({"simulate": {"lapses": 2, "reward": "length"}}, r"simulate: simulate.lapses: 2 is not allowed"),
        ({"judges": {"kind": "pair"}}, "judges.k 4 is not 2, and judges.kind is pair"),
        ({"judges": {"kind": "best", "k": 3}}, "judges.k 3 is odd, and half of a validation tuple"),
        ({"rounds": 9}, "rl.steps 5 are fewer than rounds 9"),
        ({"rounds": 5, "comparisons": 4}, "comparisons 4 are fewer than rounds 5"),
        (
            {"rounds": 5, "comparisons": 24},
            r"the first of 5 rounds gives 4 judgements to train on, fewer than reward.batch_size 6",
        ),
        (
            {"rounds": 1, "comparisons": 6, "validation_tuples": 0},
            r"the first of 1 rounds gives 5 judgements to train on, fewer than reward.batch_size 6",
        ),
        ({"simulate": {"annotators": "two", "reward": "length"}}, r"simulate: simulate.annotators: 'two'"),
        ({"judges": {"overlap": 2}, "simulate": {}}, "judges.overlap 2 needs as many annotators.* are 1"),
        (
            {"judges": {"overlap": 3}, "simulate": {"reward": "length", "annotators": 2}},
            "judges.overlap 3 needs as many annotators.* are 2",
        ),
    ],
)
def test_what_a_stage_would_refuse_is_refused_before_anything_starts(
    task: toy.Toy, changed: dict[str, object], line: str
) -> None:
    with pytest.raises(ConfigError, match=line):
        options(task, "refused", **changed)
    assert not (task.folder / "refused").exists()


def test_a_stage_that_fails_is_named_with_its_log(task: toy.Toy) -> None:
    broken = task.folder / "broken.py"
    broken.write_text("def utility(prompts, completions):\n    raise ValueError('no taste')\n")
    config = options(task, "fails", simulate={"reward": f"{broken}:utility"})
    with pytest.raises(
        Exception, match=r"round 1: talltree annotate simulate failed: .*no taste.*annotate.log"
    ):
        rlhf.run(config)
