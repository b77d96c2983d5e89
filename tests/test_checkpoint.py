"""Checkpoints: whole or absent, damage always found, state bit for bit."""

import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import pytest

from talltree import checkpoint
from talltree.errors import RunError

ENVIRONMENT = {**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}


def write_files(contents: dict[str, bytes]):
    def write(folder: Path) -> None:
        for name, content in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    return write


def contents_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


FILES = {
    "model.safetensors": bytes(range(256)) * 8,
    "config.json": b'{"a": 1}\n',
    "sub/empty": b"",
    "sub/vocab": b"x y",
}


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "checkpoints" / "step-4"
    checkpoint.save_folder(folder, write_files(FILES))
    return folder


# Saving


def test_a_saved_folder_holds_what_was_written_and_passes(saved):
    checkpoint.verify(saved)
    contents = contents_of(saved)
    manifest = contents.pop("manifest.json")
    assert contents == FILES
    # SHA-256 of the empty string, from FIPS 180-4 examples.
    assert b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" in manifest
    assert [path.name for path in saved.parent.iterdir()] == ["step-4"]


def test_an_existing_folder_is_replaced(saved):
    checkpoint.save_folder(saved, write_files({"new": b"1"}))
    checkpoint.verify(saved)
    assert contents_of(saved).keys() == {"new", "manifest.json"}
    assert [path.name for path in saved.parent.iterdir()] == ["step-4"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit, FileNotFoundError])
def test_an_error_while_writing_leaves_everything_as_it_was(saved, error):
    before = contents_of(saved)

    def write(folder):
        (folder / "half").write_bytes(b"1")
        raise error

    for folder in (saved, saved.with_name("step-8")):
        with pytest.raises(error):
            checkpoint.save_folder(folder, write)
    assert contents_of(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["step-4"]


def test_an_error_between_the_two_renames_brings_the_old_folder_back(saved, monkeypatch):
    before, rename, calls = contents_of(saved), os.rename, []

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(RunError, match="Input/output error"):
        checkpoint.save_folder(saved, write_files({"new": b"1"}))
    assert contents_of(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["step-4"]


def test_every_file_and_folder_is_synced_before_the_rename(tmp_path, monkeypatch):
    events, fsync, rename = [], os.fsync, os.rename

    def record_fsync(descriptor):
        events.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def record_rename(source, target):
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    folder = tmp_path / "step-1"
    checkpoint.save_folder(folder, write_files(FILES))
    place = events.index("rename")
    assert {path.stat().st_ino for path in (folder, *folder.rglob("*"))} <= set(events[:place])
    assert events[place + 1 :] == [tmp_path.stat().st_ino]


# A full disk. With a limit on file size the kernel refuses real writes; the small tmpfs really runs full.

FULL = """
import resource, sys
from pathlib import Path
import numpy
from safetensors.numpy import save_file
from talltree import checkpoint, errors
folder = Path(sys.argv[1])
checkpoint.save_folder(folder / "step-1", lambda aside: save_file({"w": numpy.zeros(10)}, aside / "model"))
if sys.argv[2:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
def raw(aside):
    (aside / "small").write_bytes(b"1")
    (aside / "large").write_bytes(bytes(3_000_000))
def model(aside):
    save_file({"w": numpy.zeros(400_000)}, aside / "model.safetensors")
for write in (raw, model):
    for name in ("step-1", "step-2"):
        try:
            checkpoint.save_folder(folder / name, write)
        except errors.RunError as error:
            print(error)
try:
    checkpoint.write_file(folder / "summary.json", bytes(3_000_000))
except errors.RunError as error:
    print(error)
checkpoint.verify(folder / "step-1")
print(sorted(path.name for path in folder.iterdir()))
"""


def check_full_disk_report(output: str, reason: str) -> None:
    lines = output.splitlines()
    assert lines[-1] == "['step-1']"
    assert len(lines) == 6
    for line, name in zip(lines[:5], ["step-1", "step-2", "step-1", "step-2", "summary.json"], strict=True):
        assert line.startswith("cannot write ") and f"/{name}: {reason} (" in line and "MiB free" in line


def test_a_refused_write_is_one_line_and_loses_nothing(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path), "1000000"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_full_disk_report(done.stdout, "File too large")


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode
    ):
        pytest.skip("this machine does not let a test mount a small disk")
    command = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        f'{mount} && exec "$@"',
        "-",
        sys.executable,
        "-c",
        FULL,
        str(tmp_path),
    ]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_full_disk_report(done.stdout, "No space left on device")


# Damage


def test_every_random_flip_in_every_file_is_found_and_the_file_named(saved):
    generator = random.Random(0)
    paths = sorted(path for path in saved.rglob("*") if path.is_file() and path.stat().st_size)
    assert "manifest.json" in {path.name for path in paths}
    for number in range(300):
        path = paths[number % len(paths)]
        good = path.read_bytes()
        place = generator.randrange(len(good))
        bad = bytearray(good)
        bad[place] ^= generator.randrange(1, 256)
        path.write_bytes(bad)
        with pytest.raises(RunError, match=path.name if path.name != "manifest.json" else "damaged: "):
            checkpoint.verify(saved)
        path.write_bytes(good)
    checkpoint.verify(saved)


def test_every_single_bit_of_the_manifest_counts(tmp_path):
    saved = tmp_path / "step-1"
    checkpoint.save_folder(saved, write_files({"a": b"1"}))
    path = saved / "manifest.json"
    good = path.read_bytes()
    for place in range(len(good)):
        for bit in range(8):
            path.write_bytes(good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :])
            with pytest.raises(RunError):
                checkpoint.verify(saved)


def test_every_truncation_and_addition_is_found(saved):
    for path in [path for path in saved.rglob("*") if path.is_file()]:
        good = path.read_bytes()
        lengths = {0, 1, len(good) // 2, len(good) - 1} & set(range(len(good)))
        for bad in [*(good[:length] for length in lengths), good + b"\0", good + b"\n"]:
            path.write_bytes(bad)
            with pytest.raises(RunError, match=path.name):
                checkpoint.verify(saved)
        path.write_bytes(good)
    checkpoint.verify(saved)


def test_missing_and_extra_files_are_named(saved):
    (saved / "sub" / "extra").write_bytes(b"")
    with pytest.raises(RunError, match="sub/extra is not listed"):
        checkpoint.verify(saved)
    (saved / "sub" / "extra").unlink()
    (saved / "sub" / "vocab").unlink()
    with pytest.raises(RunError, match="sub/vocab is missing"):
        checkpoint.verify(saved)
    (saved / "manifest.json").unlink()
    with pytest.raises(RunError, match=r"manifest\.json is missing"):
        checkpoint.verify(saved)
    with pytest.raises(RunError, match="does not exist"):
        checkpoint.verify(saved / "nowhere")


# Choosing


def test_the_newest_good_checkpoint_is_used_and_damaged_ones_are_named(tmp_path):
    for step in (2, 4, 10, 12):
        checkpoint.save_folder(tmp_path / f"step-{step}", write_files({"model": b"%d" % step}))
    said = []
    assert checkpoint.latest_good(tmp_path, said.append) == (12, tmp_path / "step-12")
    assert said == []
    (tmp_path / "step-12" / "model").write_bytes(b"13")
    (tmp_path / "step-10" / "manifest.json").unlink()
    assert checkpoint.latest_good(tmp_path, said.append) == (4, tmp_path / "step-4")
    assert len(said) == 3
    assert "step-12 is damaged: model" in said[0]
    assert "step-10 is damaged: manifest.json is missing" in said[1]
    assert "using" in said[2] and "step-4" in said[2]
    for step in (2, 4):
        shutil.rmtree(tmp_path / f"step-{step}")
    with pytest.raises(RunError, match="all 2 checkpoints .* are damaged"):
        checkpoint.latest_good(tmp_path, said.append)


@pytest.mark.parametrize("name", ["", "absent"])
def test_no_checkpoint_at_all(tmp_path, name):
    with pytest.raises(RunError, match="no checkpoint in .*another output_dir"):
        checkpoint.latest_good(tmp_path / name, print)


def test_leftovers_are_ignored_and_cleaned(saved):
    checkpoints = saved.parent
    for name in (".step-6.partial", ".step-4.replaced"):
        shutil.copytree(saved, checkpoints / name)
    os.rename(saved, checkpoints / ".step-2.replaced")
    shutil.copytree(checkpoints / ".step-2.replaced", saved)
    (checkpoints / ".summary.json.partial").write_bytes(b"{")
    assert checkpoint.latest_good(checkpoints, print) == (4, saved)
    checkpoint.clean_leftovers(checkpoints)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-2", "step-4"]
    checkpoint.verify(checkpoints / "step-2")
    checkpoint.clean_leftovers(checkpoints / "absent")


# Kills

WRITER = """
import sys
from pathlib import Path
from talltree import checkpoint
folder = Path(sys.argv[1])
def write(step):
    def files(aside):
        for name in "abcdefgh":
            (aside / name).write_bytes(b"%d " % step * 20_000)
    return files
step = checkpoint.latest_good(folder, print)[0]
print("ready", flush=True)
while True:
    step += 1
    checkpoint.save_folder(folder / f"step-{step}", write(step))
    checkpoint.save_folder(folder / "step-0", write(0))
    for old, path in checkpoint.step_folders(folder)[:-2]:
        checkpoint.remove_folder(path)
"""


def check_good(folder: Path) -> int:
    said = []
    step, path = checkpoint.latest_good(folder, said.append)
    assert said == []
    for name in "abcdefgh":
        assert (path / name).read_bytes() == b"%d " % step * 20_000
    return step


def test_a_good_checkpoint_survives_every_kill(tmp_path):
    generator = random.Random(1)
    checkpoint.save_folder(tmp_path / "step-1", write_files(dict.fromkeys("abcdefgh", b"1 " * 20_000)))
    in_the_middle, steps = 0, [1]
    for _ in range(15):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(generator.uniform(0.0, 0.1))
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        writer.stdout.close()
        in_the_middle += any(path.name.startswith(".") for path in tmp_path.iterdir())
        steps.append(check_good(tmp_path))
        if len(steps) % 2:
            checkpoint.clean_leftovers(tmp_path)
            assert not any(path.name.startswith(".") for path in tmp_path.iterdir())
            assert check_good(tmp_path) == steps[-1]
    assert steps == sorted(steps) and steps[-1] > steps[0]
    assert in_the_middle > 0


KILL_AT = """
import os, signal, sys
from pathlib import Path
from talltree import checkpoint
folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
count = 0
def killing(function):
    def call(*arguments, **keywords):
        global count
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        return function(*arguments, **keywords)
    return call
# shutil.rmtree deletes through os.unlink and os.rmdir, so a kill in the middle of a deletion is among them.
for name in ("fsync", "rename", "mkdir", "unlink", "rmdir"):
    setattr(os, name, killing(getattr(os, name)))
def files(aside):
    for name in "abc":
        killing((aside / name).write_bytes)(b"2")
checkpoint.save_folder(folder / "step-4", files)
checkpoint.remove_folder(folder / "step-2")
"""


def test_a_kill_at_each_point_of_replacing_and_removing(tmp_path):
    """The old or the new content stands whole after each step of the writer; later steps give the new."""
    outcomes = []
    for kill_at in range(100):
        folder = tmp_path / str(kill_at)
        for name in ("step-2", "step-4"):
            checkpoint.save_folder(folder / name, write_files(dict.fromkeys("abc", b"1")))
        done = subprocess.run([sys.executable, "-c", KILL_AT, str(folder), str(kill_at)], env=ENVIRONMENT)
        checkpoint.latest_good(folder, lambda line: pytest.fail(line))
        checkpoint.clean_leftovers(folder)
        assert {path.name for path in folder.iterdir()} <= {"step-2", "step-4"}
        for _, path in checkpoint.step_folders(folder):
            checkpoint.verify(path)
        outcomes.append((folder / "step-4" / "a").read_bytes())
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert not (folder / "step-2").exists()
    assert outcomes == sorted(outcomes) and set(outcomes) == {b"1", b"2"}
    assert len(outcomes) > 20


# State


def round_trip(tree, folder):
    folder.mkdir(exist_ok=True)
    checkpoint.save_state(folder, tree)
    return checkpoint.load_state(folder)


def bits(tensor):
    import torch

    return (
        tensor.dtype,
        tuple(tensor.shape),
        tensor.resolve_conj().contiguous().reshape(-1).view(torch.uint8).tolist(),
    )


def assert_same(first, second):
    import torch

    if isinstance(first, torch.Tensor):
        assert bits(first.detach()) == bits(second)
    elif isinstance(first, dict):
        assert list(first) == list(second) and [type(key) for key in first] == [type(key) for key in second]
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert type(first) is type(second) and len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert type(first) is type(second) and repr(first) == repr(second)


def test_scalars_and_structure_come_back_exactly(tmp_path):
    tree = {
        "floats": [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.pi, math.inf, -math.inf, math.nan],
        "ints": (0, -1, 2**63, 10**40),
        "others": [None, True, False, "", "æøå 🌲 \n \ud800", "NaN"],
        0: {1: {"1": "text key", 1: "int key"}, "dict": {"float": "1.0"}, "tensor": {"tensor": "state/0"}},
        "nested": [[], (), {}, ((),), [[{}]]],
    }
    assert_same(tree, round_trip(tree, tmp_path))
    for leaf in (None, 3, 0.5, "x", [], {}):
        assert_same(leaf, round_trip(leaf, tmp_path))


def test_tensors_of_every_kind_come_back_bit_for_bit(tmp_path):
    import torch

    generator = torch.Generator().manual_seed(0)
    dtypes = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
    ]
    dtypes += [torch.int8, torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.complex64]
    dtypes += [torch.float8_e4m3fn, torch.float8_e5m2]
    raw = torch.randint(0, 256, (8, 16), generator=generator, dtype=torch.uint8)  # NaN patterns included
    tree = {str(dtype): (raw % 2).bool() if dtype == torch.bool else raw.view(dtype) for dtype in dtypes}
    base = torch.arange(24.0).reshape(4, 6)
    tree |= {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "transposed": base.T,
        "strided": base[::2, 1::3],
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    assert_same(tree, round_trip(tree, tmp_path))
    assert round_trip(tree, tmp_path)["strided"].tolist() == [[1.0, 4.0], [13.0, 16.0]]


def test_tensors_that_share_memory(tmp_path):
    import torch

    base = torch.arange(6.0)
    tree = {
        "head": base,
        "tied": base.detach(),
        "part": base[2:4],
        "shaped": base.view(2, 3),
        0: base[:1],
        "0": base[:2],
    }
    back = round_trip(tree, tmp_path)
    assert_same(tree, back)
    assert back["head"] is back["tied"]
    assert back["head"].data_ptr() != back["shaped"].data_ptr()


def test_int_and_text_keys_of_one_dict_do_not_meet(tmp_path):
    import torch

    back = round_trip(
        {1: torch.tensor(1), "1": torch.tensor(2), "a/b": torch.tensor(3), "a": {"b": torch.tensor(4)}},
        tmp_path,
    )
    assert [back[1].item(), back["1"].item(), back["a/b"].item(), back["a"]["b"].item()] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "value", [{1, 2}, b"bytes", object(), 1 + 2j, {(1, 2): 3}, {1.5: 3}, {True: 3}, {None: 1}]
)
def test_anything_else_is_refused_by_its_place(tmp_path, value):
    with pytest.raises(TypeError, match="state/a/0"):
        checkpoint.save_state(tmp_path, {"a": [value]})
    assert list(tmp_path.iterdir()) == []


def train(model, optimiser, scheduler, generator, steps):
    import torch

    for _ in range(steps):
        loss = (model(torch.randn(4, 3, generator=generator)) ** 2).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        scheduler.step()


def objects():
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    optimiser = torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "lr": 0.1},
            {"params": model[2].parameters(), "weight_decay": 0.3},
        ],
        amsgrad=True,
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 7)
    return model, optimiser, scheduler, torch.Generator().manual_seed(5)


def test_a_training_state_resumes_bit_for_bit(tmp_path):
    model, optimiser, scheduler, generator = objects()
    train(model, optimiser, scheduler, generator, 3)
    tree = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "scheduler": scheduler.state_dict(),
        "generator": generator.get_state(),
        "ordered": OrderedDict(a=1),
    }
    assert set(tree["optimiser"]["state"]) == {0, 1, 2, 3}
    back = round_trip(tree, tmp_path)
    assert_same(tree, back)
    train(model, optimiser, scheduler, generator, 3)

    other, other_optimiser, other_scheduler, other_generator = objects()
    other.load_state_dict(back["model"])
    other_optimiser.load_state_dict(back["optimiser"])
    other_scheduler.load_state_dict(back["scheduler"])
    other_generator.set_state(back["generator"])
    train(other, other_optimiser, other_scheduler, other_generator, 3)
    assert_same(dict(model.state_dict()), dict(other.state_dict()))
    assert_same(optimiser.state_dict(), other_optimiser.state_dict())
    assert_same(scheduler.state_dict(), other_scheduler.state_dict())
    assert bits(generator.get_state()) == bits(other_generator.get_state())


def test_a_folder_without_state_is_named(tmp_path):
    with pytest.raises(RunError, match="no training state"):
        checkpoint.load_state(tmp_path)
    checkpoint.save_state(tmp_path, {})
    (tmp_path / "state.safetensors").unlink()
    with pytest.raises(RunError, match="no training state"):
        checkpoint.load_state(tmp_path)


def test_a_later_format_is_refused(tmp_path):
    checkpoint.save_state(tmp_path, {})
    (tmp_path / "state.json").write_text('{"format": 2, "state": {"dict": []}}')
    with pytest.raises(RunError, match="format 2; this version reads format 1"):
        checkpoint.load_state(tmp_path)


def test_no_file_of_a_state_is_a_pickle(tmp_path):
    import torch

    checkpoint.save_state(tmp_path, {"w": torch.ones(3)})
    assert {path.name for path in tmp_path.iterdir()} == {"state.safetensors", "state.json"}
