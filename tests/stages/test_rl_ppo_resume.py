"""Exact resume of PPO: critic, its optimiser state, values and controller come back bit for bit."""

import pytest
import torch

from talltree.checkpoint import load_state
from talltree.errors import RunError
from talltree.stages.rl.groups import KL, Best, Critic

from ..tiny import llama, save
from . import toy
from .test_rl_resume import no_waiting_for_the_disk, reopen, resume, run_in_pieces

__all__ = ["no_waiting_for_the_disk"]

STEPS = 3  # the first update moves only the head, the second what LoRA calls B, the third all
# Half of all combinations of four choices, so that each pair of choices meets in every way.
GRID = [
    pytest.param(
        {
            "num_iterations": iterations,
            "num_mini_batches": iterations,
            "gradient_accumulation_steps": accumulation,
            "lora_r": lora_r,
            "critic": Critic(
                body="shared" if shared else "separate", learning_rate=None if iterations == 1 else 0.02
            ),
        },
        id=f"{iterations} passes, {accumulation} parts, {'lora' if lora_r else 'full'}, "
        f"{'shared' if shared else 'separate'}",
    )
    for i, iterations in enumerate((1, 2))
    for j, accumulation in enumerate((1, 3))
    for k, lora_r in enumerate((None, 2))
    for shared in [(i + j + k) % 2 == 1]
]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy"))


def options_of(task, changed):
    return {
        "algorithm": "ppo",
        "prompts": str(task.prompts),
        "learning_rate": 0.01,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 0.5,
        "kl": KL(coef=0.1, target=0.05, horizon=40.0, gain=1.0),
        "best": Best(min_unique=0.0, min_distinct_2=0.0),
        "steps": STEPS,
    } | changed


@pytest.mark.usefixtures("no_waiting_for_the_disk")
@pytest.mark.parametrize("changed", GRID)
def test_a_run_continued_after_every_step_is_the_uninterrupted_one(task, changed, monkeypatch, request):
    name = request.node.callspec.id.replace(" ", "-").replace(",", "")
    options = options_of(task, changed)
    whole = task.run(f"whole-{name}", **options)
    pieces = run_in_pieces(task, f"pieces-{name}", monkeypatch, **options)
    toy.assert_same(whole, pieces)
    assert toy.contents(whole / "critic") == toy.contents(pieces / "critic")
    # What must come back does change, otherwise equality would prove little.
    states = [load_state(whole / "checkpoints" / f"step-{step}") for step in range(STEPS + 1)]
    assert len({str(state["controller"]) for state in states}) == STEPS + 1
    for name in states[0]["critic"]:
        assert not torch.equal(states[0]["critic"][name], states[-1]["critic"][name]), name
    assert not states[0]["critic"]["head.weight"].any()


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_a_changed_source_of_the_critic_is_refused(task, tmp_path):
    """With adapters the checkpoint does not hold the weights that they stand on."""
    source = save(tmp_path / "source", llama(seed=3))
    run = task.run("source", **options_of(task, {"lora_r": 2, "critic": Critic(init_from=str(source))}))
    reopen(run)
    save(source, llama(seed=4))
    with pytest.raises(RunError, match="source is not the model that .* its adapters would stand on others"):
        resume(run)


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_a_changed_reference_is_refused(task, tmp_path):
    reference = save(tmp_path / "reference", llama(seed=3))
    run = task.run("reference", **options_of(task, {"reference_model_name_or_path": str(reference)}))
    reopen(run)
    save(reference, llama(seed=4))
    with pytest.raises(RunError, match="reference is not the model that .* another reference"):
        resume(run)
