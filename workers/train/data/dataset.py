"""Rows of a verified dataset: those to train on, held in memory or streamed, and those to measure recall on.

Of a dataset that does not fit into memory, each rank keeps its virtual shards on a local disk. The first pass reads the
user's files from object storage; all later ones read the disk. There rows are records of fixed width: Parquet is
decoded once instead of once per epoch, and a block of neighbouring rows is one read, independently of the row groups of
the user's files. Memory is what is being read; the rest is the system's page cache.

Shapes: B neighbouring rows, K rows of a window, L rows of this rank, F and G raw widths.
"""

import os
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import torch

from cmcl.contract.dataset import DatasetManifest, Shard
from cmcl.contract.model import ModelSpec
from workers.files.scratch import Scratch, open_verified
from workers.files.shards import Rows, open_in_pieces, rows_of
from workers.model.evaluation import HeldOut
from workers.model.rows import PairedRows, content_keys
from workers.train.data.reader import Records, joined, prefetched, read_rows, regrouped
from workers.train.data.rows import (
    CHUNK_ROWS,
    HeldRows,
    LocalBatch,
    Plan,
    TrainingRows,
    Transform,
    VirtualShards,
    Window,
    block_rows,
    shard_windows,
)
from workers.train.distributed import World, rank_slice

# Both features of all rows as float32; a rank may hold a few copies of that. Not a setting, since the
# order of rows depends on whether a dataset is held or streamed.
HELD_BYTES = 256 * 2**20
# Every query is scored against all rows: more would take minutes without changing recall noticeably.
MOST_HELD_OUT = 16_384
_CHUNKS_AHEAD, _BATCHES_AHEAD = 2, 3
# Sums of products of a chunk take a third longer in pieces of 512 rows.
_ROWS_TOGETHER = 2048


def training_rows(
    dataset: DatasetManifest,
    spec: ModelSpec,
    held_bytes: int = HELD_BYTES,
    scratch: Scratch | None = None,
) -> TrainingRows:
    """Rows held in memory if they fit into `held_bytes`, otherwise streamed from the disk `scratch`.

    Raises InvalidDataset if a shard is not what was verified at intake; streamed rows raise it when
    they are read.
    """
    first, second = (spec.widths[modality] for modality in dataset.pair.modalities)
    if dataset.rows * (first + second) * 4 > held_bytes:
        return StreamedRows(dataset.shards, (first, second), scratch)
    # Hashed one by one, while the next rows are decoded.
    parts = [rows.hashed() for rows in read_rows(dataset.shards, 0, dataset.rows, scratch)]
    return HeldRows(joined(parts).tensors())


def held_out_rows(shards: Sequence[Shard], scratch: Scratch | None = None) -> HeldOut | None:
    """Rows of evaluation shards, a regular sample if there are many; None without shards.

    `scratch` is for a copy of one shard at a time. Raises InvalidDataset, StorageUnavailable.
    """
    every = -(-sum(shard.rows for shard in shards) // MOST_HELD_OUT)
    files = _files(shards, scratch or Scratch())
    return held_out(rows_of(files, every)) if shards else None


def paired_rows(rows: Rows) -> PairedRows:
    """Raw features as tensors, with the content keys of either side."""
    first, second = rows.feature_a_BI, rows.feature_b_BI
    return PairedRows(
        torch.from_numpy(first),
        torch.from_numpy(second),
        torch.from_numpy(content_keys(first)),
        torch.from_numpy(content_keys(second)),
    )


def held_out(rows: Rows) -> HeldOut:
    """Rows to measure recall on. Classes are numbered in the order of their names."""
    labels = None
    if rows.label_B is not None:
        _, numbers = np.unique(rows.label_B.astype(str), return_inverse=True)
        labels = torch.from_numpy(numbers)
    return HeldOut(paired_rows(rows), labels)


def _files(shards: Sequence[Shard], scratch: Scratch) -> Iterator[pq.ParquetFile]:
    """Open the shards one after the other; each is closed before the next one is opened."""
    for shard in shards:
        with open_verified(shard, scratch).reading() as source:
            yield open_in_pieces(source)


@dataclass
class _Segment:
    """Neighbouring rows of one record type: their numbers, and the offset of the first in the file."""

    record: np.dtype
    start: int
    stop: int
    offset: int


class Spool:
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
        if not self._segments or self._segments[-1].record != packed.dtype:
            rows = self._stop - self._next
            self._file.reserve(self._bytes + rows * packed.dtype.itemsize)
            self._segments.append(_Segment(packed.dtype, self._next, self._next, self._bytes))
        self._write(memoryview(packed.data).cast("B"))
        self._next += len(packed)
        self._segments[-1].stop = self._next

    def read(self, start: int, stop: int) -> Records:
        """Read rows `start` to `stop`."""
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


class StreamedRows:
    """`TrainingRows` on a local disk. `widths`: of the two raw features. `scratch`: the disk."""

    def __init__(
        self, shards: Sequence[Shard], widths: tuple[int, int], scratch: Scratch | None = None
    ) -> None:
        self._shards, self._widths = shards, widths
        self._scratch = scratch or Scratch()
        self._virtual = VirtualShards(sum(shard.rows for shard in shards))
        self._block = block_rows(sum(widths) * 4)
        self._spool: Spool | None = None

    def __len__(self) -> int:
        return self._virtual.rows

    def held(self) -> None:
        """See `TrainingRows`."""

    def close(self) -> None:
        """See `TrainingRows`."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def chunks(self, here: World) -> Iterator[PairedRows]:
        """See `TrainingRows`."""
        records = self._records(here)
        return (chunk.tensors() for chunk in prefetched(records, _CHUNKS_AHEAD))

    def batches(
        self, plan: Plan, here: World, transform: Transform, start: int = 0
    ) -> Generator[LocalBatch]:
        """See `TrainingRows`. Rows are transformed in the thread that reads them."""
        spool = self._filled(here)
        made = self._batches(spool, plan, here, start)
        ready = (LocalBatch(transform(rows.tensors()), lengths) for rows, lengths in made)
        return prefetched(ready, _BATCHES_AHEAD)

    def _filled(self, here: World) -> Spool:
        """The rows on disk, read from the store if they are not there yet."""
        if self._spool is None:
            for _ in self._filling(here):
                pass
        if self._spool is None:
            raise RuntimeError("the rows were read but are not on disk")
        return self._spool

    def _records(self, here: World) -> Iterator[Records]:
        if self._spool is None:
            yield from self._filling(here)
            return
        first, last = self._own_rows(here)
        for start in range(first, last, CHUNK_ROWS):
            yield self._spool.read(start, min(start + CHUNK_ROWS, last))

    def _filling(self, here: World) -> Iterator[Records]:
        """Yield rows from the store and write them to disk, which is complete at the end."""
        first, last = self._own_rows(here)
        spool = Spool(first, last, self._scratch)
        with closing(read_rows(self._shards, first, last, self._scratch)) as raw_rows:
            for records in regrouped(raw_rows, _ROWS_TOGETHER):
                spool.append(records)
                yield records
        if not spool.is_full:
            raise RuntimeError(f"the shards have fewer rows than {last - first}")
        self._spool = spool

    def _own_rows(self, here: World) -> tuple[int, int]:
        """First row and end of this rank's virtual shards, which are neighbours."""
        own = rank_slice(self._virtual.count, here)
        return self._virtual.start(own.start), self._virtual.start(own.stop)

    def _batches(
        self, spool: Spool, plan: Plan, here: World, start: int
    ) -> Iterator[tuple[Records, tuple[int, ...]]]:
        in_epoch = plan.updates_in_epoch(len(self))
        for epoch in range(plan.epochs):
            skipped = min(max(start - epoch * in_epoch, 0), in_epoch)
            if skipped < in_epoch:
                yield from self._epoch(spool, plan, here, (epoch, skipped))

    def _epoch(
        self, spool: Spool, plan: Plan, here: World, begin: tuple[int, int]
    ) -> Iterator[tuple[Records, tuple[int, ...]]]:
        """Batches of an epoch. `begin`: the number of the epoch, and the batches to skip."""
        (epoch, skipped), virtual = begin, self._virtual
        own = rank_slice(virtual.count, here)
        given = virtual.taken(skipped * plan.batch_size)
        readers = [
            _ShardReader(
                spool, shard_windows(shard, virtual, self._block, (plan.seed, epoch)), given[shard]
            )
            for shard in range(own.start, own.stop)
        ]
        for number in range(skipped, plan.updates_in_epoch(len(self))):
            after = virtual.taken((number + 1) * plan.batch_size)
            counts, given = after - given, after
            parts = [
                part
                for reader, count in zip(readers, counts[own], strict=True)
                for part in reader.take(int(count))
            ]
            yield joined([self._none(), *parts]), _lengths(counts, here)

    def _none(self) -> Records:
        """No rows, for a rank that has none of a batch."""
        first, second = (np.empty((0, width), np.float16) for width in self._widths)
        return Records(first, second, np.empty((0, 2), np.int64))


class _ShardReader:
    """One virtual shard in the order of one epoch, from row `skip` on."""

    def __init__(self, spool: Spool, windows: Iterator[Window], skip: int) -> None:
        self._spool, self._windows = spool, windows
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
            if self._rows is None:
                raise RuntimeError("no window is open")
            count = min(rows, self._left)
            yield self._rows.at(slice(self._at, self._at + count))
            self._at, self._left, rows = self._at + count, self._left - count, rows - count

    def _open(self, window: Window) -> None:
        blocks = [self._spool.read(start, stop) for start, stop in window.blocks]
        self._rows = joined(blocks).at(window.order_K)
        self._at, self._left = 0, len(window)


def _lengths(counts: np.ndarray, here: World) -> tuple[int, ...]:
    """Rows of each rank, from those of each virtual shard."""
    shares = [rank_slice(len(counts), World(rank, here.size)) for rank in range(here.size)]
    return tuple(int(counts[share].sum()) for share in shares)
