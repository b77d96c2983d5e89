"""The options of a corpus, the same in every stage that reads one; docs/corpora.md explains them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from talltree.config import from_dict, option
from talltree.errors import ConfigError

SPLITS = ("train", "validation", "test")
TEXT_ENDINGS = (".txt", ".train", ".dev", ".test")
"""Endings of plain text; the last three are those of the BabyLM challenge's files."""
FILE_ENDINGS = (".jsonl", *TEXT_ENDINGS)
BOUNDARIES = ("auto", "line", "blank_line", "separator", "file")
FIELD = re.compile(r"\{([^{}]+)\}")
"""A column's name in a template."""
_DOCUMENTS = "what a document is: auto (text: separator; JSONL and datasets: a row), line, blank_line, ..."
_LINES = "with documents line: how many lines make one document"
_PROMPT = "template such as '{title}: {post}': the part of a row that is only read; splits go by it"
_COMPLETION = "template such as ' {summary}': the part that is written; used in place of `column`"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One row of `corpus.sources`."""

    name: str = option("", "what the manifest calls it (default: the last part of path or dataset)")
    path: str = option(
        "", ".txt or .jsonl file, folder of them, or folder with a hub dataset's parquet files"
    )
    dataset: str = option(
        "", "name for `datasets`; with a path too, it is read where the path does not exist"
    )
    config_name: str | None = option(None, "configuration of the dataset, such as 3.0.0")
    data_files: str | None = option(None, "file or pattern in the dataset, or hf://... with dataset: text")
    revision: str | None = option(None, "commit or tag of the dataset, so that it stays the same")
    split: str = option("train", "split of the dataset that is read")
    into: str = option("hash", "where its documents go: by hash, or all to one", choices=("hash", *SPLITS))
    share: float | None = option(None, "weight of this source in words of training text", above=0)
    column: str = option("text", "column of JSONL rows or of a dataset that holds the text")
    prompt: str = option("", _PROMPT)
    completion: str = option("", _COMPLETION)
    documents: str = option("auto", _DOCUMENTS, choices=BOUNDARIES)
    separator: str = option("<|endoftext|>", "what stands between documents with documents separator")
    lines_per_document: int = option(1, _LINES, unit="lines", low=1)

    def check(self) -> None:
        """Raises ConfigError for fields that do not go together."""
        if not self.path and not self.dataset:
            raise ConfigError("path or dataset is required")
        if not self.separator:
            raise ConfigError("separator is empty; give a text such as <|endoftext|>")
        if self.lines_per_document > 1 and self.documents != "line":
            raise ConfigError(f"lines_per_document needs documents: line, not {self.documents}")
        if self.prompt and not self.completion:
            raise ConfigError("prompt is given without completion")
        if self.completion and not FIELD.search(self.completion):
            raise ConfigError(f"completion {self.completion!r} names no column; write it as {{column}}")
        if self.completion and self.documents != "auto":
            raise ConfigError(f"a completion makes each row one document; remove documents: {self.documents}")

    @property
    def label(self) -> str:
        """The name it goes by: no folder of the machine is in it."""
        return self.name or (Path(self.path).name if self.path else self.dataset)


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """What is read as documents, how it is split, mixed and cut down."""

    sources: list[dict[str, Any]] = option([], "several sources in place of dataset_name (YAML)")
    column: str = option("text", "column of JSONL rows or of a dataset that holds the text")
    prompt: str = option("", _PROMPT)
    completion: str = option("", _COMPLETION)
    documents: str = option("auto", _DOCUMENTS, choices=BOUNDARIES)
    separator: str = option("<|endoftext|>", "what stands between the documents of a text file")
    lines_per_document: int = option(1, _LINES, unit="lines", low=1)
    validation_share: float = option(0.01, "share of the documents that is held out", above=0, high=0.5)
    test_share: float = option(0.0, "share that is held out a second time, as test", low=0, high=0.4)
    overlaps: str = option(
        "refuse",
        "a document in two explicit splits: refuse, or keep it in the held-out one only",
        choices=("refuse", "keep_held_out"),
    )
    mixing: str = option(
        "downsample",
        "downsample: each source down to its share, nothing twice; all: everything, shares reported only",
        choices=("downsample", "all"),
    )
    words: int | None = option(None, "cut training text down to this size", unit="words", low=1)
    subset: float = option(
        1.0, "nested share of the training documents: 0.05 is part of 0.1", above=0, high=1
    )
    near_duplicates: bool = option(True, "look for near-duplicates across splits and report them")
    cache_dir: str | None = option(None, "folder of tokenised corpora (default: cache/ in the run folder)")

    def check(self) -> None:
        """Raises ConfigError for a row of `sources` that is not as `Source` says, or for shares on some."""
        for number, row in enumerate(self.sources, start=1):
            _source(self, row, f"corpus.sources, row {number}")
        training = [row for row in self.sources if row.get("into", "hash") in ("hash", "train")]
        weighed = sum(row.get("share") is not None for row in training)
        if 0 < weighed < len(training):
            raise ConfigError(
                f"corpus.sources: {weighed} of {len(training)} rows with training text have a share; "
                "give one to all of them or to none"
            )


def sources_of(dataset_name: str, options: CorpusOptions) -> tuple[Source, ...]:
    """The sources of a corpus: the rows of `options.sources`, or the one that `dataset_name` names.

    dataset_name is a path if it exists or looks like one, or else a name for `datasets`. Raises ConfigError
    if both or neither are given, or for a row that is not as `Source` says.
    """
    if dataset_name and options.sources:
        raise ConfigError(f"dataset_name {dataset_name} and corpus.sources are both given; remove one")
    if not dataset_name and not options.sources:
        raise ConfigError("--dataset_name is required: a file, a folder, a hub dataset; or corpus.sources")
    if options.sources:
        rows = enumerate(options.sources, start=1)
        found = tuple(_source(options, row, f"corpus.sources, row {number}") for number, row in rows)
        labels = [source.label for source in found]
        for label in labels:
            if labels.count(label) > 1:
                raise ConfigError(f"corpus.sources: two sources are called {label}; give each a name")
        return found
    path = Path(dataset_name).expanduser()
    looks_local = dataset_name.startswith((".", "/", "~")) or dataset_name.count("/") > 1
    is_file = path.suffix in (*FILE_ENDINGS, ".json", ".csv", ".parquet")
    key = "path" if looks_local or is_file or path.exists() else "dataset"
    return (_source(options, {key: dataset_name}, "dataset_name"),)


_PER_SOURCE = ("column", "prompt", "completion", "documents", "separator", "lines_per_document")


def _source(options: CorpusOptions, row: Mapping[str, Any], where: str) -> Source:
    everywhere = {key: value for key, value in asdict(options).items() if key in _PER_SOURCE}
    # A row that says what its documents are is not to meet the rules of another kind.
    if "documents" in row:
        del everywhere["lines_per_document"]
    if "completion" in row:
        del everywhere["documents"], everywhere["lines_per_document"]
    try:
        return from_dict(Source, {**everywhere, **row})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
