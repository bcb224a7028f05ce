"""Shards of paired features for streamed training, with any row groups."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcl.contract.dataset import Shard
from workers.storage.shards import describe_shard


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
