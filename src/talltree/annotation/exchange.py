"""Judgements to and from other programs: CSV, and prompt/chosen/rejected pairs."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from talltree import checkpoint
from talltree.data.preferences import FIELDS, Judgement, from_rows, pairs, read_preferences, to_row
from talltree.errors import DataError

_CANDIDATE = re.compile(r"candidate_(0|[1-9][0-9]{0,3})")


class Pairs(NamedTuple):
    """prompt/chosen/rejected rows, and what they leave out.

    undecided: judgements that settle no pair. with_margin: rows that have one.
    """

    rows: list[dict[str, Any]]
    undecided: int
    with_margin: int


def read_judgements(path: Path | str, ignore: Collection[str] = ()) -> list[Judgement]:
    """The judgements of a .jsonl or .csv file. Raises DataError for another ending, and as the readers do."""
    path = Path(path).expanduser()
    if path.suffix == ".csv":
        return read_csv(path, ignore)
    if path.suffix in (".jsonl", ".json"):
        return read_preferences(path, ignore)
    raise DataError(f"preferences {path}: ending {path.suffix!r} is not known; use .jsonl or .csv")


# CSV


def write_csv(path: Path | str, judgements: Sequence[Judgement]) -> None:
    """A header and one row a judgement: candidate_0, candidate_1, ... and the other fields of Judgement.

    k is the number of candidates, because an empty cell may be an empty text. Lists are numbers with spaces
    between. A field at its default is an empty cell. UTF-8, cells quoted where they must be.
    """
    most = max((len(judgement.candidates) for judgement in judgements), default=0)
    texts = [f"candidate_{number}" for number in range(most)]
    header = ["prompt", "k", *texts, *(name for name in FIELDS if name not in ("prompt", "candidates"))]
    with checkpoint.replacing(Path(path)) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header, restval="")
        writer.writeheader()
        for judgement in judgements:
            row = {name: _cell(value) for name, value in to_row(judgement).items() if name != "candidates"}
            row |= dict(zip(texts, judgement.candidates, strict=False))
            writer.writerow(row | {"k": str(len(judgement.candidates))})


def read_csv(path: Path | str, ignore: Collection[str] = ()) -> list[Judgement]:
    """The judgements of a CSV file with the columns of `write_csv`, or prompt, chosen, rejected and margin.

    Columns may be absent; without k, a row's empty candidates at its end are none. Raises DataError, naming
    file, line and column, for whatever is malformed and for an unknown column that `ignore` does not name.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"preferences {path} not found; give a .csv file of judgements")
    judgements = from_rows(_csv_rows(path, ignore), ignore)
    if not judgements:
        raise DataError(f"preferences {path} holds no judgement")
    return judgements


def _csv_rows(path: Path, ignore: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            twice = [name for name in header if header.count(name) > 1]
            if twice:
                raise DataError(f"{path}, line 1: the column {twice[0]!r} is there twice")
            before = reader.line_num
            for cells in reader:
                where, before = f"{path}, line {before + 1}", reader.line_num
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DataError(
                        f"{where}: {len(cells)} cells, {len(header)} columns; quote cells that hold commas"
                    )
                row = {name: cell for name, cell in zip(header, cells, strict=True) if name not in ignore}
                try:
                    typed = _typed(row)
                except DataError as error:
                    raise DataError(f"{where}: {error}") from None
                yield where, typed
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV ({error})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}); convert the file first") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _typed(row: Mapping[str, str]) -> dict[str, Any]:
    """The row of a Judgement that a row of cells stands for."""
    texts = {int(match[1]): cell for name, cell in row.items() if (match := _CANDIDATE.fullmatch(name))}
    typed: dict[str, Any] = {}
    for name, cell in row.items():
        if name in _TYPES:
            if cell:
                typed[name] = _TYPES[name](name, cell)
        elif name != "k" and not _CANDIDATE.fullmatch(name):
            typed[name] = cell
    if texts:
        missing = next((number for number in range(len(texts)) if number not in texts), None)
        if missing is not None:
            raise DataError(f"candidate_{missing} is missing, though candidate_{max(texts)} is there")
        typed["candidates"] = _candidates([texts[number] for number in range(len(texts))], row.get("k", ""))
    if typed.get("time") == "":
        del typed["time"]
    return typed


def _candidates(cells: list[str], k: str) -> list[str]:
    if not k:
        while cells and not cells[-1]:
            cells.pop()
        return cells
    size = _whole("k", k)
    if not 1 <= size <= len(cells):
        raise DataError(
            f"k {size} is not a number of candidates from 1 to {len(cells)}, the columns there are"
        )
    if any(cells[size:]):
        raise DataError(f"k is {size}, but candidate_{size} or a later one holds a text")
    return cells[:size]


def _whole(name: str, cell: str) -> int:
    if not re.fullmatch(r"\s*[-+]?[0-9]{1,9}\s*", cell):
        raise DataError(f"{name} {cell[:40]!r} is not a whole number")
    return int(cell)


def _number(name: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise DataError(f"{name} {cell[:40]!r} is not a number") from None


def _wholes(name: str, cell: str) -> list[int]:
    return [_whole(name, part) for part in cell.split()]


def _numbers(name: str, cell: str) -> list[float]:
    return [_number(name, part) for part in cell.split()]


def _truth(name: str, cell: str) -> bool:
    if cell.strip().lower() not in ("true", "false"):
        raise DataError(f"{name} {cell[:40]!r} is not true or false")
    return cell.strip().lower() == "true"


_TYPES: dict[str, Callable[[str, str], Any]] = {
    "best": _whole,
    "worst": _whole,
    "ranking": _wholes,
    "order": _wholes,
    "ratings": _numbers,
    "seconds": _number,
    "margin": _number,
    "tie": _truth,
}


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(repr, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


# Pairs


def pair_rows(judgements: Sequence[Judgement], margins: bool) -> Pairs:
    """prompt, chosen and rejected for every pair that is settled, with a margin where every row has one.

    The margin is the judgement's own for two candidates, and the difference of the ratings where there are
    ratings. Raises DataError where no pair is settled, or where some rows have a margin and others none.
    """
    rows: list[dict[str, Any]] = []
    found: list[float | None] = []
    undecided = 0
    for judgement in judgements:
        settled = pairs(judgement)
        undecided += not settled
        for winner, loser in settled:
            chosen, rejected = judgement.candidates[winner], judgement.candidates[loser]
            rows.append({"prompt": judgement.prompt, "chosen": chosen, "rejected": rejected})
            found.append(_margin(judgement, winner, loser))
    if not rows:
        raise DataError(
            f"none of the {len(judgements)} judgements prefers one candidate to another; no pair to write"
        )
    known = [margin for margin in found if margin is not None]
    if margins and 0 < len(known) < len(rows):
        raise DataError(
            f"{len(known)} of {len(rows)} pairs have a margin, and readers of pairs need it in all or none; "
            "set exchange.margins to false to write none"
        )
    if margins and known:
        for row, margin in zip(rows, found, strict=True):
            row["margin"] = margin
    return Pairs(rows, undecided, len(known) if margins else 0)


def write_pairs(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as JSONL, which TRL's trainers, OpenRLHF and `read_preferences` read."""
    with (
        checkpoint.replacing(Path(path)) as partial,
        partial.open("w", encoding="utf-8", newline="\n") as file,
    ):
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _margin(judgement: Judgement, winner: int, loser: int) -> float | None:
    if judgement.ratings is not None:
        return float(judgement.ratings[winner] - judgement.ratings[loser])
    return judgement.margin if len(judgement.candidates) == 2 else None
