"""From shards in object storage to raw rows, in their order, row group by row group.

A shard is fetched and checked while the one before it is decoded, each column in a thread
of its own, until some batches wait to be asked for. Memory holds some thousand rows and some pieces
of a file, however large shards and row groups are.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcl.contract.dataset import Shard
from cmcl.contract.errors import InvalidDataset, StorageUnavailable
from workers.storage.scratch import Scratch
from workers.storage.shards import FEATURES, open_in_pieces, rows_at_once
from workers.storage.verified import open_verified
from workers.train.rows.prefetch import Ahead

_SHARDS_AT_ONCE = 2
# A MiB of float16 in either column: larger batches fall out of the cache before they are taken up.
_VALUES_AT_ONCE, _BATCHES_AHEAD = 1 << 20, 8


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


@dataclass(frozen=True)
class _Decoding:
    """A checked shard whose columns are being decoded; `stack` ends that and closes the file."""

    stack: ExitStack
    first: Ahead[np.ndarray]
    second: Ahead[np.ndarray]

    def rows(self) -> Iterator[RawRows]:
        """All of them. Raises InvalidDataset if the file was changed meanwhile."""
        with self.stack:
            for first_BF, second_BG in zip(self.first, self.second, strict=True):
                yield RawRows(first_BF, second_BG)


def read_rows(
    shards: Sequence[Shard], start: int, stop: int, scratch: Scratch | None = None
) -> Generator[RawRows]:
    """Rows `start` to `stop` of the dataset; `scratch` is for copies, of two shards at a time.

    Arrow takes its memory from jemalloc from then on. Raises InvalidDataset, StorageUnavailable.
    """
    _take_memory_from_jemalloc()
    parts, scratch = _parts(shards, start, stop), scratch or Scratch()
    with ThreadPoolExecutor(_SHARDS_AT_ONCE, "shards") as threads:
        begun = deque(
            threads.submit(_begin, part, scratch) for part in islice(parts, _SHARDS_AT_ONCE)
        )
        try:
            while begun:
                yield from begun.popleft().result().rows()
                begun.extend(threads.submit(_begin, part, scratch) for part in islice(parts, 1))
        finally:
            for unread in begun:
                unread.add_done_callback(_leave)


def _take_memory_from_jemalloc() -> None:
    """Where Arrow was built with it. In every second process, Arrow's default made reading a third slower."""
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())


def _begin(part: _Part, scratch: Scratch) -> _Decoding:
    with ExitStack() as stack:
        source = stack.enter_context(open_verified(part.shard, scratch).reading())
        first, second = (
            stack.enter_context(closing(Ahead(_column(part, source, name), _BATCHES_AHEAD)))
            for name in FEATURES
        )
        return _Decoding(stack.pop_all(), first, second)


def _leave(unread: Future[_Decoding]) -> None:
    """What was wrong with it matters to nobody."""
    with suppress(InvalidDataset, StorageUnavailable):
        unread.result().stack.close()


def _parts(shards: Sequence[Shard], start: int, stop: int) -> Iterator[_Part]:
    """The shards that have some of the rows, with which of theirs."""
    first = 0
    for shard in shards:
        begin, end = max(start - first, 0), min(stop - first, shard.rows)
        if begin < end:
            yield _Part(shard, begin, end)
        first += shard.rows


def _column(part: _Part, source: pa.NativeFile, name: str) -> Iterator[np.ndarray]:
    """One side's features of these rows; those of both sides come in batches of the same lengths."""
    file = open_in_pieces(source)
    groups, position = _row_groups(file, part)
    rows = rows_at_once(file.schema_arrow, _VALUES_AT_ONCE)
    for batch in file.iter_batches(rows, row_groups=groups, columns=[name], use_threads=False):
        begin = max(part.start - position, 0)
        end = min(part.stop - position, batch.num_rows)
        position += batch.num_rows
        if begin < end:
            yield _values(batch.column(name).slice(begin, end - begin))
        if position >= part.stop:
            return


def _row_groups(file: pq.ParquetFile, part: _Part) -> tuple[list[int], int]:
    """The row groups that have some of the rows, and the number of the first row in them."""
    rows = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    ends = np.cumsum(rows)
    needed = np.flatnonzero((ends > part.start) & (ends - rows < part.stop))
    return needed.tolist(), int(ends[needed[0]] - rows[needed[0]])


def _values(features: pa.FixedSizeListArray) -> np.ndarray:
    flat = features.flatten().to_numpy(zero_copy_only=False)
    values_BF: np.ndarray = flat.reshape(len(features), features.type.list_size)
    return values_BF
