"""The samples of a run folder: shards, merging, and kills in between."""

import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from talltree.run import Run

from .run_toy import CONFIG, ENVIRONMENT, columns, expected_rows, names


@pytest.fixture
def run(tmp_path):
    with Run.create(tmp_path / "runs" / "one", CONFIG, {"python": "3"}) as run:
        yield run


def test_samples_read_the_same_before_and_after_merging(run):
    for step in (1, 2, 10):
        run.add_samples(step, columns(step))
    assert names(run.folder / "samples") == ["00000001.parquet", "00000002.parquet", "00000010.parquet"]
    assert run.samples().to_pylist() == expected_rows(1, 2, 10)
    run.merge_samples()
    assert not (run.folder / "samples").exists()
    assert run.samples().to_pylist() == expected_rows(1, 2, 10)
    assert parquet.read_table(run.folder / "samples.parquet").to_pylist() == expected_rows(1, 2, 10)
    run.add_samples(11, columns(11))
    assert run.samples().to_pylist() == expected_rows(1, 2, 10, 11)
    run.merge_samples()
    run.merge_samples()
    assert run.samples().to_pylist() == expected_rows(1, 2, 10, 11)
    schema = run.samples().schema
    assert schema.field("completion_ids").type == pa.list_(pa.int32())
    assert schema.field("reward").type == pa.float64()


def test_a_column_of_nulls_and_a_new_column_merge_with_the_others(run):
    run.add_samples(1, {"prompt": ["a"], "reward": [None], "spans": [[]]})
    run.add_samples(2, {"prompt": ["b"], "reward": [2.0], "spans": [[[0, 1]]], "kl": [0.5]})
    for _ in range(2):
        table = run.samples()
        assert table["reward"].to_pylist() == [None, 2.0]
        assert table["kl"].to_pylist() == [None, 0.5]
        assert table["spans"].to_pylist() == [[], [[0, 1]]]
        run.merge_samples()


def test_no_samples_are_an_empty_table(run):
    run.merge_samples()
    table = Run.open(run.folder).samples()
    assert table.num_rows == 0
    assert {"step", "prompt", "completion", "reward", "kl", "advantage"} <= set(table.column_names)
    assert not (run.folder / "samples.parquet").exists()


def test_wrong_samples_are_defects(run):
    run.add_samples(1, columns(1))
    with pytest.raises(ValueError, match="already written"):
        run.add_samples(1, columns(1))
    with pytest.raises(KeyError, match="rewrad"):
        run.add_samples(2, {"prompt": ["a"], "rewrad": [1.0]})
    with pytest.raises(KeyError, match="step"):
        run.add_samples(2, {"prompt": ["a"], "step": [3]})
    with pytest.raises(ValueError, match="differ in length"):
        run.add_samples(2, {"prompt": ["a"], "kl": [1.0, 2.0]})
    assert names(run.folder / "samples") == ["00000001.parquet"]


def completions(*steps: int) -> list[str]:
    return [row["completion"] for row in expected_rows(*steps)]


# Copies a run for each file operation of a child and kills the child there.
KILLS = """
import os, shutil, signal, sys
import pyarrow.compute, pyarrow.parquet
from talltree.run import Run, metrics_so_far
def killing(function):
    def call(*arguments, **keywords):
        global count
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        return function(*arguments, **keywords)
    return call
for kill_at in range(100):
    folder = shutil.copytree(sys.argv[1], f"{sys.argv[1]}-{kill_at}")
    if os.fork() == 0:
        count = 0
        run = Run.resume(folder, print)
        for name in ("rename", "replace", "mkdir", "unlink", "rmdir"):
            setattr(os, name, killing(getattr(os, name)))
        run.rewind(3)
        run.add_samples(4, {"completion": ["new"]})
        run.merge_samples()
        os._exit(0)
    status = os.wait()[1]
    if status != signal.SIGKILL:
        break
print(kill_at, status)
"""


def test_a_kill_at_each_point_of_rewinding_and_merging_loses_and_doubles_nothing(tmp_path):
    with Run.create(tmp_path / "run", {}, {}) as run:
        for step in (1, 2, 3, 4, 5):
            run.add_samples(step, columns(step))
            run.log({"step": step})
            if step in (2, 4):
                run.merge_samples()
    command = [sys.executable, "-c", KILLS, str(run.folder)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    last, status = map(int, done.stdout.split())
    assert status == 0 and last > 10, done.stderr
    for kill_at in range(last + 1):
        folder = tmp_path / f"run-{kill_at}"
        after = Run.open(folder).samples()["completion"].to_pylist()
        assert after in (
            completions(1, 2, 3, 4, 5),
            completions(1, 2, 3, 4),
            completions(1, 2, 3),
            [*completions(1, 2, 3), "new"],
        )
        with Run.resume(folder, print) as resumed:
            resumed.rewind(3)
            resumed.merge_samples()
            assert resumed.samples().to_pylist() == expected_rows(1, 2, 3)
            assert [row["step"] for row in resumed.metrics()] == [1, 2, 3]
            discarded = [parquet.read_table(path).to_pylist() for path in resumed.discarded.glob("*.parquet")]
        found = {row["completion"] for rows in discarded for row in rows}
        assert found - {"new"} == set(completions(4, 5))
        assert ("new" in found) == ("new" in after)
