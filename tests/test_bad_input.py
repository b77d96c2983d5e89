"""Bad input: one clear line on stderr with the value and the fix, exit status 2, nothing lost.

Through the command line, as a user meets it.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from talltree import cli
from talltree.run import Run

from .refusing import assert_says, refusing
from .stages import toy
from .tiny import llama, tokenizer


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def refused(task, capsys):
    return refusing(task.folder, capsys)


def rl(task, output, **changed):
    return task.arguments(output_dir=output, **changed)


# Prompts


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "w1"}\n{"prompt": ""}\n', ["line 2: the prompt is empty", "remove the line"]),
        ('{"prompt": "w1"}\n{"prompt": "  "}\n', ["line 2: the prompt is empty"]),
        ('{"prompt": "w1"}\n{"prompt" "w2"}\n', ["line 2 is not JSON", "each line must be one object"]),
        ('{"prompt": "w1"}\n["w2"]\n', ["line 2 is a JSON list, not an object"]),
        ('{"prompt": "w1"}\n{"text": "w2"}\n', ["line 2 has no column 'prompt'; columns there: text"]),
        ('{"prompt": 7}\n', ["line 1: the prompt is '7' (int), not a text"]),
        ('{"prompt": "w1", "tens": 1}\n{"prompt": "w2"}\n', ["line 2: the column 'tens' is missing"]),
        ('{"prompt": "w1", "completions": 1}\n', ["line 1: column 'completions' clashes"]),
        (
            '{"prompt": "' + "w1 " * 70 + '"}\n',
            ["has 70 tokens and max_completion_length is 6", "context is 64"],
        ),
        ('{"prompt": "' + "w1 " * 60 + '"}\n', ["or set max_completion_length to 4 or less"]),
        ("", ["is empty; it needs at least one prompt"]),
    ],
)
def test_prompts_that_cannot_be_used(task, refused, tmp_path, content, said):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    line = refused("rl", *rl(task, tmp_path / "run", prompts=path))
    assert_says(line, *said)
    if "context" not in line:
        assert_says(line, path)
    assert not (tmp_path / "run").exists()


def test_prompts_that_are_not_there(task, refused, tmp_path):
    missing = tmp_path / "none.jsonl"
    assert_says(refused("rl", *rl(task, tmp_path / "run", prompts=missing)), f"prompts {missing} not found")
    (tmp_path / "folder.jsonl").mkdir()
    line = refused("rl", *rl(task, tmp_path / "run", prompts=tmp_path / "folder.jsonl"))
    assert_says(line, "folder.jsonl not found: give a .jsonl or .txt file")
    assert_says(refused("rl", *rl(task, tmp_path / "run", prompts=tmp_path)), tmp_path, "use .jsonl or .txt")


def test_an_empty_single_prompt(task, refused, tmp_path):
    line = refused("rl", *rl(task, tmp_path / "run", prompt=""))
    assert_says(line, "prompt 1: the prompt is empty; write a text such as 'Once upon a time'")


def test_extra_columns_are_fine(task, tmp_path, capsys):
    path = tmp_path / "extra.jsonl"
    path.write_text('{"prompt": "w1", "topic": "x", "n": 1}\n{"prompt": "w2", "topic": null, "n": [2]}\n')
    assert cli.main(["rl", *rl(task, tmp_path / "run", prompts=path, steps=1)]) == 0


def test_a_column_that_the_reward_needs(task, refused, tmp_path):
    reward = tmp_path / "needs.py"
    reward.write_text("def f(prompts, completions, topic):\n    return [0.0] * len(prompts)\n")
    line = refused("rl", *rl(task, tmp_path / "run", prompts=task.prompts, reward=f"{reward}:f"))
    assert_says(line, "reward f needs the column 'topic', which the data lacks; columns there: tens")
    assert not (tmp_path / "run").exists()


# Rewards

BAD_REWARDS = {
    "[1.0] * (len(texts) - 1)": ["returned {less} values for {all} completions"],
    "['good'] * len(texts)": ["returned 'good' (str), not a number or None"],
    "7": ["returned an int", "must return a list of numbers or None"],
    "[1.0] * (len(texts) - 1) + [float('nan')]": ["returned nan for completion {last}"],
    "[float('inf')] + [1.0] * (len(texts) - 1)": ["returned inf for completion 0"],
    "[1 / 0 for text in texts]": ["raised ZeroDivisionError: division by zero (good.py:"],
    "[None for text in texts]": ["scored none of {all} completions"],
}


@pytest.mark.parametrize("body", BAD_REWARDS)
def test_a_bad_reward_is_found_before_there_is_a_folder(task, refused, tmp_path, body):
    path = tmp_path / "good.py"
    path.write_text(f"def f(prompts, completions):\n    texts = completions\n    return {body}\n")
    line = refused("rl", *rl(task, tmp_path / "run", reward=f"{path}:f"))
    for part in BAD_REWARDS[body]:
        assert_says(line, part.format(less=7, all=8, last=7))
    # The mended command runs as it stands.
    assert not (tmp_path / "run").exists()
    path.write_text("def f(prompts, completions):\n    return [float(len(text)) for text in completions]\n")
    assert cli.main(["rl", *rl(task, tmp_path / "run", reward=f"{path}:f", steps=1)]) == 0


GOOD = "[text.count('w7') + 0.1 * text.count('w1') for text in texts]"
REWARD = f"def f(prompts, completions):\n    texts = completions\n    return {GOOD}\n"
FAILING = """
calls = 0

def f(prompts, completions):
    global calls
    calls += 1
    texts = completions
    # The preflight is call 1, step 3 call 4; after step 5 come the measurements before and after.
    return {bad} if calls == {call} else {good}

def spans(prompt, completion):
    {spans}
    return []

f.spans = spans
"""


@pytest.fixture(scope="module")
def unbroken(task):
    path = task.folder / "good.py"
    path.write_text(REWARD)
    return task.run("unbroken", reward=f"{path}:f", steps=5, checkpoint_every=4)


def mended_run_is_exact(path, folder, unbroken, capsys):
    path.write_text(REWARD)
    assert cli.main(["rl", "--resume", str(folder)]) == 0
    assert f"reward {path.name} has changed since" in capsys.readouterr().out
    assert toy.rows(folder) == toy.rows(unbroken)
    left, right = (toy.contents(run / "final") for run in (folder, unbroken))
    # The card, and with it the manifest, tells of the reward file that the run was started with.
    for name in left.keys() - {"README.md", "manifest.json"}:
        assert left[name] == right[name], name
    assert left.keys() == right.keys()


@pytest.mark.parametrize("body", BAD_REWARDS)
def test_a_reward_that_fails_in_the_middle_loses_nothing(task, tmp_path, capsys, unbroken, body):
    path, folder = tmp_path / "good.py", tmp_path / "run"
    path.write_text(FAILING.format(bad=body, good=GOOD, call=4, spans="pass"))
    assert cli.main(["rl", *rl(task, folder, reward=f"{path}:f", steps=5, checkpoint_every=4)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in BAD_REWARDS[body]:
        assert_says(line, part.format(less=5, all=6, last=5))
    assert line.endswith(
        f"; step 2 is saved: mend the reward, then continue with talltree rl --resume {folder}"
    )
    assert (folder / "checkpoints" / "step-2").is_dir()
    mended_run_is_exact(path, folder, unbroken, capsys)


def test_spans_that_fail_in_the_middle_lose_nothing(task, tmp_path, capsys, unbroken):
    path, folder = tmp_path / "good.py", tmp_path / "run"
    spans = "if calls == 4: raise KeyError('no such word')"
    path.write_text(FAILING.format(bad=GOOD, good=GOOD, call=0, spans=spans))
    assert cli.main(["rl", *rl(task, folder, reward=f"{path}:f", steps=5, checkpoint_every=4)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert_says(line, "spans of reward f raised KeyError: 'no such word' (good.py:", "step 2 is saved")
    mended_run_is_exact(path, folder, unbroken, capsys)


@pytest.mark.parametrize("call", [7, 8])
def test_a_reward_that_fails_while_measuring_loses_nothing(task, tmp_path, capsys, unbroken, call):
    """When all steps are made, on what came before them or on what came after."""
    path, folder = tmp_path / "good.py", tmp_path / "run"
    path.write_text(FAILING.format(bad="None", good=GOOD, call=call, spans="pass"))
    assert cli.main(["rl", *rl(task, folder, reward=f"{path}:f", steps=5, checkpoint_every=4)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert_says(line, "reward f returned NoneType", "step 5 is saved: mend the reward")
    mended_run_is_exact(path, folder, unbroken, capsys)


def test_a_reward_that_is_not_there(task, refused, tmp_path):
    missing = tmp_path / "none.py"
    line = refused("rl", *rl(task, tmp_path / "run", reward=f"{missing}:f"))
    assert_says(line, f"reward file {missing} not found")
    line = refused("rl", *rl(task, tmp_path / "run", reward=f"{task.reward}:cuont"))
    assert_says(line, "has no function 'cuont'; did you mean count?")
    line = refused("rl", *rl(task, tmp_path / "run", reward="aliteration"))
    assert_says(line, "reward 'aliteration' is unknown; did you mean alliteration?")


# Options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lerning_rate", "1"], ["--lerning_rate: unknown option (value '1')", "known: --learning_rate"]),
        (["--coef", "0.1"], ["--coef: unknown option", "nearest known: --kl.coef"]),
        (["--kl.coef", "-0.1"], ["--kl.coef: '-0.1' is not allowed", "at least 0 (reward per nat)"]),
        (["--beta", "-1"], ["--beta: '-1' is not allowed", "at least 0"]),
        (["--kl.loss", "k1"], ["kl.loss k1 as a loss has zero expected gradient; use k3 or k2"]),
        (["--num_generations", "1"], ["num_generations 1 is too few for rloo; use 2 or more"]),
        (["--batch_size", "7"], ["batch_size 7 is not divisible by num_generations 3; try 6 or 9"]),
        (["--algorithm", "ppo2"], ["--algorithm: 'ppo2' is not allowed", "nearest: "]),
        (["--steps", "many"], ["--steps: 'many' is not allowed; allowed: int, at least 1 (steps)"]),
        (["--temperature", "0"], ["--temperature: '0' is not allowed", "above 0"]),
        (["--learning_rate", "nan"], ["--learning_rate: 'nan' is not allowed"]),
        (["--max_completion_length", "63"], ["context is 64", "set max_completion_length to 62 or less"]),
        (["--device", "tpu"], ["--device: 'tpu' is not allowed"]),
    ],
)  # fmt: skip
def test_options_that_are_refused(task, refused, tmp_path, arguments, said):
    line = refused("rl", *rl(task, tmp_path / "run"), *arguments)
    assert_says(line, *said)
    assert not (tmp_path / "run").exists()


def test_a_misspelt_key_of_a_file_is_named_with_its_line(task, refused, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("steps: 3\nkl:\n  cof: 0.1\n")
    line = refused("rl", *rl(task, tmp_path / "run"), "--config", path)
    assert_says(line, f"{path}, line 3: kl.cof: unknown option (value 0.1); nearest known: kl.coef")


# Models


def test_models_that_cannot_be_used(task, refused, tmp_path):
    def line_for(model):
        return refused("rl", *rl(task, tmp_path / "run", model_name_or_path=model))

    assert_says(line_for(tmp_path / "none"), f"model folder {tmp_path / 'none'} does not exist")
    assert_says(line_for("nobody/nothing"), "nobody/nothing", "check the name and the network")
    (tmp_path / "empty").mkdir()
    assert_says(line_for(tmp_path / "empty"), "has no config.json")
    shutil.copytree(task.model, tmp_path / "weightless")
    (tmp_path / "weightless" / "model.safetensors").unlink()
    assert_says(line_for(tmp_path / "weightless"), f"cannot load the model in {tmp_path / 'weightless'}")
    shutil.copytree(task.model, tmp_path / "mute")
    (tmp_path / "mute" / "tokenizer.json").unlink()
    assert_says(line_for(tmp_path / "mute"), f"cannot load the tokenizer in {tmp_path / 'mute'}")
    assert not (tmp_path / "run").exists()


def test_a_model_without_an_end(task, refused, tmp_path):
    model = llama()
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.save_pretrained(tmp_path / "endless")
    words = tokenizer()
    words.eos_token = None
    words.save_pretrained(tmp_path / "endless")
    line = refused("rl", *rl(task, tmp_path / "run", model_name_or_path=tmp_path / "endless"))
    assert_says(
        line, tmp_path / "endless", "has no end-of-sequence token; set eos_token_id in its config.json"
    )


def test_a_tokenizer_without_a_pad_token_works(task, tmp_path, capsys):
    """Prompts of unequal length: here padding would be needed, and must not be the end token."""
    assert tokenizer().pad_token is None
    assert cli.main(["rl", *rl(task, tmp_path / "run", prompts=task.prompts, steps=1)]) == 0
    ended = [row for row in Run.open(tmp_path / "run").samples().to_pylist() if row["ended"]]
    assert all(row["completion_ids"][-1] == 0 for row in ended)


# Folders


def test_an_output_folder_that_exists_is_left_as_it_is(task, refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    line = refused("rl", *rl(task, tmp_path / "run"))
    assert_says(line, f"output_dir {tmp_path / 'run'} exists", "--resume", "choose another output_dir")
    assert toy.contents(tmp_path / "run") == {"thesis.txt": b"years of work"}
    (tmp_path / "file").write_text("")
    assert_says(refused("rl", *rl(task, tmp_path / "file")), "is a file; choose another output_dir")


def test_an_output_folder_that_cannot_be_written(task, refused, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused("rl", *rl(task, tmp_path / "file" / "run"))
    assert_says(line, tmp_path / "file" / "run")
    if os.path.isdir("/proc/self"):
        assert_says(refused("rl", *rl(task, "/proc/talltree/run")), "/proc/talltree/run")


def test_damaged_checkpoints(task, tmp_path, capsys):
    folder = tmp_path / "run"
    assert cli.main(["rl", *rl(task, folder, steps=2)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"stop_reason": None}))
    for step in (0, 1, 2):
        weights = folder / "checkpoints" / f"step-{step}" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
    capsys.readouterr()
    assert cli.main(["rl", "--resume", str(folder)]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert_says(line, f"all 3 checkpoints in {folder / 'checkpoints'} are damaged; start again")
    for step in (0, 1, 2):
        assert_says(captured.out, f"step-{step} is damaged: model.safetensors has")
    assert len(toy.rows(folder)) == 2


def test_a_run_that_cannot_be_continued(refused, tmp_path):
    assert_says(
        refused("rl", "--resume", tmp_path / "none"), f"run folder {tmp_path / 'none'} does not exist"
    )
    assert_says(refused("rl", "--resume", tmp_path), "is not a run folder")


def test_a_mistake_is_one_line_in_a_shell_too(task, tmp_path):
    """Without the test's own capture: no warning, no progress bar and no traceback beside the line."""
    arguments = rl(task, tmp_path / "run", prompt="w1 " * 70)
    done = subprocess.run(
        [sys.executable, "-m", "talltree", "rl", *arguments],
        capture_output=True,
        text=True,
        env=toy.ENVIRONMENT,
    )
    assert done.returncode == 2
    assert done.stdout.splitlines() == [f"loading {task.model}"]
    assert len(done.stderr.splitlines()) == 1
    assert "has 70 tokens" in done.stderr
