"""Memory: what a step needs is said before the first one, and a run that runs out of it can go on."""

import subprocess
import sys
import textwrap

import pytest
import torch

from talltree import cli
from talltree.models import memory
from talltree.models.load import load_model
from talltree.models.memory import Need
from talltree.models.score import TOKENS_AT_A_TIME
from talltree.run import Run
from talltree.stages.rl import Config, room
from talltree.stages.rl.parts import load_parts

from ..tiny import MODELS, gpt2
from . import toy

GIB = 2**30


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy"))


def config(task, **changed):
    return Config(output_dir=str(task.folder / "unused"), **task.options(**changed))


def test_gradients_and_moments_by_hand():
    parameters = [torch.nn.Parameter(torch.zeros(3, 5)), torch.nn.Parameter(torch.zeros(7))]
    assert memory.standing_bytes(parameters, 0) == 22 * 4
    assert memory.standing_bytes(parameters, 2) == 22 * 4 * 3


def test_the_cache_grows_with_texts_and_their_length():
    model = gpt2()
    shape = model.config
    per_token = 2 * shape.n_layer * shape.n_embd * 4  # a key and a value in each layer, float32
    one, longer, more = (memory.sampling_bytes(model, *size) for size in ((1, 10), (1, 11), (2, 10)))
    assert longer - one == 2 * per_token
    assert more - one == 2 * 10 * per_token + 3 * 4 * shape.vocab_size


@pytest.mark.parametrize("name", MODELS)
def test_activations_are_counted_without_weights_and_scale_with_texts(name):
    model = MODELS[name]()
    counted = memory.activation_bytes(model, 12)
    # One hidden state in and out of each layer is the least that a backward pass can do with.
    least = 4 * 12 * model.config.hidden_size * 2 * model.config.num_hidden_layers
    assert counted > least
    assert memory.activation_bytes(model, 24) > 1.8 * counted
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_family_without_a_known_head_is_counted_with_all_its_logits(monkeypatch):
    model = gpt2()
    whole = memory.training_bytes(model, 4, 12, False)
    assert memory.training_bytes(model, 4, 12, True) < whole
    monkeypatch.setattr(memory, "vocabulary_head", lambda model: None)
    assert memory.training_bytes(model, 4, 12, True) == whole


@pytest.mark.parametrize("fast", [True, False])
def test_the_estimate_covers_what_a_real_step_takes(shared, fast):
    """Peak memory of a process that makes one update, less what it had before, against the need."""
    script = f"""
    import torch
    from talltree.models.load import load_model
    from talltree.models.memory import keep_freed_memory, training_bytes
    from talltree.models.score import completion_loss

    def kilobytes(key):
        return int(open("/proc/self/status").read().split(key + ":")[1].split()[0])

    keep_freed_memory(torch.device("cpu"))
    model = load_model({str(shared / "models" / "stories15M")!r})
    need = training_bytes(model, 8, 120, {fast})
    # Once small, so that libraries and buffers are there; then the real size.
    for texts, tokens in ((1, 4), (8, 116)):
        before = kilobytes("VmRSS")
        ids, mask = torch.full((texts, tokens), 7), torch.ones(texts, tokens, dtype=torch.bool)
        model.zero_grad(set_to_none=False)
        loss = completion_loss(model, [[5] * 4] * texts, ids, mask, 1.0, lambda l, part: -l, fast={fast})
        loss.loss.backward()
    print(1024 * (kilobytes("VmHWM") - before) / need)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert 0.5 < float(done.stdout) < 1


def test_the_need_is_said_before_the_first_step(task, capsys):
    task.run("said", steps=1)
    out = capsys.readouterr().out
    assert "more memory is needed (gradients and optimiser 0.0, then sampling 0.0 or training 0.0)" in out
    assert out.index("more memory is needed") < out.index("preflight")


def short(monkeypatch, free, per_text, sampling=0, standing=0):
    """A machine with `free` bytes, on which training takes `per_text` bytes for each text at a time."""
    monkeypatch.setattr(room, "free_bytes", lambda device: free)
    monkeypatch.setattr(room, "training_bytes", lambda model, texts, length, fast: texts * per_text)
    monkeypatch.setattr(room, "sampling_bytes", lambda model, rows, length: rows * sampling)
    monkeypatch.setattr(room, "standing_bytes", lambda parameters, moments: standing)


@pytest.mark.parametrize(
    ("machine", "changed", "fix"),
    [
        # 4 GiB free and 1 standing: two texts of 1.5 GiB fit, so 6 texts take 3 parts.
        (
            {"free": 4 * GIB, "per_text": 3 * GIB // 2, "standing": GIB},
            {},
            "(gradients and optimiser 1.0, then sampling 0.0 or training 9.0), 4.0 GiB are free; set "  # noqa: ISC004
            "gradient_accumulation_steps 3",
        ),
        ({"free": GIB, "per_text": 2 * GIB}, {}, "set max_completion_length lower than 6, or train adapters"),
        ({"free": GIB, "per_text": 2 * GIB}, {"lora_r": 2}, "set max_completion_length lower than 6"),
        (
            {"free": GIB, "per_text": 1, "sampling": GIB // 2},
            {},
            "set batch_size or eval_samples lower, whichever is larger, or max_completion_length",
        ),
    ],
)
def test_a_batch_that_cannot_fit_is_refused_with_the_setting_to_change(
    task, monkeypatch, capsys, machine, changed, fix
):
    short(monkeypatch, **machine)
    folder = task.folder / "refused"
    assert cli.main(["rl", *task.arguments(output_dir=folder, **changed)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("talltree rl: error: the batch does not fit: about ")
    assert fix in line
    assert not folder.exists()


def test_what_is_advised_fits(task, monkeypatch):
    short(monkeypatch, 4 * GIB, 3 * GIB // 2, standing=GIB)
    parts = load_parts(config(task))
    for steps, total in ((2, 5.5), (3, 4.0)):
        need = room.need(config(task, gradient_accumulation_steps=steps), parts)
        assert need.total == total * GIB
    assert Need(1, 5, 3).total == 6


def test_memory_that_nobody_states_refuses_nothing(task, monkeypatch):
    short(monkeypatch, None, 10**15)
    assert "free" not in room.require_room(config(task), load_parts(config(task)))


def test_free_memory_is_this_machines():
    free = memory.free_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50


def failing_update(monkeypatch, error):
    from talltree.stages.rl import step

    update, calls = step.update, []

    def third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise error
        return update(*arguments)

    monkeypatch.setattr(step, "update", third)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_a_step_without_memory_is_named_and_the_run_goes_on(task, monkeypatch, capsys, error, request):
    name = f"out-{request.node.callspec.id}"
    folder = task.folder / name
    failing_update(monkeypatch, error)
    options = {"steps": 4, "checkpoint_every": 2, "output_dir": folder}
    assert cli.main(["rl", *task.arguments(**options)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line == (
        "talltree rl: error: step 3: out of memory with batch_size 6 and texts of up to 8 tokens, 6 at a "
        f"time; step 2 is saved: continue with talltree rl --resume {folder} --gradient_accumulation_steps 2"
    )
    monkeypatch.undo()
    assert cli.main(["rl", "--resume", str(folder), "--gradient_accumulation_steps", "2"]) == 0
    assert "gradient_accumulation_steps is 2 from here on" in capsys.readouterr().out
    whole = task.run(f"whole-{name}", steps=4)
    for left, right in zip(toy.rows(folder), toy.rows(whole), strict=True):
        for key, value in right.items():
            assert left[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    assert Run.open(folder).summary()["steps"] == 4


NO_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")


def test_a_preflight_without_memory_is_one_line(task, monkeypatch, capsys):
    from talltree.stages.rl import measure

    def failing(*arguments, **options):
        raise NO_MEMORY

    monkeypatch.setattr(measure, "preflight", failing)
    folder = task.folder / "no-preflight"
    assert cli.main(["rl", *task.arguments(output_dir=folder)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line == (
        "talltree rl: error: out of memory before the first step, with texts of up to 8 tokens; free memory, "
        "or set max_completion_length lower than 6"
    )
    assert not folder.exists()


def test_a_measurement_without_memory_is_one_line_and_the_run_goes_on(task, monkeypatch, capsys):
    from talltree.stages.rl import ending

    measure, calls = ending.measure, []

    def second(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise NO_MEMORY
        return measure(*arguments)

    monkeypatch.setattr(ending, "measure", second)
    folder = task.folder / "no-measurement"
    assert cli.main(["rl", *task.arguments(output_dir=folder, steps=2, eval_samples=8)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line == (
        "talltree rl: error: out of memory while 8 completions of texts of up to 8 tokens were measured; "
        f"step 2 is saved: continue with talltree rl --resume {folder} --eval_samples 4"
    )
    monkeypatch.undo()
    assert cli.main(["rl", "--resume", str(folder), "--eval_samples", "4"]) == 0
    assert "eval_samples is 4 from here on, for this resume: for the measurements" in capsys.readouterr().out
    summary = Run.open(folder).summary()
    assert (summary["before"]["samples"], summary["after"]["samples"], summary["steps"]) == (4, 4, 2)


def test_the_critic_is_counted(task, monkeypatch):
    """Its gradients and moments on top, its activations where they are more than the policy's pass."""
    from talltree.stages.rl.groups import Critic

    needs = {}
    for body in ("separate", "shared"):
        asked = config(task, algorithm="ppo", critic=Critic(body=body))
        parts = load_parts(asked)
        weights = [p.numel() for p in parts.critic.parameters().values()]
        policy = sum(p.numel() for p in parts.policy.parameters())
        needs[body] = room.need(asked, parts)
        assert needs[body].standing == 4 * 3 * (policy + sum(weights))
        assert sum(weights) == 17 + (
            policy if body == "separate" else 0
        )  # a tied model: its body is all of it
    monkeypatch.setattr(room, "body_training_bytes", lambda body, texts, length: 10**12)
    asked = config(task, algorithm="ppo")
    assert room.need(asked, load_parts(asked)).training == 10**12


def test_another_runtime_error_is_not_taken_for_memory(task, monkeypatch):
    failing_update(monkeypatch, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        task.run("other", steps=4)


def test_a_real_allocation_that_fails_is_recognised():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**60)
    assert memory.out_of_memory(failed.value)


def test_the_story_models_step_is_small(shared):
    """64 texts of 104 tokens in parts, against all of them at once with all their logits."""
    model = load_model(str(shared / "models" / "stories15M"))
    assert memory.training_bytes(model, TOKENS_AT_A_TIME["cpu"] // 104, 104, True) < 0.6 * GIB
    assert memory.training_bytes(model, 64, 104, False) > 3 * GIB
