"""The figures of a benchmark as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.ratios import spread

if TYPE_CHECKING:
    from rich.table import Table

GIGA = 1e9
WIDTH = 130


def show(result: Mapping[str, Any]) -> None:
    """Prints the machine and the tables of the benchmark's rows."""
    from rich.console import Console

    # A pipe has no width of its own, and figures are not to be cut.
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, width=WIDTH)
    console.print(machine_line(result["machine"]), markup=False)
    for table in {"rl": _rl, "sample": _sample, "scale": _scale, "pretrain": _pretrain}[result["bench"]](
        result["rows"]
    ):
        console.print(table)
    if result["bench"] != "sample":
        console.print(
            "Memory is the peak of the whole process, libraries, loading and preflight included. Floor: the "
            "step's matrix products at the measured rates.",
            markup=False,
        )


def machine_line(machine: Mapping[str, Any]) -> str:
    """What was measured of the machine, in one line."""
    return (
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}: "
        f"{machine['matrix_rate'] / GIGA:,.0f} GFLOP/s in float32; GB/s: copy {machine['copy'] / GIGA:,.1f}, "
        f"one-row products {machine['stream_layers'] / GIGA:,.1f} (layers) and "
        f"{machine['stream_head'] / GIGA:,.1f} (head)"
    )


def _rl(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    steps = _table("row", "side", "s a step", "tokens/s", "x floor", "peak GB", "TRL / ours: time", "memory")
    phases = _table("row", "side", "s a step by phase")
    for row in rows:
        bound = row["roofline"]["step"]
        steps.add_row(row["name"], "floor", f"{bound:.2f}")
        for side in (side for side in ("ours", "trl") if side in row):
            own = row[side]
            compared = [_spread(row[key]) for key in ("ratio", "memory_ratio")] if side == "trl" else []
            steps.add_row(
                "",
                side,
                _spread(own["seconds"]),
                f"{own['tokens_per_second']['median']:,.0f}",
                f"{own['seconds']['median'] / bound:.2f}",
                _memory(own),
                *compared,
            )
            phases.add_row(row["name"], side, _phases(own["phases"]))
        steps.add_section()
    return [steps, phases]


def _sample(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    table = _table("row", "sampler", "s", "tokens/s", "x floor", "its time / ours")
    for row in rows:
        for name, seconds in row["seconds"].items():
            own = spread(seconds)
            table.add_row(
                row["name"],
                name,
                _spread(own._asdict()),
                f"{row['tokens'][name][0] / own.median:,.0f}",
                f"{own.median / row['roofline_seconds']:.2f}",
                _spread(row["ratio"][name]),
            )
        table.add_section()
    return [table]


def _scale(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    table = _table("sequences", "tokens", "s a step", "ms a token", "by phase", "x floor", "peak GB")
    for row in rows:
        own = row["ours"]
        per_token = 1000 / own["tokens"]["median"]
        table.add_row(
            str(row["row"]["sequences"]),
            str(row["row"]["tokens"]),
            _spread(own["seconds"]),
            f"{own['seconds']['median'] * per_token:.2f}",
            _phases({name: seconds * per_token for name, seconds in own["phases"].items()}),
            f"{row['roofline_multiple']:.2f}",
            _memory(own),
        )
    return [table]


def _pretrain(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    table = _table(
        "shape-rows", "side", "s a step", "tokens/s", "x floor", "peak GB", "trainer / ours: time", "memory"
    )
    for row in rows:
        table.add_row(row["name"], "floor", f"{row['floor_seconds']:.2f}")
        for side in ("ours", "trainer"):
            own = row[side]
            compared = [_spread(row[key]) for key in ("ratio", "memory_ratio")] if side == "trainer" else []
            table.add_row(
                "",
                side,
                _spread(own["seconds"]),
                f"{own['tokens_per_second']['median']:,.0f}",
                f"{own['seconds']['median'] / row['floor_seconds']:.2f}",
                _memory(own),
                *compared,
            )
    return [table]


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < 2 or "by phase" in name else "right")
    return table


def _spread(figures: Mapping[str, float]) -> str:
    return f"{figures['median']:.2f} ({figures['low']:.2f}-{figures['high']:.2f})"


def _phases(phases: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.2f}" for name, seconds in phases.items())


def _memory(side: Mapping[str, Any]) -> str:
    gpu = side["peak_gpu_bytes"]
    return f"{side['peak_bytes'] / GIGA:.2f}" + ("" if gpu is None else f", GPU {gpu / GIGA:.2f}")
