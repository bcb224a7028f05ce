"""Rows of a dataset that does not fit into memory: each rank keeps its lanes on a local disk.

The first pass reads the shards from object storage; all later ones read the disk.

Shapes: K rows of a window, L rows of this rank, F and G widths of the two sides.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch

from cmcl.contract.dataset import Shard
from workers.model.rows import PairedRows
from workers.storage.scratch import Scratch
from workers.train.distributed import World, share_of
from workers.train.rows.order import Lanes, Plan, Window, block_rows, lane_windows
from workers.train.rows.port import CHUNK_ROWS, LocalBatch, Transform
from workers.train.rows.prefetch import prefetched
from workers.train.rows.reader import read_rows
from workers.train.rows.spool import Records, Spool, joined, keyed, regrouped

_CHUNKS_AHEAD, _BATCHES_AHEAD = 2, 3
# A chunk's sums of products take a third longer in pieces of a quarter of so many.
_ROWS_TOGETHER = 2048


class StreamedRows:
    """See the port. `widths` are those of the two raw features; `scratch` is the local disk."""

    def __init__(
        self, shards: Sequence[Shard], widths: tuple[int, int], scratch: Scratch | None = None
    ) -> None:
        self._shards, self._widths = shards, widths
        self._scratch = scratch or Scratch()
        self._lanes = Lanes(sum(shard.rows for shard in shards))
        self._block = block_rows(sum(widths) * 4)
        self._spool: Spool | None = None

    def __len__(self) -> int:
        return self._lanes.rows

    def held(self) -> None:
        """See the port."""

    def close(self) -> None:
        """See the port."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def chunks(self, here: World) -> Iterator[PairedRows]:
        """See the port."""
        records = self._records(here)
        return (paired(chunk) for chunk in prefetched(records, _CHUNKS_AHEAD))

    def batches(
        self, plan: Plan, here: World, transform: Transform, start: int = 0
    ) -> Generator[LocalBatch]:
        """See the port. Rows are transformed in the thread that reads them."""
        spool = self._filled(here)
        made = self._batches(spool, plan, here, start)
        ready = (LocalBatch(transform(paired(rows)), lengths) for rows, lengths in made)
        return prefetched(ready, _BATCHES_AHEAD)

    def _filled(self, here: World) -> Spool:
        """The rows on disk, read from the store where they are not there yet."""
        if self._spool is None:
            for _ in self._filling(here):
                pass
        if self._spool is None:
            raise RuntimeError("the rows were read and are not there")
        return self._spool

    def _records(self, here: World) -> Iterator[Records]:
        if self._spool is None:
            yield from self._filling(here)
            return
        first, last = self._share(here)
        for start in range(first, last, CHUNK_ROWS):
            yield self._spool.read(start, min(start + CHUNK_ROWS, last))

    def _filling(self, here: World) -> Iterator[Records]:
        """Rows as they come from the store; once all have come, they are on the disk."""
        first, last = self._share(here)
        spool = Spool(first, last, self._scratch)
        with closing(read_rows(self._shards, first, last, self._scratch)) as raw_rows:
            for records in regrouped(map(keyed, raw_rows), _ROWS_TOGETHER):
                spool.append(records)
                yield records
        if not spool.is_full:
            raise RuntimeError(f"the shards have fewer rows than {last - first}")
        self._spool = spool

    def _share(self, here: World) -> tuple[int, int]:
        """The first and the last row of this rank's lanes, which lie side by side."""
        own = share_of(self._lanes.count, here)
        return self._lanes.start(own.start), self._lanes.start(own.stop)

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
        """Batches of an epoch; `begin`: its number, and the batches that were given already."""
        (epoch, skipped), lanes = begin, self._lanes
        own = share_of(lanes.count, here)
        given = lanes.taken(skipped * plan.batch_size)
        readers = [
            _LaneReader(
                spool, lane_windows(lane, lanes, self._block, (plan.seed, epoch)), given[lane]
            )
            for lane in range(own.start, own.stop)
        ]
        for number in range(skipped, plan.updates_in_epoch(len(self))):
            after = lanes.taken((number + 1) * plan.batch_size)
            counts, given = after - given, after
            parts = [
                part
                for reader, count in zip(readers, counts[own], strict=True)
                for part in reader.take(int(count))
            ]
            yield joined([self._none(), *parts]), _lengths(counts, here)

    def _none(self) -> Records:
        """No rows: a rank may own none of a batch's."""
        first, second = (np.empty((0, width), np.float16) for width in self._widths)
        return Records(first, second, np.empty((0, 2), np.int64))


class _LaneReader:
    """One lane in the order of one epoch, from some row on."""

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
        """The next rows, in some parts."""
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
    """Rows of each rank, from those of each lane."""
    shares = [share_of(len(counts), World(rank, here.size)) for rank in range(here.size)]
    return tuple(int(counts[share].sum()) for share in shares)


def paired(records: Records) -> PairedRows:
    """The same rows as tensors."""
    first_keys, second_keys = records.keys_K2.T
    sides = (records.first_KF, records.second_KG, first_keys, second_keys)
    # What Arrow lends, and what lies in records beside something else, is copied.
    return PairedRows(
        *(torch.from_numpy(np.require(side, requirements=["C", "W"])) for side in sides)
    )
