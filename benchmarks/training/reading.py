"""Reading of shards: the product's reader, which verifies every byte, and pyarrow's scan of the
files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from cmcl.contract.dataset import Shard
from workers.files.columns import FEATURES
from workers.files.shards import ROWS_IN_A_GROUP, describe_shard, write_shard
from workers.train.dataset import read_rows

_ROWS_AT_ONCE = 4096
# Arrow's default, which the product's reader may change.
_POOL = pa.default_memory_pool()

Write = Callable[[Path, Iterable[pa.RecordBatch]], object]


def as_users_do(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a table of features with pyarrow's defaults, but without compression, which is useless
    for features. Unlike the product's shards it stores validity for each number."""
    table = pa.Table.from_batches(list(batches))
    pq.write_table(
        table, path, compression="none", use_dictionary=False, row_group_size=ROWS_IN_A_GROUP
    )


def write_shards(
    folder: Path, shards: int, rows: int, width: int, write: Write = write_shard
) -> list[Shard]:
    """Write random float16 features of both sides, by default in the product's own format."""
    random = np.random.default_rng(0)
    found = []
    for number in range(shards):
        path = folder / f"{number}.parquet"
        write(path, _batches(random, number * rows, rows, width))
        found.append(describe_shard(path, path.as_uri()))
    return found


def _batches(
    random: np.random.Generator, first: int, rows: int, width: int
) -> Iterator[pa.RecordBatch]:
    for start in range(0, rows, _ROWS_AT_ONCE):
        count = min(_ROWS_AT_ONCE, rows - start)
        ids = pa.array([str(first + start + row) for row in range(count)])
        sides = [_features(random, count, width) for _ in FEATURES]
        yield pa.RecordBatch.from_arrays([ids, *sides], names=["id", *FEATURES])


def _features(random: np.random.Generator, rows: int, width: int) -> pa.FixedSizeListArray:
    values = random.standard_normal(rows * width, dtype=np.float32).astype(np.float16)
    return pa.FixedSizeListArray.from_arrays(pa.array(values), width)


def readers(shards: Sequence[Shard]) -> dict[str, Callable[[], int]]:
    """Return the readers. Each reads every row of both features once and returns their number."""
    return {"ours": partial(_ours, shards), "pyarrow": partial(_pyarrow, shards)}


def _ours(shards: Sequence[Shard]) -> int:
    return sum(len(rows) for rows in read_rows(shards, 0, sum(shard.rows for shard in shards)))


def _pyarrow(shards: Sequence[Shard]) -> int:
    """Read with pyarrow's default threads and read-ahead."""
    files = [shard.uri.removeprefix("file://") for shard in shards]
    scanner = ds.dataset(files, format="parquet").scanner(columns=list(FEATURES), memory_pool=_POOL)
    return sum(batch.num_rows for batch in scanner.to_batches())
