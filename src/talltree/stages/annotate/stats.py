"""Action `stats`: scores, agreement and reliability of a folder's judgements, printed, drawn and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from talltree import checkpoint
from talltree.annotation.summary import Settings, summarise
from talltree.console import printable
from talltree.errors import RunError
from talltree.report import preferences as page
from talltree.stages.annotate.config import Config
from talltree.stages.annotate.judgements import in_folder

MOST_ANNOTATORS = 20
"""Annotators whose figures are printed; the page has all of them."""


def run(config: Config) -> None:
    """Prints the statistics and writes FOLDER/stats/: stats.json, stats.html and one SVG a chart."""
    folder = Path(config.folder).expanduser()
    options = config.stats
    judgements = in_folder(folder)
    settings = Settings(
        options.regularisation, options.splits, options.resamples, options.fast_seconds, options.seed
    )
    summary = summarise(judgements, settings)
    print("\n".join(map(printable, lines(summary))))
    target = folder / "stats"
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {target}: {error.strerror}") from None
    checkpoint.write_file(
        target / "stats.json", (json.dumps(summary, ensure_ascii=False, indent=1) + "\n").encode()
    )
    written = page.write(target, folder.resolve().name, summary, judgements)
    print(f"{written[0]}, stats.json with every item's scores, and {len(written) - 1} charts")


def lines(summary: dict[str, Any]) -> list[str]:
    """The statistics as lines of text: the data, the figures, the annotators."""
    found = [page.verdict(summary)]
    more = [
        (summary["repeats"], "are hidden repeats, counted for self-agreement only"),
        (summary["undecided"], "settle no pair of candidates"),
    ]
    found += [f"{count:,} judgements {what}" for count, what in more if count]
    if summary["never_compared"] and summary["pairs"]:
        found.append(f"{summary['never_compared']:,} items were never compared and have no strength")
    if summary["groups"] > 1:
        found.append(
            f"comparisons join the items in {summary['groups']:,} groups; strengths of different groups "
            "cannot be compared"
        )
    found += ["", *(f"{row.label:<18} {row.value:>14}   {row.note}" for row in page.rows(summary))]
    if summary["reliability"]:
        header, *rest = _aligned(page.annotator_rows(summary))
        found += ["", header, *rest[:MOST_ANNOTATORS]]
        if len(rest) > MOST_ANNOTATORS:
            found.append(f"and {len(rest) - MOST_ANNOTATORS:,} more in stats.html")
    return found


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
