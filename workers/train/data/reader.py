"""Read the rows of shards in object storage, in order, row group by row group.

A shard is fetched and verified while the one before it is decoded. Each column is decoded in its own
thread, up to a number of batches ahead. Memory holds some thousand rows and some pieces of a file,
however large shards and row groups are.

Shapes: B neighbouring rows, F and G raw widths of the two sides.
"""

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cmcl.contract.dataset import Shard
from cmcl.contract.errors import InvalidDataset, StorageUnavailable
from workers.files.scratch import Scratch, open_verified
from workers.files.shards import FEATURES, open_in_pieces, rows_at_once, use_jemalloc
from workers.model.rows import PairedRows, content_keys

T = TypeVar("T")

_LOOK_SECONDS = 0.1


class Prefetcher(Generic[T]):
    """Items made in a thread, up to `depth` of them ahead. Must be closed.

    Order is kept, and an error is raised in the place of the item that caused it.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._left = threading.Event()
        self._maker = threading.Thread(
            target=_make, args=[items, self._made, self._left], daemon=True, name="prefetch"
        )
        self._maker.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            item, error = self._made.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    def close(self) -> None:
        """End the thread, which closes `items`."""
        self._left.set()
        self._maker.join()


def prefetched(items: Iterator[T], depth: int) -> Generator[T]:
    """Yield the items of a `Prefetcher`, and close it when the generator ends."""
    with closing(Prefetcher(items, depth)) as ahead:
        yield from ahead


def _make(
    items: Iterator[T],
    ahead: "queue.Queue[tuple[T | None, BaseException | None]]",
    left: threading.Event,
) -> None:
    """Put the items, then either None or the error that ended them."""
    end: tuple[T | None, BaseException | None] = (None, None)
    try:
        with closing(items):  # type: ignore[type-var]
            for item in items:
                if not _put(ahead, (item, None), left):
                    return
    except BaseException as error:  # noqa: BLE001
        # Raised in the thread that takes the items.
        end = (None, error)
    _put(ahead, end, left)


def _put(
    ahead: "queue.Queue[tuple[T | None, BaseException | None]]",
    entry: tuple[T | None, BaseException | None],
    left: threading.Event,
) -> bool:
    """Put an entry; return False once the prefetcher is closed."""
    while not left.is_set():
        try:
            ahead.put(entry, timeout=_LOOK_SECONDS)
        except queue.Full:
            continue
        return True
    return False


_SHARDS_AT_ONCE = 2
# 2 MiB of float16 per column: larger batches leave the cache before they are used.
_VALUES_AT_ONCE, _BATCHES_AHEAD = 1 << 20, 8


@dataclass(frozen=True)
class Records:
    """Neighbouring rows of a dataset as they are stored, float16 or float32, in numpy.

    `known_keys_B2`: content keys that were read from disk together with the rows.
    """

    first_BF: np.ndarray
    second_BG: np.ndarray
    known_keys_B2: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.first_BF)

    @cached_property
    def keys_B2(self) -> np.ndarray:
        """Content keys of both sides (int64), hashed on first use."""
        if self.known_keys_B2 is not None:
            return self.known_keys_B2
        return np.stack([content_keys(side) for side in (self.first_BF, self.second_BG)], axis=1)

    def hashed(self) -> "Records":
        """These rows with their content keys computed now."""
        return Records(self.first_BF, self.second_BG, self.keys_B2)

    def at(self, index: np.ndarray | slice) -> "Records":
        """Some of the rows."""
        return Records(self.first_BF[index], self.second_BG[index], self.keys_B2[index])

    def tensors(self) -> PairedRows:
        """The same rows as tensors."""
        first_keys, second_keys = self.keys_B2.T
        sides = (self.first_BF, self.second_BG, first_keys, second_keys)
        # Copied where memory is Arrow's (read-only) or strided, as in records from the disk.
        return PairedRows(
            *(torch.from_numpy(np.require(side, requirements=["C", "W"])) for side in sides)
        )


def joined(parts: Sequence[Records]) -> Records:
    """Concatenate; float16 next to float32 becomes float32."""
    return Records(
        np.concatenate([part.first_BF for part in parts]),
        np.concatenate([part.second_BG for part in parts]),
        np.concatenate([part.keys_B2 for part in parts]),
    )


def regrouped(parts: Iterable[Records], rows: int) -> Iterator[Records]:
    """The same rows in groups of at least `rows`; the last group may be smaller."""
    waiting: list[Records] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= rows:
            yield joined(waiting)
            waiting = []
    if waiting:
        yield joined(waiting)


@dataclass(frozen=True)
class _Part:
    """Rows `start` to `stop` of a shard."""

    shard: Shard
    start: int
    stop: int


@dataclass(frozen=True)
class _Decoding:
    """A verified shard whose columns are being decoded. Closing `stack` ends that and closes the file."""

    stack: ExitStack
    first: Prefetcher[np.ndarray]
    second: Prefetcher[np.ndarray]

    def rows(self) -> Iterator[Records]:
        """All rows of the part. Raises InvalidDataset if the file was modified in between."""
        with self.stack:
            for first_BF, second_BG in zip(self.first, self.second, strict=True):
                yield Records(first_BF, second_BG)


def read_rows(
    shards: Sequence[Shard], start: int, stop: int, scratch: Scratch | None = None
) -> Generator[Records]:
    """Rows `start` to `stop` of the dataset. `scratch` is for copies of two shards at a time.

    Sets Arrow's memory pool to jemalloc. Raises InvalidDataset, StorageUnavailable.
    """
    use_jemalloc()
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
                unread.add_done_callback(_close)


def _begin(part: _Part, scratch: Scratch) -> _Decoding:
    with ExitStack() as stack:
        source = stack.enter_context(open_verified(part.shard, scratch).reading())
        first, second = (
            stack.enter_context(closing(Prefetcher(_column(part, source, name), _BATCHES_AHEAD)))
            for name in FEATURES
        )
        return _Decoding(stack.pop_all(), first, second)


def _close(unread: Future[_Decoding]) -> None:
    """Close a shard that is no longer needed, and ignore what was wrong with it."""
    with suppress(InvalidDataset, StorageUnavailable):
        unread.result().stack.close()


def _parts(shards: Sequence[Shard], start: int, stop: int) -> Iterator[_Part]:
    """The shards that have some of the rows, and which of their rows those are."""
    first = 0
    for shard in shards:
        begin, end = max(start - first, 0), min(stop - first, shard.rows)
        if begin < end:
            yield _Part(shard, begin, end)
        first += shard.rows


def _column(part: _Part, source: pa.NativeFile, name: str) -> Iterator[np.ndarray]:
    """One side's features of these rows, in batches whose lengths are the same for both sides."""
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
    """The row groups that have some of the rows, and the number of their first row."""
    rows = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    ends = np.cumsum(rows)
    needed = np.flatnonzero((ends > part.start) & (ends - rows < part.stop))
    return needed.tolist(), int(ends[needed[0]] - rows[needed[0]])


def _values(features: pa.FixedSizeListArray) -> np.ndarray:
    flat = features.flatten().to_numpy(zero_copy_only=False)
    values_BF: np.ndarray = flat.reshape(len(features), features.type.list_size)
    return values_BF
