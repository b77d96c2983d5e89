"""The page of a run: `talltree report RUN` writes report.html from the run folder alone, without torch."""

from __future__ import annotations

from dataclasses import MISSING, dataclass

from talltree.config import option

POSITIONAL = "run"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Writes the self-contained page of a run: curves, reward-KL path, histograms and every stored story."""

    run: str = option(MISSING, "Run folder, the output_dir that a stage wrote.")
    output: str | None = option(None, "HTML file to write; null means RUN/report.html.")
    max_samples: int | None = option(
        None,
        "Most stories on the page, spread evenly over the steps; null means every one.",
        unit="samples",
        low=1,
    )


def run(config: Config) -> None:
    """Writes the page and prints its path.

    Raises RunError if there is no run folder, its files are damaged, or `output` is a file that is no report.
    """
    from talltree.report import page  # matplotlib and pyarrow, which --help need not pay

    written = page.write(config.run, config.output, config.max_samples)
    print(f"report: {written.path} ({written.bytes / 1e6:.1f} MB, {written.samples:,} stories)")
