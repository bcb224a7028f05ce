"""Rows of a dataset as training reads them: which make up each global batch, and those of a dataset in memory.

Global batches are a function of the seed and the dataset alone: they do not depend on the number of ranks, nor on
which of them reads what.

A dataset that fits into memory is permuted as a whole in each epoch. A larger one is read from a local disk (`RowsOnDisk`) and divided into
*virtual shards*: contiguous parts of the dataset, a fixed number of them, each of which contributes its share to every
batch. A shard is read in blocks of neighbouring rows. An epoch permutes the blocks of a shard, reads them in windows of
several blocks, and permutes the rows of a window. So a batch is a stratified sample of the whole dataset, a rank reads
its own shards only, and memory is bounded by the windows. (MosaicML's StreamingDataset fixes "canonical nodes" for the
same reason.)

Shapes: N rows of the dataset, B rows of a global batch, L rows of this rank, K rows of a window.

A row on its way into training:

    Records (dataset.py)    numpy, as stored, with content keys: what is read from shards and from disk
    PairedRows (model)      the same as tensors
    LocalBatch              this rank's PairedRows of a global batch
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from workers.model.heads import PairedRows
from workers.train.distributed import World, rank_lengths, rank_slice

Transform = Callable[[PairedRows], PairedRows]
"""From raw rows to what training reads, row by row, on the device of training."""

CHUNK_ROWS = 8192
# An upper bound on useful ranks: more ranks than shards would leave some without rows.
VIRTUAL_SHARDS = 256
_GOLDEN = (5**0.5 - 1) / 2
# One read from the disk: long enough for sequential speed on any disk.
_BLOCK_BYTES = 256 * 1024
# Blocks that are shuffled together: 1 GiB as float32 over all shards, half of it as float16.
_WINDOW_BLOCKS = 16


@dataclass(frozen=True)
class BatchPlan:
    """Global batches of a number of epochs, in the order given by a seed."""

    batch_size: int
    epochs: int
    seed: int

    def updates_in_epoch(self, rows: int) -> int:
        """Rows that do not fill a last batch are left out of the epoch: a batch with fewer negatives is a
        different task."""
        return rows // self.batch_size

    def updates(self, rows: int) -> int:
        """Updates of all epochs."""
        return self.updates_in_epoch(rows) * self.epochs


def permuted_batches(rows: int, plan: BatchPlan, start: int = 0) -> Iterator[Tensor]:
    """Row numbers (B) of each global batch from update `start` on: one permutation per epoch."""
    generator = torch.Generator().manual_seed(plan.seed)
    number, size = 0, plan.batch_size
    for _ in range(plan.epochs):
        order_N = torch.randperm(rows, generator=generator)
        for first in range(0, plan.updates_in_epoch(rows) * size, size):
            if number >= start:
                yield order_N[first : first + size]
            number += 1


@dataclass(frozen=True)
class VirtualShards:
    """How a dataset is divided. Lengths of shards differ by one row at most."""

    rows: int
    count: int = VIRTUAL_SHARDS

    @cached_property
    def _offsets(self) -> np.ndarray:
        """A permutation of 0 … count − 1 in which neighbours are far apart (golden-ratio sequence).

        It decides which shards give one row more than others to a batch, so that those are spread
        evenly over the shards, and so over the ranks.
        """
        return (np.arange(self.count) * _GOLDEN % 1.0).argsort().argsort()

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], self.taken(self.rows).cumsum()])

    def start(self, shard: int) -> int:
        """The first row of a shard; that of shard `count` is the end of the dataset."""
        return int(self._starts[shard])

    def taken(self, rows: int) -> np.ndarray:
        """Rows that each shard has given once `rows` are taken in total: ⌊(rows + offset) / count⌋.

        They add up to `rows` (Hermite's identity), and no shard gives more than it has.
        """
        given: np.ndarray = (rows + self._offsets) // self.count
        assert given.sum() == rows
        return given


@dataclass(frozen=True)
class Window:
    """Rows of a shard that are shuffled together: read as `blocks`, then permuted by `order_K`."""

    blocks: tuple[tuple[int, int], ...]
    order_K: np.ndarray

    def __len__(self) -> int:
        return len(self.order_K)


def block_rows(row_bytes: int) -> int:
    """Rows of one read. `row_bytes`: both features of a row as float32."""
    return max(1, _BLOCK_BYTES // row_bytes)


def shard_windows(
    shard: int, shards: VirtualShards, block: int, seed: tuple[int, int]
) -> Iterator[Window]:
    """The windows of one shard in one epoch. `seed`: the plan's seed and the number of the epoch.

    The length of the first window differs from shard to shard: shards then need new rows at
    different times, and no update waits for all of them.
    """
    random = np.random.default_rng((*seed, shard))
    begin, end = shards.start(shard), shards.start(shard + 1)
    starts = begin + block * random.permutation(-(-(end - begin) // block))
    blocks = [(int(start), min(int(start) + block, end)) for start in starts]
    cuts = range(shard % _WINDOW_BLOCKS + 1, len(blocks), _WINDOW_BLOCKS)
    for first, last in pairwise([0, *cuts, len(blocks)]):
        chosen = tuple(blocks[first:last])
        rows = sum(stop - start for start, stop in chosen)
        if rows:
            yield Window(chosen, random.permutation(rows))


@dataclass(frozen=True)
class LocalBatch:
    """This rank's rows of a global batch.

    `lengths`: rows of each rank. `everywhere`: rows of all ranks, if all rows are in memory.
    """

    rows: PairedRows
    lengths: tuple[int, ...]
    everywhere: PairedRows | None = None


class TrainingRows(Protocol):
    """Raw rows of one dataset. Every rank calls the same methods in the same order."""

    def __len__(self) -> int:
        """Rows of the whole dataset."""
        ...

    def chunks(self, here: World) -> Iterator[PairedRows]:
        """This rank's rows in chunks of at most CHUNK_ROWS; over all ranks each row occurs once."""
        ...

    def batches(
        self, plan: BatchPlan, here: World, transform: Transform, start: int = 0
    ) -> Generator[LocalBatch]:
        """Transformed rows of each global batch, from update `start` on."""
        ...

    def in_memory(self) -> PairedRows | None:
        """All rows, or None if they are not in memory."""
        ...

    def close(self) -> None:
        """Free the local disk. The rows cannot be read afterwards."""
        ...


@dataclass(frozen=True)
class RowsInMemory:
    """All rows of a dataset in the memory of every rank. Each epoch is one permutation."""

    raw: PairedRows

    def __len__(self) -> int:
        return len(self.raw)

    def chunks(self, here: World) -> Iterator[PairedRows]:
        """See `TrainingRows`."""
        own = rank_slice(len(self), here)
        for start in range(own.start, own.stop, CHUNK_ROWS):
            yield self.raw.at(slice(start, min(start + CHUNK_ROWS, own.stop)))

    def batches(
        self, plan: BatchPlan, here: World, transform: Transform, start: int = 0
    ) -> Generator[LocalBatch]:
        """See `TrainingRows`. All rows are transformed once, and not in every update."""
        rows_N = transform(self.raw)
        own, lengths = rank_slice(plan.batch_size, here), rank_lengths(plan.batch_size, here)
        assert own.stop - own.start == lengths[here.rank]
        for index_B in permuted_batches(len(self), plan, start):
            everywhere = rows_N.at(index_B.to(rows_N.first_NI.device))
            yield LocalBatch(everywhere.at(own), lengths, everywhere)

    def in_memory(self) -> PairedRows:
        """See `TrainingRows`."""
        return self.raw

    def close(self) -> None:
        """See `TrainingRows`: they use no local disk."""


@dataclass(frozen=True)
class RotatedRows:
    """The rows of a dataset as the pair in training reads them."""

    raw: TrainingRows
    transform: Transform

    def __len__(self) -> int:
        """Rows of the whole dataset."""
        return len(self.raw)

    def batches(self, plan: BatchPlan, here: World, start: int = 0) -> Generator[LocalBatch]:
        """This rank's rows of each global batch, from update `start` on."""
        return self.raw.batches(plan, here, self.transform, start)
