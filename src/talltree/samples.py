"""The samples of a run: one parquet shard a step while it runs, one samples.parquet when it ends.

Both may exist at once: a continued run adds shards to a merged file, and a kill in the middle of merging
leaves shards whose rows are merged already. A shard counts only if its step is not in samples.parquet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talltree import checkpoint

if TYPE_CHECKING:
    import pyarrow as pa

MERGED = "samples.parquet"
SHARDS = "samples"


def column_types() -> dict[str, pa.DataType]:
    """Parquet type of each column; a column `reward/NAME` per reward component is float64 too."""
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    return {
        "step": pa.int64(),
        "prompt": pa.string(),
        "completion": pa.string(),
        "prompt_ids": ids,
        "completion_ids": ids,
        "reward": pa.float64(),
        "kl": pa.float64(),
        "logp": pa.float64(),
        "ref_logp": pa.float64(),
        "advantage": pa.float64(),
        "ended": pa.bool_(),
        "spans": pa.list_(ids),
    }


def write_shard(folder: Path, step: int, columns: Mapping[str, Sequence[Any]]) -> None:
    """Writes the rollouts of one step, atomically; the column "step" is filled in.

    Raises KeyError for an unknown column, ValueError for unequal lengths or a step already written.
    """
    from pyarrow import parquet

    path = _shard(folder, step)
    if path.exists():
        raise ValueError(f"{path} is already written; samples of a step are added once")
    table = _table(step, columns)
    with checkpoint.disk_errors(path):
        path.parent.mkdir(exist_ok=True)
    with checkpoint.replacing(path) as partial:
        parquet.write_table(table, partial, compression="zstd")


def read(folder: Path) -> pa.Table:
    """Every sample in the order of its steps; no rows, but the documented columns, if there are none."""
    import pyarrow as pa

    return pa.concat_tables([_schema(folder).empty_table(), *_tables(folder)], promote_options="default")


def merge(folder: Path) -> None:
    """Puts all shards into samples.parquet, one step in memory at a time, and removes them after that."""
    shards = _shards(folder)
    if not shards:
        return
    _write_merged(folder / MERGED, _schema(folder), _tables(folder))
    for _, shard in shards:
        shard.unlink()
    (folder / SHARDS).rmdir()


def set_aside_after(folder: Path, step: int, discarded: Path) -> None:
    """Moves the samples of every later step into `discarded`."""
    import pyarrow.compute as pc

    for number, shard in _shards(folder):
        if number > step:
            shard.rename(checkpoint.free_name(discarded / shard.name))
    merged = folder / MERGED
    if not any(number > step for number in _merged_steps(merged)):
        return
    schema = _schema(folder)
    later = (table.filter(pc.field("step") > step) for table in _row_groups(merged))
    _write_merged(checkpoint.free_name(discarded / MERGED), schema, later)
    kept = (table.filter(pc.field("step") <= step) for table in _row_groups(merged))
    _write_merged(merged, schema, kept)


def _table(step: int, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    import pyarrow as pa

    types = column_types()
    unknown = [name for name in columns if name not in types and not name.startswith("reward/")]
    if unknown or "step" in columns:
        raise KeyError(
            f"sample columns {unknown or ['step']} are not among {[name for name in types if name != 'step']}"
        )
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"sample columns differ in length: {lengths}")
    filled = {"step": [step] * next(iter(lengths.values())), **columns}
    return pa.table(
        {name: pa.array(list(values), types.get(name, pa.float64())) for name, values in filled.items()}
    )


def _shard(folder: Path, step: int) -> Path:
    return folder / SHARDS / f"{step:08d}.parquet"


def _shards(folder: Path) -> list[tuple[int, Path]]:
    paths = (folder / SHARDS).glob("[0-9]*.parquet")
    return sorted((int(path.stem), path) for path in paths)


def _files(folder: Path) -> list[Path]:
    merged = folder / MERGED
    steps = _merged_steps(merged)
    shards = [path for number, path in _shards(folder) if number not in steps]
    return [merged, *shards] if merged.exists() else shards


def _merged_steps(merged: Path) -> set[int]:
    from pyarrow import parquet

    if not merged.exists():
        return set()
    return set(parquet.read_table(merged, columns=["step"])["step"].unique().to_pylist())


def _schema(folder: Path) -> pa.Schema:
    import pyarrow as pa
    from pyarrow import parquet

    files = _files(folder)
    if not files:
        return pa.schema(column_types().items())
    return pa.unify_schemas([parquet.read_schema(path) for path in files], promote_options="default")


def _tables(folder: Path) -> Iterator[pa.Table]:
    for path in _files(folder):
        yield from _row_groups(path)


def _row_groups(path: Path) -> Iterator[pa.Table]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for index in range(file.num_row_groups):
            yield file.read_row_group(index)


def _write_merged(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    with (
        checkpoint.replacing(path) as partial,
        parquet.ParquetWriter(partial, schema, compression="zstd") as writer,
    ):
        for table in tables:
            if table.num_rows:
                writer.write_table(pa.concat_tables([schema.empty_table(), table], promote_options="default"))
