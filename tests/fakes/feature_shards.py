"""Real Parquet shards, with options for every defect."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcl.contract.dataset import Shard, ShardRef
from workers.files.shards import Rows, describe_shard, download, open_in_pieces, rows_of


def feature_table(
    rows: int,
    widths: tuple[int, int] = (4, 3),
    prefix: str = "row",
    seed: int = 0,
) -> pa.Table:
    """Random finite features under unique ids."""
    generator = np.random.default_rng(seed)
    columns: dict[str, pa.Array] = {"id": pa.array([f"{prefix}-{row}" for row in range(rows)])}
    for name, width in zip(("feature_a", "feature_b"), widths, strict=True):
        values = generator.normal(size=rows * width).astype(np.float32)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
    return pa.table(columns)


def table_with_nan(rows: int, row: int = 3) -> pa.Table:
    """As `feature_table`, but the first feature of one row has a NaN."""
    table = feature_table(rows)
    values = table.column("feature_a").combine_chunks().flatten().to_numpy().copy()
    values[4 * row] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(values), 4)
    return table.set_column(table.column_names.index("feature_a"), "feature_a", column)


def write_shard(path: Path, table: pa.Table) -> ShardRef:
    """Write the table; its reference has no digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return ShardRef(uri=path.resolve().as_uri())


def fetch(ref: ShardRef | Shard, path: Path) -> Shard:
    """Download a shard in the internal form to `path`, and return its properties. Raises as `download` does."""
    return describe_shard(path, ref.uri, download(ref, ref.uri, path))


def read_rows(paths: Sequence[Path], every: int = 1) -> Rows:
    """Rows of shards at these paths; see `rows_of`."""
    return rows_of(map(open_in_pieces, paths), every)


def write_pair_shard(
    path: Path, sides: tuple[np.ndarray, np.ndarray], group_rows: int = 50
) -> Shard:
    """One file; the type of the arrays is that of its columns."""
    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(side.reshape(-1)), side.shape[1])
        for name, side in zip(("feature_a", "feature_b"), sides, strict=True)
    }
    ids = pa.array([f"{path.stem}-{row}" for row in range(len(sides[0]))])
    pq.write_table(pa.table({"id": ids, **columns}), path, row_group_size=group_rows)
    return describe_shard(path, path.as_uri())


def write_pair_shards(
    folder: Path,
    first: np.ndarray,
    second: np.ndarray,
    lengths: Sequence[int],
    group_rows: int = 50,
) -> list[Shard]:
    """The rows, cut into files of these lengths."""
    ends = np.cumsum(lengths)
    assert ends[-1] == len(first) == len(second)
    return [
        write_pair_shard(
            folder / f"{number}.parquet",
            (first[end - length : end], second[end - length : end]),
            group_rows,
        )
        for number, (end, length) in enumerate(zip(ends, lengths, strict=True))
    ]


def numbered_rows(rows: int, widths: tuple[int, int] = (5, 3)) -> tuple[np.ndarray, np.ndarray]:
    """Row n has n + 1 in each of its numbers: it is unique, and exact in float16."""
    numbers = np.arange(1, rows + 1, dtype=np.float32)[:, None]
    first, second = (np.repeat(numbers, width, axis=1).astype(np.float16) for width in widths)
    return first, second
