"""The options of the annotate stage; see docs/annotate.md."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from talltree.annotation.study import MAX_K, MAX_OVERLAP, MAX_POINTS, Kind
from talltree.config import option
from talltree.errors import ConfigError
from talltree.stages.annotate.options import Exchange, Simulation, Statistics

ACTIONS = {
    "new": "talltree.stages.annotate.new",
    "serve": "talltree.stages.annotate.serve",
    "stats": "talltree.stages.annotate.stats",
    "simulate": "talltree.stages.annotate.simulate",
    "export": "talltree.stages.annotate.exchange",
    "import": "talltree.stages.annotate.exchange",
}
"""Action -> the module whose `run(config)` does it, imported only when asked for."""

Action = Literal["new", "serve", "stats", "simulate", "export", "import"]


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Options of `talltree annotate serve`: where the page is, and who may see it."""

    host: str = option("127.0.0.1", "address to listen on; any but this machine's own needs password_file")
    port: int = option(8420, "port to listen on; 0 takes a free one", low=0, high=65535)
    password_file: str | None = option(
        None, "file whose first line is a password that everybody must give, with any user name"
    )
    allowed_hosts: list[str] = option(
        [], "further names or NAME:PORT by which browsers reach the page, as in '[labels.local, 10.0.0.5]'"
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of `talltree annotate`."""

    action: Action = option(dataclasses.MISSING, "what to do with the study")
    folder: str = option(dataclasses.MISSING, "the study's folder; `new` makes it")
    samples: list[str] | str = option(
        [],
        "new: run folders, .parquet or .jsonl files (docs/annotate.md), as in '[a.jsonl, b.jsonl]'; "
        "each is a source of its own",
    )
    step: int | None = option(None, "new: step of a run's samples to judge; null: the last", low=0)
    kind: Kind = option("bws", "new: best and worst of k, best of k, better of two, or ratings")
    k: int | None = option(
        None, "new: candidates shown together; null: 4, of pairs 2, of ratings 1", low=1, high=MAX_K
    )
    appearances: int = option(1, "new: tuples that each candidate is in", low=1)
    across_sources: bool = option(
        False, "new: each tuple has candidates of different sources, for a blind comparison of models"
    )
    tuples: int | None = option(None, "new: tuples to keep of the design; null: all", unit="tuples", low=1)
    overlap: int = option(
        1, "new: different annotators for each tuple", unit="annotators", low=1, high=MAX_OVERLAP
    )
    repeats: float = option(
        0.0, "new: share of an annotator's tuples that come back once, unannounced", low=0, high=1
    )
    annotators: list[str] | str = option(
        [], "new, serve: names of annotators to add, as in '[Anna, Ben]'; each gets a private link"
    )
    question: str = option("", "new: what annotators are asked; empty: a question that fits the kind")
    criteria: list[str] = option(
        [], "new: what ratings are given for, as in '[grammar, plot]'; empty: quality"
    )
    points: int = option(5, "new: ratings run from 1 to this", low=2, high=MAX_POINTS)
    ties: bool = option(True, "new: pairs may be answered with no preference")
    seed: int = option(0, "new: seed of the design and of the orders in which things are shown", low=0)
    serving: Serving = option(Serving(), "serve: address, port, password")
    simulate: Simulation = option(Simulation(), "simulate: annotators with a hidden utility")
    stats: Statistics = option(Statistics(), "stats: scores and agreement")
    exchange: Exchange = option(Exchange(), "export, import: file and format")

    def check(self) -> None:
        """Raises ConfigError for combinations that no study can have."""
        if self.action != "new":
            return
        if not self.samples:
            raise ConfigError("new needs --samples: a run folder, or a .parquet or .jsonl file with samples")
        low = {"bws": 3, "best": 2, "pair": 2, "rating": 1}[self.kind]
        if self.k is not None and (self.k < low or (self.kind == "pair" and self.k != 2)):
            some = "2" if self.kind == "pair" else f"at least {low}"
            raise ConfigError(f"k {self.k}: kind {self.kind} shows {some} together")
        if self.criteria and self.kind != "rating":
            raise ConfigError(f"criteria belong to kind rating, not {self.kind}; leave them out")

    @property
    def size(self) -> int:
        """Candidates shown together."""
        return self.k or {"bws": 4, "best": 4, "pair": 2, "rating": 1}[self.kind]


def listed(value: list[str] | str) -> list[str]:
    """A list option that may be given as one text."""
    return [value] if isinstance(value, str) else list(value)
