"""Real Parquet shards, with options for every defect."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcl.contract.dataset import Shard, ShardRef
from workers.storage.shards import Rows, describe_shard, download, open_in_pieces, rows_of


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


def write_shard(path: Path, table: pa.Table) -> ShardRef:
    """Write the table; its reference has no digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return ShardRef(uri=path.resolve().as_uri())


def fetch(ref: ShardRef | Shard, path: Path) -> Shard:
    """Bring a shard in the internal form to `path`; what is so of it. Raises as `download` does."""
    return describe_shard(path, ref.uri, download(ref, ref.uri, path))


def read_rows(paths: Sequence[Path], every: int = 1) -> Rows:
    """Rows of shards at these paths; see `rows_of`."""
    return rows_of(map(open_in_pieces, paths), every)
