"""Rows of a verified dataset, from shards in object storage into training: in memory, or on a local disk.

A shard is fetched and verified while the one before it is decoded. Each column is decoded in its own
thread, up to a number of batches ahead. Memory holds some thousand rows and some pieces of a file,
however large shards and row groups are.

Of a dataset that does not fit into memory, each rank keeps its virtual shards on a local disk. The first pass reads the
user's files from object storage; all later ones read the disk. There rows are records of fixed width: Parquet is
decoded once instead of once per epoch, and a block of neighbouring rows is one read, independently of the row groups of
the user's files. Memory is what is being read; the rest is the system's page cache.

Shapes: B neighbouring rows, K rows of a window, L rows of this rank, F and G raw widths of the two sides.
"""

import os
import queue
import threading
import weakref
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
import torch

from cmcl.contract.dataset import DatasetManifest, Shard
from cmcl.contract.errors import InvalidDataset, StorageUnavailable
from cmcl.contract.model import ModelSpec
from workers.files.columns import FEATURES
from workers.files.shards import (
    Rows,
    Scratch,
    open_in_pieces,
    open_verified,
    rows_at_once,
    use_jemalloc,
)
from workers.model.heads import PairedRows, content_keys
from workers.train.distributed import World, rank_slice
from workers.train.rows import (
    CHUNK_ROWS,
    BatchPlan,
    LocalBatch,
    RowsInMemory,
    TrainingRows,
    Transform,
    VirtualShards,
    Window,
    block_rows,
    shard_windows,
)

T = TypeVar("T")

# Both features of all rows as float32; a rank may hold a few copies of that. Not a setting, since the
# order of rows depends on whether a dataset is in memory or on disk.
MOST_IN_MEMORY = 256 * 2**20
_CHUNKS_AHEAD, _BATCHES_AHEAD = 2, 3
# Sums of products of a chunk take a third longer in pieces of 512 rows.
_ROWS_TOGETHER = 2048
_SHARDS_AT_ONCE = 2
# 2 MiB of float16 per column: larger batches leave the cache before they are used.
_VALUES_AT_ONCE, _COLUMN_BATCHES_AHEAD = 1 << 20, 8
_LOOK_SECONDS = 0.1


def training_rows(
    dataset: DatasetManifest,
    spec: ModelSpec,
    most_bytes: int = MOST_IN_MEMORY,
    scratch: Scratch | None = None,
) -> TrainingRows:
    """Rows in memory if they fit into `most_bytes`, otherwise on the disk `scratch`.

    Raises InvalidDataset if a shard is not what was verified at intake; rows on disk raise it when
    they are first read.
    """
    first, second = (spec.widths[modality] for modality in dataset.pair.modalities)
    if dataset.rows * (first + second) * 4 > most_bytes:
        return RowsOnDisk(dataset.shards, (first, second), scratch)
    # Hashed one by one, while the next rows are decoded.
    parts = [rows.hashed() for rows in read_rows(dataset.shards, 0, dataset.rows, scratch)]
    return RowsInMemory(joined(parts).tensors())


def paired_rows(rows: Rows) -> PairedRows:
    """Raw features as tensors, with the content keys of either side."""
    return Records(rows.feature_a_BI, rows.feature_b_BI).tensors()


# --- Rows as they are read -----------------------------------------------------------------------


@dataclass(frozen=True)
class Records:
    """Neighbouring rows of a dataset as they are stored, float16 or float32, in numpy.

    `known_keys_B2`: content keys that were read from disk together with the rows.
    """

    first_BF: np.ndarray
    second_BG: np.ndarray
    known_keys_B2: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert len(self.first_BF) == len(self.second_BG)
        assert self.known_keys_B2 is None or self.known_keys_B2.shape == (len(self), 2)

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
    assert parts
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


# --- From shards to rows -------------------------------------------------------------------------


class Prefetcher(Generic[T]):
    """Items made in a thread, up to `depth` of them ahead. Must be closed.

    Order is kept, and an error is raised in the place of the item that caused it.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._items, self._is_closed = items, threading.Event()
        # An item, or at the end either None or the error that ended them.
        self._made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._thread = threading.Thread(target=self._make, daemon=True, name="prefetch")
        self._thread.start()

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
        self._is_closed.set()
        self._thread.join()

    def _make(self) -> None:
        ended_by: BaseException | None = None
        try:
            with closing(self._items):  # type: ignore[type-var]
                for item in self._items:
                    if not self._put(item, None):
                        return
        except BaseException as error:  # noqa: BLE001
            # Raised in the thread that takes the items.
            ended_by = error
        self._put(None, ended_by)

    def _put(self, item: T | None, error: BaseException | None) -> bool:
        """Put an entry; return False once the prefetcher is closed."""
        while not self._is_closed.is_set():
            try:
                self._made.put((item, error), timeout=_LOOK_SECONDS)
            except queue.Full:
                continue
            return True
        return False


def prefetched(items: Iterator[T], depth: int) -> Generator[T]:
    """Yield the items of a `Prefetcher`, and close it when the generator ends."""
    with closing(Prefetcher(items, depth)) as ahead:
        yield from ahead


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
        opened = deque(
            threads.submit(_open, part, scratch) for part in islice(parts, _SHARDS_AT_ONCE)
        )
        try:
            while opened:
                yield from opened.popleft().result().rows()
                opened.extend(threads.submit(_open, part, scratch) for part in islice(parts, 1))
        finally:
            for unread in opened:
                unread.add_done_callback(_close)


def _open(part: _Part, scratch: Scratch) -> _Decoding:
    with ExitStack() as stack:
        source = stack.enter_context(open_verified(part.shard, scratch).reading())
        first, second = (
            stack.enter_context(
                closing(Prefetcher(_column(part, source, name), _COLUMN_BATCHES_AHEAD))
            )
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
    rows = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    ends = np.cumsum(rows)
    # The row groups that have some of the rows, and the number of their first row.
    groups = np.flatnonzero((ends > part.start) & (ends - rows < part.stop))
    position = int(ends[groups[0]] - rows[groups[0]])
    at_once = rows_at_once(file.schema_arrow, _VALUES_AT_ONCE)
    for batch in file.iter_batches(
        at_once, row_groups=groups.tolist(), columns=[name], use_threads=False
    ):
        begin = max(part.start - position, 0)
        end = min(part.stop - position, batch.num_rows)
        position += batch.num_rows
        if begin < end:
            features = batch.column(name).slice(begin, end - begin)
            values = features.flatten().to_numpy(zero_copy_only=False)
            yield values.reshape(len(features), features.type.list_size)
        if position >= part.stop:
            return


# --- Rows on a local disk ------------------------------------------------------------------------


@dataclass
class _Segment:
    """Neighbouring rows of one record type: their numbers, and the offset of the first in the file."""

    record: np.dtype
    start: int
    stop: int
    offset: int


class RowFile:
    """Rows `start` to `stop` of a dataset on disk, appended in order and read in any order.

    Disk space for all rows is reserved with the first ones.
    """

    def __init__(self, start: int, stop: int, scratch: Scratch) -> None:
        self._next, self._stop, self._bytes = start, stop, 0
        self._file = scratch.new_file()
        # Also frees the disk if reading fails, when `close` is not called.
        weakref.finalize(self, self._file.close)
        self._segments: list[_Segment] = []

    @property
    def is_full(self) -> bool:
        """Whether all rows have been appended."""
        return self._next == self._stop

    def close(self) -> None:
        """Free the disk space."""
        self._file.close()

    def append(self, records: Records) -> None:
        """Append the next rows. Raises StorageUnavailable if the disk has no room for all rows."""
        packed = _packed(records)
        assert self._next + len(packed) <= self._stop, "more rows than there is room for"
        if not self._segments or self._segments[-1].record != packed.dtype:
            rows = self._stop - self._next
            self._file.reserve(self._bytes + rows * packed.dtype.itemsize)
            self._segments.append(_Segment(packed.dtype, self._next, self._next, self._bytes))
        self._write(memoryview(packed.data).cast("B"))
        self._next += len(packed)
        self._segments[-1].stop = self._next

    def read(self, start: int, stop: int) -> Records:
        """Read rows `start` to `stop`."""
        assert start < stop <= self._next, "rows that are not on the disk yet"
        parts = []
        for segment in self._segments:
            first, last = max(start, segment.start), min(stop, segment.stop)
            if first < last:
                parts.append(self._read(segment, first, last))
        return parts[0] if len(parts) == 1 else joined(parts)

    def _read(self, segment: _Segment, start: int, stop: int) -> Records:
        records = np.empty(stop - start, segment.record)
        place = segment.offset + (start - segment.start) * segment.record.itemsize
        read = os.preadv(self._file.fileno(), [records.data], place)
        if read != records.nbytes:
            raise OSError(f"read {read} of {records.nbytes} bytes from the local disk")
        return Records(records["first"], records["second"], records["keys"])

    def _write(self, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._file.fileno(), data, self._bytes)
            data, self._bytes = data[written:], self._bytes + written


def _packed(records: Records) -> np.ndarray:
    first_BF, second_BG = records.first_BF, records.second_BG
    record = np.dtype(
        [
            ("first", first_BF.dtype, first_BF.shape[1:]),
            ("second", second_BG.dtype, second_BG.shape[1:]),
            ("keys", np.int64, (2,)),
        ]
    )
    packed = np.empty(len(records), record)
    packed["first"], packed["second"], packed["keys"] = first_BF, second_BG, records.keys_B2
    return packed


class RowsOnDisk:
    """`TrainingRows` on a local disk. `widths`: of the two raw features. `scratch`: the disk."""

    def __init__(
        self, shards: Sequence[Shard], widths: tuple[int, int], scratch: Scratch | None = None
    ) -> None:
        self._shards, self._widths = shards, widths
        self._scratch = scratch or Scratch()
        self._virtual = VirtualShards(sum(shard.rows for shard in shards))
        self._block = block_rows(sum(widths) * 4)
        self._file: RowFile | None = None

    def __len__(self) -> int:
        return self._virtual.rows

    def in_memory(self) -> None:
        """See `TrainingRows`."""

    def close(self) -> None:
        """See `TrainingRows`."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def chunks(self, here: World) -> Iterator[PairedRows]:
        """See `TrainingRows`."""
        records = self._records(here)
        return (chunk.tensors() for chunk in prefetched(records, _CHUNKS_AHEAD))

    def batches(
        self, plan: BatchPlan, here: World, transform: Transform, start: int = 0
    ) -> Generator[LocalBatch]:
        """See `TrainingRows`. Rows are transformed in the thread that reads them."""
        if self._file is None:
            for _ in self._filling(here):
                pass
        assert self._file is not None, "the rows were read, and are not on disk"
        made = self._batches(self._file, plan, here, start)
        ready = (LocalBatch(transform(rows.tensors()), lengths) for rows, lengths in made)
        return prefetched(ready, _BATCHES_AHEAD)

    def _records(self, here: World) -> Iterator[Records]:
        if self._file is None:
            yield from self._filling(here)
            return
        first, last = self._own_rows(here)
        for start in range(first, last, CHUNK_ROWS):
            yield self._file.read(start, min(start + CHUNK_ROWS, last))

    def _filling(self, here: World) -> Iterator[Records]:
        """Yield rows from the store and write them to disk, which is complete at the end."""
        first, last = self._own_rows(here)
        file = RowFile(first, last, self._scratch)
        with closing(read_rows(self._shards, first, last, self._scratch)) as raw_rows:
            for records in regrouped(raw_rows, _ROWS_TOGETHER):
                file.append(records)
                yield records
        assert file.is_full, f"the shards have fewer rows than {last - first}"
        self._file = file

    def _own_rows(self, here: World) -> tuple[int, int]:
        """First row and end of this rank's virtual shards, which are neighbours."""
        own = rank_slice(self._virtual.count, here)
        return self._virtual.start(own.start), self._virtual.start(own.stop)

    def _batches(
        self, file: RowFile, plan: BatchPlan, here: World, start: int
    ) -> Iterator[tuple[Records, tuple[int, ...]]]:
        """This rank's rows of each batch from update `start` on, and the rows of each rank."""
        virtual, in_epoch = self._virtual, plan.updates_in_epoch(len(self))
        own = rank_slice(virtual.count, here)
        shares = [rank_slice(virtual.count, World(rank, here.size)) for rank in range(here.size)]
        # For a rank that has no row of a batch.
        first, second = (np.empty((0, width), np.float16) for width in self._widths)
        no_rows = Records(first, second, np.empty((0, 2), np.int64))
        for epoch in range(start // max(in_epoch, 1), plan.epochs):
            skipped = max(start - epoch * in_epoch, 0)
            given, order = virtual.taken(skipped * plan.batch_size), (plan.seed, epoch)
            readers = [
                _ShardReader(file, shard_windows(shard, virtual, self._block, order), given[shard])
                for shard in range(own.start, own.stop)
            ]
            for number in range(skipped, in_epoch):
                after = virtual.taken((number + 1) * plan.batch_size)
                counts, given = after - given, after
                assert counts.sum() == plan.batch_size
                assert counts.min() >= 0, "a shard takes rows back"
                parts = [
                    part
                    for reader, count in zip(readers, counts[own], strict=True)
                    for part in reader.take(int(count))
                ]
                lengths = tuple(int(counts[share].sum()) for share in shares)
                yield joined([no_rows, *parts]), lengths


class _ShardReader:
    """One virtual shard in the order of one epoch, from row `skip` on."""

    def __init__(self, file: RowFile, windows: Iterator[Window], skip: int) -> None:
        self._file, self._windows = file, windows
        self._rows: Records | None = None
        self._at, self._left = 0, 0
        while skip:
            window = next(windows)
            if len(window) > skip:
                self._open(window)
                self._at, self._left = skip, len(window) - skip
            skip = max(skip - len(window), 0)

    def take(self, rows: int) -> Iterator[Records]:
        """Yield the next rows, in one or more parts."""
        while rows:
            if not self._left:
                self._open(next(self._windows))
            assert self._rows is not None, "no window is open"
            count = min(rows, self._left)
            yield self._rows.at(slice(self._at, self._at + count))
            self._at, self._left, rows = self._at + count, self._left - count, rows - count

    def _open(self, window: Window) -> None:
        blocks = [self._file.read(start, stop) for start, stop in window.blocks]
        self._rows = joined(blocks).at(window.order_K)
        assert len(self._rows) == len(window)
        self._at, self._left = 0, len(window)
