"""The page of whatever a stage wrote: `talltree report FOLDER` makes it from the folder, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from pathlib import Path

from talltree.config import option
from talltree.errors import ConfigError, RunError

POSITIONAL = "run"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Writes the self-contained page of a run, a study, a comparison, an evaluation or a reward's curves."""

    run: str = option(MISSING, "Folder that rl, sweep, compare, evaluate, overopt or another stage wrote.")
    output: str | None = option(None, "HTML file of a run or a study; null means RUN/report.html.")
    max_samples: int | None = option(
        None,
        "Most stories on the page of a run, spread evenly over the steps; null means every one.",
        unit="samples",
        low=1,
    )


def run(config: Config) -> None:
    """Writes the page of a run, a study, a comparison, an evaluation or an overoptimisation curve.

    Raises RunError if there is no run folder, its files are damaged, or `output` is a file that is no report;
    ConfigError for an option that a page of this kind does not have.
    """
    # matplotlib and pyarrow, which --help need not pay
    from talltree.report import comparison, evaluation, overoptimisation, page, study

    folder = Path(config.run)
    if (folder / "rounds").is_dir():
        rounds = sorted(folder.glob("rounds/*/rl"))
        named = f"such as {rounds[-1]}" if rounds else "once it has begun"
        raise RunError(
            f"{folder} is a loop of rounds, which have a page each; name a round's rl folder, {named}"
        )
    fixed = {
        comparison.COMPARISON: comparison.write,
        overoptimisation.RESULT: overoptimisation.write,
        evaluation.RESULTS: evaluation.write,
    }
    is_study = study.is_study(folder)
    for name, write in fixed.items():
        if not is_study and (folder / name).is_file():
            _fixed(config, write, folder / name)
            return
    if is_study:
        written = study.write(folder, config.output)
    else:
        written = page.write(folder, config.output, config.max_samples)
    print(f"report: {written.path} ({written.bytes / 1e6:.1f} MB, {written.samples:,} stories)")


def _fixed(config: Config, write: Callable[[Path], Path], source: Path) -> None:
    """The page of a folder whose page has one place and one length."""
    for name in ("output", "max_samples"):
        if getattr(config, name) is not None:
            raise ConfigError(f"{name} is for runs; the page made from {source} takes no options")
    try:
        print(f"report: {write(source.parent)}")
    except json.JSONDecodeError as error:
        raise RunError(f"{source.parent}: {source.name} or samples.jsonl is damaged: {error}") from error
