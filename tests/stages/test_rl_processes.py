"""Several processes of one `rl` run: they train what one trains, decide alike and end together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from talltree import cli
from talltree.run import Run
from talltree.stages.rl.processes import Team

from . import toy
from .pair import free_port, pair
from .planted import IN_PROCESS_1, PLANTED, SIGNALLED

UNEVEN = {
    "batch_size": 15, "num_generations": 3, "steps": 3, "learning_rate": 0.01, "checkpoint_every": 3,
    "adam_epsilon": 1e-3, "eval_samples": 8,
}  # fmt: skip
"""15 rows are 7 and 8, which cuts a group in two. AdamW's epsilon is large: at 1e-8 its first step has the
sign of a gradient, and where that is 0 but for rounding a coin decides."""

SETTINGS = {
    "rloo, adaptive KL": {
        "algorithm": "rloo", "kl.coef": 0.1, "kl.target": 0.05, "kl.horizon": 400, "kl.gain": 1.0,
    },
    "grpo, passes, mini-batches": {
        "algorithm": "grpo", "num_iterations": 2, "num_mini_batches": 3, "gradient_accumulation_steps": 2,
    },
    "ppo, its own critic, LoRA": {
        "algorithm": "ppo", "num_mini_batches": 3, "lora_r": 2, "critic.warmup_steps": 1,
        "missing_eos_penalty": -1, "optim": "sgd",
    },
    "ppo, shared critic, sgd": {"algorithm": "ppo", "critic.body": "shared", "optim": "sgd"},
    "reinforce, process 0 without a row": {
        "algorithm": "reinforce", "baseline": "moving", "batch_size": 1, "num_generations": 1,
    },
}  # fmt: skip

RECORDED = '''
import json, os

def recorded(prompts, completions, tens):
    """The toy's count, which remembers each call: who asked, and for how many."""
    with open({log!r}, "a") as log:
        log.write(json.dumps([os.getpid(), len(completions)]) + "\\n")
    return [text.split().count("w7") + ten / 100 for text, ten in zip(completions, tens)]
'''


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def two():
    with pair() as made:
        yield made


def arguments(task, name, **changed):
    options = {"output_dir": task.folder / name, "prompts": task.prompts, **UNEVEN, **changed}
    return ["rl", *task.arguments(**options)]


def alone(task, name, **changed):
    assert cli.main(arguments(task, name, **changed)) == 0
    return task.folder / name


def difference(found, expected):
    """The largest difference of metrics and weights, as a share of the value where that is above 1."""
    pairs = [
        (row[key], other[key])
        for row, other in zip(toy.rows(found), toy.rows(expected), strict=True)
        for key in row.keys() | other.keys()
    ]
    gaps = [abs(mine - theirs) / max(1.0, abs(theirs)) for mine, theirs in pairs]
    for name in ("checkpoints/step-{}/{}.safetensors", "final/model.safetensors"):
        step = len(toy.rows(expected))
        for file in {name.format(step, part) for part in ("state", "*model")}:
            (path,) = expected.glob(file)
            old, new = load_file(path), load_file(found / path.relative_to(expected))
            assert old.keys() == new.keys()
            gaps += [
                float((new[key].double() - old[key].double()).abs().max()) for key in old if old[key].numel()
            ]
    return max(gaps)


def assert_same_run(found, expected):
    """The same texts token by token, and within 1e-5 the same numbers: sums are made in another order.

    Measured: up to 3e-6, while weights move by 1e-3 to 1e-1 and losses and rewards are of the order of 1.
    """
    left, right = (Run.open(run).samples().to_pylist() for run in (found, expected))
    for key in ("step", "prompt", "completion_ids", "reward", "ended", "spans"):
        assert [row[key] for row in left] == [row[key] for row in right], key
    assert difference(found, expected) < 1e-5
    mine, theirs = toy.summary(found), toy.summary(expected)
    for side in ("before", "after"):
        assert mine.pop(side)["reward"] == pytest.approx(theirs.pop(side)["reward"])
    for each in (mine, theirs):
        del each["kl_coef_end"], each["preflight"]
    assert mine == theirs


# Two are one


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_are_one(task, two, name):
    whole = alone(task, f"one {name}", **SETTINGS[name])
    said = two.run(arguments(task, f"two {name}", **SETTINGS[name]))
    assert [each.status for each in said] == [0, 0], said
    assert said[0].out.count("2 processes share each batch") == 1
    assert "final/ is step" in said[0].out
    assert (said[1].out, said[1].err) == ("", "")
    assert_same_run(task.folder / f"two {name}", whole)
    last = max(path.name for path in (whole / "checkpoints").iterdir())
    weights = next((whole / "checkpoints" / last).glob("*model.safetensors"))
    first = next((whole / "checkpoints" / "step-0").glob("*model.safetensors"))
    moved = [(value - load_file(first)[key]).abs().max() for key, value in load_file(weights).items()]
    assert max(moved) > 1e-3 or SETTINGS[name]["algorithm"] == "reinforce"


def test_old_log_probs_read_again_are_shared_too(task, two, monkeypatch):
    options = SETTINGS["grpo, passes, mini-batches"]
    monkeypatch.setattr("talltree.stages.rl.parts.recompute_reason", lambda *_: "a test")
    whole = alone(task, "one again", **options)
    plant = (
        "from talltree.stages.rl import parts\nhonest = parts.recompute_reason\n"
        "parts.recompute_reason = lambda *_: 'a test'\n"
        "planted.callback(setattr, parts, 'recompute_reason', honest)"
    )
    assert two.run(arguments(task, "two again", **options), plant)[0].status == 0
    assert_same_run(task.folder / "two again", whole)


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(task, two, fault):
    options = {"algorithm": "ppo", "optim": "sgd", "steps": 2, "num_iterations": 1, "critic.body": "shared"}
    options |= {"max_grad_norm": "null"}
    whole = task.folder / "sound"
    if not whole.exists():
        alone(task, "sound", **options)
        two.run(arguments(task, "sound two", **options))
        assert_same_run(task.folder / "sound two", whole)
    name = f"fault {fault}"
    said = two.run(arguments(task, name, **options), PLANTED[fault])
    assert [each.status for each in said] == [0, 0]
    with pytest.raises(AssertionError):
        assert_same_run(task.folder / name, whole)


def test_shares_are_all_rows_once():
    for size in (1, 2, 3, 5):
        for count in (0, 1, 4, 15):
            shares = [range(count)[Team(rank, size).share(count)] for rank in range(size)]
            assert [row for share in shares for row in share] == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


# The reward, and what goes wrong


def reward_file(task, name, text):
    path = task.folder / f"{name}.py"
    path.write_text(text)
    return f"{path}:{name}"


def test_the_reward_is_called_by_one_process_on_the_whole_batch(task, two):
    log = task.folder / "calls.jsonl"
    reward = reward_file(task, "recorded", RECORDED.format(log=str(log)))
    assert two.run(arguments(task, "recorded run", reward=reward))[0].status == 0
    calls = [line.strip("[]").split(", ") for line in log.read_text().splitlines()]
    assert len({caller for caller, _ in calls}) == 1
    assert [int(count) for _, count in calls] == [8, 15, 15, 15, 8, 8]


FAILING = """
calls = 0

def failing(prompts, completions):
    global calls
    calls += 1
    if calls == 3:
        raise KeyError("lost")
    return [float(text.count("w7")) for text in completions]
"""


def test_a_reward_that_raises_ends_both_in_one_line_and_one_process_goes_on(task, two):
    reward = reward_file(task, "failing", FAILING)
    main, other = two.run(arguments(task, "raised", reward=reward, steps=4))
    assert (main.status, other.status, other.out, other.err) == (2, 2, "", "")
    (line,) = [line for line in main.err.splitlines() if line.startswith("talltree rl: error")]
    assert "KeyError: 'lost'" in line and "step 1 is saved: mend the reward" in line
    reward_file(task, "failing", FAILING.replace("== 3", "== -1"))
    assert cli.main(["rl", "--resume", str(task.folder / "raised")]) == 0
    assert_same_run(task.folder / "raised", alone(task, "not raised", reward=reward, steps=4))


def test_a_failure_in_any_process_ends_all_and_the_main_one_tells_it(task, two):
    """Numbers that are not finite, memory, a defect: process 1 meets it in step 2, process 0 does not."""
    errors = {
        "nan": "update.NonFinite('non-finite loss (nan)')",
        "memory": 'RuntimeError("DefaultCPUAllocator: can\'t allocate memory")',
        "defect": "TypeError('a defect')",
    }
    ends = {
        name: two.run(arguments(task, f"fails {name}"), IN_PROCESS_1.format(error=error))
        for name, error in errors.items()
    }
    assert {name: [each.status for each in said] for name, said in ends.items()} == {
        "nan": [2, 0], "memory": [2, 2], "defect": [1, "TypeError('a defect')"],
    }  # fmt: skip
    assert "error: stopped at step 2: non-finite loss (nan)" in ends["nan"][0].err
    assert "error: step 2: out of memory with batch_size 15" in ends["memory"][0].err
    assert toy.summary(task.folder / "fails nan")["final_step"] == 1
    for said in ends.values():
        assert (said[1].out, said[1].err) == ("", "")


def test_a_full_disk_ends_both(task, two):
    plant = (
        "from talltree.run import Run\nfrom talltree.errors import RunError\nhonest = Run.log\n"
        "def full(run, row):\n    raise RunError('no space left')\n"
        "Run.log = full\nplanted.callback(setattr, Run, 'log', honest)"
    )
    main, other = two.run(arguments(task, "full"), plant)
    assert (main.status, other.status) == (2, 2)
    assert main.err.strip().splitlines()[-1] == "talltree rl: error: no space left"


def test_other_files_than_the_main_process_has_are_refused(task, two):
    from ..tiny import llama, save

    plant = "import sys\nfrom talltree.stages.rl import parts\nhonest = parts.load_model\nif rank:\n"
    plant += (
        f"    parts.load_model = lambda name: honest({str(save(task.folder / 'seed', llama(seed=1)))!r})\n"
    )
    plant += "planted.callback(setattr, parts, 'load_model', honest)"
    main, other = two.run(arguments(task, "different"), plant)
    assert (main.status, other.status) == (2, 2)
    assert "process 1 has loaded other weights or prompts than process 0" in main.err
    assert not (task.folder / "different").exists()


# Signals


def test_a_signal_to_one_process_ends_both_at_the_same_step(task, two):
    """Process 1 gets it in step 2; both end after that step, and the two go on."""
    options = SETTINGS["rloo, adaptive KL"] | {"steps": 5, "checkpoint_every": 5}
    folder = task.folder / "signalled"
    plant = SIGNALLED.format(happens="os.kill(os.getpid(), signal.SIGTERM)")
    main, other = two.run(arguments(task, "signalled", **options), plant)
    assert (main.status, other.status) == (143, 143)
    line = f"SIGTERM: saved step 2; continue with talltree rl --resume {folder}"
    assert main.out.strip().splitlines()[-1] == line
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-0", "step-2"]
    assert two.run(["rl", "--resume", str(folder)])[0].status == 0
    assert_same_run(folder, alone(task, "not signalled", **options))


def test_processes_whose_launcher_was_killed_save_and_leave(task, two):
    plant = SIGNALLED.format(happens="os.getppid = lambda: 1")
    main, other = two.run(arguments(task, "orphans"), plant)
    assert (main.status, other.status) == (143, 143)
    assert "SIGTERM: saved step 2" in main.out


def test_sigterm_to_the_launcher_leaves_a_checkpoint_for_one_process(task, capsys):
    """`accelerate launch` itself: it passes the signal on, and the run is saved once."""
    reward = "import time\n\ndef slow(prompts, completions):\n    time.sleep(0.2)\n"
    reward = reward_file(task, "slow", reward + "    return [float(t.count('w7')) for t in completions]\n")
    # SGD: a difference in the last bit stays one over so many steps.
    options = {"reward": reward, "steps": 15, "checkpoint_every": 100, "optim": "sgd"}
    folder = task.folder / "launched"
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", str(free_port()), "-m", "talltree"),
        *arguments(task, "launched", **options),
    ]
    launched = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**toy.ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    try:
        limit = time.monotonic() + 120
        while not (folder / "metrics.jsonl").exists():
            assert launched.poll() is None, launched.communicate()
            assert time.monotonic() < limit
            time.sleep(0.02)
        launched.send_signal(signal.SIGTERM)
        said, _ = launched.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launched.pid, signal.SIGKILL)
    steps = len(toy.rows(folder))
    assert steps < 15
    assert said.count(f"SIGTERM: saved step {steps}; continue with talltree rl --resume {folder}") == 1, said
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-0", f"step-{steps}"]
    assert Run.open(folder).environment["processes"] == 2
    capsys.readouterr()
    assert cli.main(["rl", "--resume", str(folder)]) == 0
    assert "started with 2 processes, this run goes on with 1" in capsys.readouterr().out
    assert_same_run(folder, alone(task, "not launched", **options))


def test_a_killed_process_ends_the_other(task, two):
    """The last test here: it costs a process."""
    reward = "import time\n\ndef slower(prompts, completions):\n    time.sleep(0.1)\n"
    reward = reward_file(task, "slower", reward + "    return [float(t.count('w7')) for t in completions]\n")
    two.start(arguments(task, "killed", reward=reward, steps=100))
    limit = time.monotonic() + 60
    while not (task.folder / "killed" / "metrics.jsonl").exists():
        assert time.monotonic() < limit
        time.sleep(0.02)
    two.kill(1)
    main = two.heard(0)
    assert main.status == 2
    assert "talltree rl: error: another process of this run has died" in main.err
