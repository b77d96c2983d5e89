"""Rows of a classification task from files on this machine or from the hub, in any of the usual layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from talltree.data.corpus_options import Source
from talltree.data.documents import jsonl_rows
from talltree.data.sources import load_dataset
from talltree.errors import DataError

SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("valid", "validation", "val", "dev", "validation_matched"),
    "validation_mismatched": ("validation_mismatched", "valid_mismatched"),
    "test": ("test",),
}
"""What files call a split."""
ENDINGS = (".jsonl", ".json")

Rows = Iterator[tuple[str, Mapping[str, Any]]]
"""(file and line, or row; the row)."""


class Found(NamedTuple):
    """The rows of a split and what they were read from, its name without the machine's folders."""

    rows: list[tuple[str, Mapping[str, Any]]]
    source: str


def local_split(folder: Path, rooms: Sequence[str], names: Sequence[str], split: str) -> Found | None:
    """A split in a local folder, or None where it is not there.

    Looked for in `folder` and in its subfolders `rooms`: NAME.SPLIT.jsonl, NAME/SPLIT.jsonl, and, as a clone
    of the hub's repository has them, NAME/SPLIT-*.parquet. Raises DataError for a folder that does not exist
    and for unreadable rows.
    """
    if not folder.is_dir():
        raise DataError(f"data folder {folder} does not exist; give the folder that holds the tasks' files")
    for room in (folder, *(folder / room for room in rooms)):
        for name in names:
            for called in SPLIT_NAMES[split]:
                for ending in ENDINGS:
                    for path in (room / f"{name}.{called}{ending}", room / name / f"{called}{ending}"):
                        if path.is_file():
                            return Found(list(jsonl_rows(path)), str(path.relative_to(folder)))
                parquet = sorted((room / name).glob(f"{called}-*.parquet")) if (room / name).is_dir() else []
                if parquet:
                    return Found(
                        list(_parquet_rows(parquet)), f"{parquet[0].parent.relative_to(folder)}/{called}"
                    )
    return None


def hub_split(dataset: str, config: str, split: str) -> Found:
    """A split of a dataset of the hub. Raises DataError where it cannot be had."""
    source = Source(dataset=dataset, config_name=config, split=split)
    where = f"{dataset}, {config}, {split}"
    loaded = load_dataset(source, dataset)
    return Found([(f"{where}, row {n}", row) for n, row in enumerate(loaded, start=1)], where)


def looked_for(folder: Path, rooms: Sequence[str], name: str, split: str) -> str:
    """Where a split of a task would have been found, in words."""
    called = SPLIT_NAMES[split][0]
    places = " and ".join(str(place) for place in (folder, *(folder / room for room in rooms)))
    return (
        f"looked for {name}.{called}.jsonl, {name}/{called}.jsonl and {name}/{called}-*.parquet in {places}"
    )


def _parquet_rows(paths: Sequence[Path]) -> Rows:
    import pyarrow
    from pyarrow import parquet

    for path in paths:
        try:
            rows = parquet.read_table(path).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(
                f"{path} cannot be read as parquet: {' '.join(str(error).split())[:120]}"
            ) from None
        for number, row in enumerate(rows, start=1):
            yield f"{path}, row {number}", row
