"""From shards in object storage to raw rows, in their order, row group by row group.

Two neighbouring shards are at work at a time, each in a thread: fetched, checked, then decoded until
two batches wait to be asked for. Memory holds some thousand rows and some pieces of a file, however
large shards and row groups are.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workers.contract.dataset import Shard
from workers.storage.scratch import Scratch
from workers.storage.shards import FEATURES, open_in_pieces, rows_at_once
from workers.storage.verified import open_verified
from workers.train.rows.prefetch import Ahead

_SHARDS_AT_ONCE = 2
_ROWS_AT_ONCE, _BATCHES_AHEAD = 4096, 2


@dataclass(frozen=True)
class RawRows:
    """Neighbouring rows of a dataset as they are stored: float16 or float32."""

    first_BF: np.ndarray
    second_BG: np.ndarray

    def __len__(self) -> int:
        return len(self.first_BF)


@dataclass(frozen=True)
class _Part:
    """Rows `start` to `stop` of a shard."""

    shard: Shard
    start: int
    stop: int


def read_rows(
    shards: Sequence[Shard], start: int, stop: int, scratch: Scratch | None = None
) -> Generator[RawRows]:
    """Rows `start` to `stop` of the dataset; `scratch` is for copies, of two shards at a time.

    Raises InvalidDataset, StorageUnavailable.
    """
    parts, scratch = _parts(shards, start, stop), scratch or Scratch()
    ahead = deque(_begun(part, scratch) for part in islice(parts, _SHARDS_AT_ONCE))
    try:
        while ahead:
            yield from ahead[0]
            ahead.popleft().close()
            ahead.extend(_begun(part, scratch) for part in islice(parts, 1))
    finally:
        for each in ahead:
            each.close()


def _begun(part: _Part, scratch: Scratch) -> Ahead[RawRows]:
    return Ahead(_checked_rows(part, scratch), _BATCHES_AHEAD)


def _parts(shards: Sequence[Shard], start: int, stop: int) -> Iterator[_Part]:
    """The shards that have some of the rows, with which of theirs."""
    first = 0
    for shard in shards:
        begin, end = max(start - first, 0), min(stop - first, shard.rows)
        if begin < end:
            yield _Part(shard, begin, end)
        first += shard.rows


def _checked_rows(part: _Part, scratch: Scratch) -> Iterator[RawRows]:
    with open_verified(part.shard, scratch).reading() as source:
        file = open_in_pieces(source)
        groups, position = _row_groups(file, part)
        rows = rows_at_once(file.schema_arrow, _ROWS_AT_ONCE)
        for batch in file.iter_batches(rows, row_groups=groups, columns=list(FEATURES)):
            begin = max(part.start - position, 0)
            end = min(part.stop - position, batch.num_rows)
            position += batch.num_rows
            if begin < end:
                yield _raw(batch.slice(begin, end - begin))
            if position >= part.stop:
                return


def _row_groups(file: pq.ParquetFile, part: _Part) -> tuple[list[int], int]:
    """The row groups that have some of the rows, and the number of the first row in them."""
    rows = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    ends = np.cumsum(rows)
    needed = np.flatnonzero((ends > part.start) & (ends - rows < part.stop))
    return needed.tolist(), int(ends[needed[0]] - rows[needed[0]])


def _raw(batch: pa.RecordBatch) -> RawRows:
    first_BF, second_BG = (_values(batch.column(name)) for name in FEATURES)
    return RawRows(first_BF, second_BG)


def _values(features: pa.FixedSizeListArray) -> np.ndarray:
    flat = features.flatten().to_numpy(zero_copy_only=False)
    values_BF: np.ndarray = flat.reshape(len(features), features.type.list_size)
    return values_BF
