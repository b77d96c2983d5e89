"""Options of the actions simulate, stats, export and import: Config's groups simulate, stats and exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from talltree.config import option

Format = Literal["jsonl", "csv", "pairs"]


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Simulated annotators: whose utility, how noisy, how biased, how attentive."""

    annotators: int = option(1, "How many simulated annotators answer.", low=1, high=999)
    name: str = option(
        "simulated", "What they are called: NAME-1, NAME-2, ...; another kind needs another name."
    )
    reward: str = option(
        "",
        "Hidden utility: a reward as `rl` takes it, NAME, FILE.py:FUNCTION or a weighted sum of them.",
    )
    model_name_or_path: str = option(
        "",
        "Hidden utility instead: mean log-likelihood per token of the completion under this model, in nats.",
    )
    noise: float = option(
        0.0,
        "Temperature of the Gumbel noise added to the utility: choices follow Plackett-Luce with strengths "
        "utility / noise. 0 means none.",
        unit="utility",
        low=0,
    )
    position_bias: float = option(
        0.0, "Added to the utility of the candidate that stands first on the screen.", unit="utility"
    )
    lapses: float = option(0.0, "Share of answers that are drawn uniformly at random.", low=0, high=1)
    seed: int = option(
        0, "Seed of noise and lapses; an answer depends on it, the annotator and the task alone."
    )


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """How judgements are scored and compared."""

    regularisation: float = option(
        0.01,
        "Penalty of Bradley-Terry and Plackett-Luce: this times the sum of squared strengths.",
        unit="1 / nats²",
        above=0,
    )
    splits: int = option(100, "Random halves drawn for the split-half reliability.", low=2, high=100_000)
    resamples: int = option(
        1000, "Bootstrap resamples of units for the intervals of alpha.", low=100, high=100_000
    )
    fast_seconds: float | None = option(
        None,
        "Answers quicker than this are counted as fast; null means a third of the median over everybody.",
        unit="s",
        above=0,
    )
    seed: int = option(0, "Seed of the halves and the resamples.")


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Which file an export writes or an import reads, and in which format."""

    file: str | None = option(
        None,
        "The file; import needs it, null makes export write FOLDER/preferences.jsonl, .csv or -pairs.jsonl.",
    )
    format: Format | None = option(
        None,
        "jsonl: every field of every judgement; csv: the same in columns; pairs: prompt, chosen, rejected, "
        "margin as TRL and OpenRLHF read them (import takes them as jsonl). Null goes by the file's ending.",
    )
    margins: bool = option(True, "Whether pairs carry the margin, where every pair has one.")
    ignore: list[str] = option(
        [], "Columns of an imported file to leave out; any other unknown one is refused."
    )
