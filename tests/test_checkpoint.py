"""Checkpoints: whole or absent, damage always found, state bit for bit."""

import os
import random
import shutil
import subprocess
import sys

import pytest

from talltree import checkpoint
from talltree.errors import RunError

from .checkpoint_files import ENVIRONMENT, FILES, contents_of, write_files


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
