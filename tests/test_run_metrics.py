"""The metrics of a run folder: rows that come back exactly, torn and damaged lines, TensorBoard."""

import json
import math
import os
import socket
from pathlib import Path

import pytest

from talltree.errors import RunError
from talltree.run import Run, metrics_so_far

from .run_toy import CONFIG, names


@pytest.fixture
def run(tmp_path):
    with Run.create(tmp_path / "runs" / "one", CONFIG, {"python": "3"}) as run:
        yield run


def test_rows_come_back_exactly(run):
    rows = [
        {
            "step": 1,
            "reward/mean": 0.1 + 0.2,
            "kl/coef": 1e-300,
            "reward/length": 3,
            "groups/zero_variance": None,
        },
        {"step": 2, "reward/mean": -0.0, "loss/train": 2.0},
    ]
    for row in rows:
        run.log(row)
    assert repr(run.metrics()) == repr(rows)
    assert (run.folder / "metrics.jsonl").read_text(encoding="utf-8").count("\n") == 2


def test_numbers_that_are_not_finite_are_null_in_valid_json(run):
    run.log({"step": 1, "reward/mean": math.nan, "policy/loss": math.inf, "kl/coef": -math.inf})

    def refuse(constant):
        raise AssertionError(constant)

    row = json.loads((run.folder / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"step": 1, "reward/mean": None, "policy/loss": None, "kl/coef": None}


@pytest.mark.parametrize("row", [{"step": 1, "reward/": 1.0}, {"step": 1, "loss": 1.0}, {"reward/mean": 1.0}])
def test_an_undocumented_key_or_a_row_without_step_is_a_defect(run, row):
    with pytest.raises(KeyError):
        run.log(row)
    assert run.metrics() == []
    assert not (run.folder / "metrics.jsonl").exists()


@pytest.mark.parametrize("length", [1, 12, 21])
def test_a_torn_last_line_is_dropped_and_named(run, length):
    run.log({"step": 1, "reward/mean": 1.0})
    whole = (run.folder / "metrics.jsonl").read_bytes()
    run.log({"step": 2, "reward/mean": 2.0})
    run.close()
    os.truncate(run.folder / "metrics.jsonl", len(whole) + length)
    assert Run.open(run.folder).metrics() == [{"step": 1, "reward/mean": 1.0}]
    said = []
    with Run.resume(run.folder, said.append) as resumed:
        assert len(said) == 1 and f"last {length} bytes" in said[0] and "metrics.jsonl" in said[0]
        assert (run.folder / "metrics.jsonl").read_bytes() == whole
        resumed.log({"step": 2, "reward/mean": 3.0})
        assert [row["reward/mean"] for row in resumed.metrics()] == [1.0, 3.0]


def test_the_rows_so_far_are_those_that_are_whole(run):
    path = run.folder / "metrics.jsonl"
    assert metrics_so_far(path) == []
    run.log({"step": 1, "reward/mean": 1.0})
    run.log({"step": 2, "reward/mean": 2.0})
    for torn in (b'{"step": 3, "rew', b'{"step": 3', b"[3]", b'{"step": null}', b"\xff"):
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]) + torn)
        assert metrics_so_far(path) == [{"step": 1, "reward/mean": 1.0}, {"step": 2, "reward/mean": 2.0}]
    # Unlike Run.metrics it goes on behind damage, for a page or a table that shows what there is.
    path.write_bytes(b'{"step": 1}\n{"step": 2\n{"step": 3}\n')
    assert metrics_so_far(path) == [{"step": 1}, {"step": 3}]


def test_a_last_line_that_only_lost_its_end_of_line_is_kept(run):
    run.log({"step": 1, "reward/mean": 1.0})
    run.close()
    path = run.folder / "metrics.jsonl"
    whole = path.read_bytes()
    os.truncate(path, len(whole) - 1)
    said = []
    Run.resume(run.folder, said.append).close()
    assert said == [] and path.read_bytes() == whole


def test_a_damaged_line_before_the_last_is_named(run):
    for step in (1, 2, 3):
        run.log({"step": step})
    run.close()
    path = run.folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('{"step": 2}', '{"step": 2'))
    for call in (lambda: Run.open(run.folder).metrics(), lambda: Run.resume(run.folder, print)):
        with pytest.raises(RunError, match=r"metrics\.jsonl line 2 is not a metrics row"):
            call()


def tensorboard_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_the_same_scalars_and_continues_after_a_resume(run):
    for step in (1, 2, 3, 4):
        run.log({"step": step, "reward/mean": step / 2, "kl/coef": None, "reward/length": 8.0})
    run.close()
    assert tensorboard_scalars(run.folder) == {
        "train/reward": [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)],
        "train/rewards/length/mean": [(step, 8.0) for step in (1, 2, 3, 4)],
    }
    with Run.resume(run.folder, print) as resumed:
        assert resumed.rewind(2) == 2
        resumed.log({"step": 3, "reward/mean": 9.0})
    assert tensorboard_scalars(run.folder)["train/reward"] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert all(socket.gethostname() not in name for name in names(run.folder / "tensorboard"))
