"""Pictures of the held-out figures, in the run folder's figures/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from talltree import checkpoint

INK, LINE, CHANCE = "#1f4e9c", "#2e7d32", "#8c8c8c"


def draw(folder: Path, summary: Mapping[str, Any]) -> list[Path]:
    """Accuracy by margin and by difference, calibration, probes and learning curve, where there are any."""
    after = summary["after"]
    folder.mkdir(exist_ok=True)
    drawn = []
    if after["by_margin"]:
        drawn.append(_shares(folder / "accuracy_by_margin.png", after["by_margin"], "annotators' margin"))
    drawn.append(
        _shares(folder / "accuracy_by_difference.png", after["by_difference"], "difference of rewards")
    )
    drawn.append(_calibration(folder / "calibration.png", after["calibration"]))
    if summary["probes"]:
        drawn.append(_probes(folder / "probes.png", summary["probes"]))
    if len(summary["learning_curve"]) > 1:
        drawn.append(_curve(folder / "learning_curve.png", summary["learning_curve"]))
    return drawn


def _shares(path: Path, rows: Sequence[Mapping[str, Any]], label: str) -> Path:
    figure, axes = _axes(label, "accuracy")
    names = [
        f"{row['from']:.3g}" if row["from"] == row["to"] else f"{row['from']:.2g} to {row['to']:.2g}"
        for row in rows
    ]
    axes.axhline(0.5, color=CHANCE, linewidth=0.8, linestyle=":")
    _points(axes, list(range(len(rows))), rows)
    axes.set_xticks(range(len(rows)), [f"{name}\n{row['n']}" for name, row in zip(names, rows, strict=True)])
    axes.set_ylim(0, 1)
    return _saved(figure, path)


def _calibration(path: Path, found: Mapping[str, Any]) -> Path:
    figure, axes = _axes("predicted probability", "share that is right")
    axes.plot([0.5, 1], [0.5, 1], color=CHANCE, linewidth=0.8, linestyle=":")
    x, y = ([row[key] for row in found["bins"]] for key in ("confidence", "accuracy"))
    axes.plot(x, y, color=INK, marker="o")
    axes.set_title(f"expected calibration error {found['ece']:.3f}", loc="left", fontsize=10)
    axes.set_xlim(0.5, 1)
    axes.set_ylim(0, 1)
    return _saved(figure, path)


def _probes(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    figure, axes = _axes("", "original scores higher")
    axes.axhline(0.5, color=CHANCE, linewidth=0.8, linestyle=":")
    _points(axes, list(range(len(rows))), rows)
    axes.set_xticks(range(len(rows)), [f"{row['name'].replace('_', ' ')}\n{row['texts']}" for row in rows])
    axes.set_ylim(0, 1)
    return _saved(figure, path)


def _curve(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    figure, axes = _axes("training comparisons", "held-out accuracy")
    axes.axhline(0.5, color=CHANCE, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    x = [row["comparisons"] for row in rows]
    axes.plot(x, [row["accuracy"]["mean"] for row in rows], color=LINE, linewidth=1)
    _points(axes, x, [row["accuracy"] for row in rows])
    return _saved(figure, path)


def _points(axes: Any, x: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> None:
    for place, row in zip(x, rows, strict=True):
        if row["low"] is not None:
            axes.plot([place, place], [row["low"], row["high"]], color=INK, linewidth=1.2)
        axes.plot([place], [row["mean"]], color=INK, marker="o", markersize=5)


def _axes(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _saved(figure: Any, path: Path) -> Path:
    with checkpoint.replacing(path) as partial:
        # No version and no date, so that the same run draws the same bytes.
        figure.savefig(partial, format="png", dpi=120, metadata={"Software": None})
    return path
