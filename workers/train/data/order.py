"""Which rows make up each global batch: a function of the seed and the dataset alone.

It does not depend on the number of ranks, nor on which of them reads what.

A dataset that fits into memory is permuted as a whole in each epoch. A larger one is divided into
*virtual shards*: contiguous parts of the dataset, a fixed number of them, each of which contributes
its share to every batch. A shard is read in blocks of neighbouring rows. An epoch permutes the blocks
of a shard, reads them in windows of several blocks, and permutes the rows of a window. So a batch is a
stratified sample of the whole dataset, a rank reads its own shards only, and memory is bounded by the
windows. (MosaicML's StreamingDataset fixes "canonical nodes" for the same reason.)

Shapes: N rows, B rows of a global batch, K rows of a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

# An upper bound on useful ranks: more ranks than shards would leave some without rows.
VIRTUAL_SHARDS = 256
_GOLDEN = (5**0.5 - 1) / 2
# One read from the disk: long enough for sequential speed on any disk.
_BLOCK_BYTES = 256 * 1024
# Blocks that are shuffled together: 1 GiB as float32 over all shards, half of it as float16.
_WINDOW_BLOCKS = 16


@dataclass(frozen=True)
class Plan:
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


def permuted_batches(rows: int, plan: Plan, start: int = 0) -> Iterator[Tensor]:
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
