"""Which rows make up each global batch: a function of the seed and the dataset alone.

How many ranks there are, and which of them reads what, changes nothing about it.

A dataset that fits into memory is permuted as a whole for each epoch. A larger one is dealt to
*lanes*: contiguous parts of the dataset, always as many, each of which gives its share to every
batch. A lane is read in blocks of neighbouring rows; an epoch permutes the blocks of a lane, takes
them up in windows of several blocks, and permutes the rows of a window. So a batch is a stratified
sample of the whole dataset, a rank that owns some lanes reads nothing else, and memory is bounded by
the windows. (MosaicML's StreamingDataset fixes "canonical nodes" for the same reason.)

Shapes: N rows, B rows of a global batch, K rows of a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

# More ranks than lanes would leave some without rows.
LANES = 256
_GOLDEN = (5**0.5 - 1) / 2
# Read at once from the disk: long enough for any disk to be quick.
_BLOCK_BYTES = 256 * 1024
# Blocks that are mixed with each other: 1 GiB as float32 over all lanes, half of it as float16.
_WINDOW_BLOCKS = 16


@dataclass(frozen=True)
class Plan:
    """What is to be trained on: so many epochs of global batches, in the order of a seed."""

    batch_size: int
    epochs: int
    seed: int

    def updates_in_epoch(self, rows: int) -> int:
        """Rows that do not fill a last batch wait for the next epoch: fewer negatives would make it
        another task."""
        return rows // self.batch_size

    def updates(self, rows: int) -> int:
        """All of them."""
        return self.updates_in_epoch(rows) * self.epochs


def permuted_batches(rows: int, plan: Plan, start: int = 0) -> Iterator[Tensor]:
    """Row numbers (B) of each global batch from update `start` on: a fresh permutation an epoch."""
    generator = torch.Generator().manual_seed(plan.seed)
    number, size = 0, plan.batch_size
    for _ in range(plan.epochs):
        order_N = torch.randperm(rows, generator=generator)
        for first in range(0, plan.updates_in_epoch(rows) * size, size):
            if number >= start:
                yield order_N[first : first + size]
            number += 1


@dataclass(frozen=True)
class Lanes:
    """How a dataset is dealt. Lengths of lanes differ by one row at most."""

    rows: int
    count: int = LANES

    @cached_property
    def _turns(self) -> np.ndarray:
        """Each lane's place among those that give a row more than others, far from its neighbours'."""
        return (np.arange(self.count) * _GOLDEN % 1.0).argsort().argsort()

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], self.taken(self.rows).cumsum()])

    def start(self, lane: int) -> int:
        """Its first row; that of lane `count` is the end of the dataset."""
        return int(self._starts[lane])

    def taken(self, rows: int) -> np.ndarray:
        """How many rows each lane has given when `rows` were taken in all: ⌊(rows + turn) / count⌋.

        They add up to `rows` (Hermite's identity), and no lane gives more than it has.
        """
        given: np.ndarray = (rows + self._turns) // self.count
        return given


@dataclass(frozen=True)
class Window:
    """Rows of a lane that are mixed: read as `blocks`, then put into `order_K`."""

    blocks: tuple[tuple[int, int], ...]
    order_K: np.ndarray

    def __len__(self) -> int:
        return len(self.order_K)


def block_rows(row_bytes: int) -> int:
    """Rows that are read at once; `row_bytes` are those of both features as float32."""
    return max(1, _BLOCK_BYTES // row_bytes)


def lane_windows(lane: int, lanes: Lanes, block: int, seed: tuple[int, int]) -> Iterator[Window]:
    """The windows of one lane in one epoch; `seed` is that of the plan, and the epoch.

    The first window of a lane is shorter, in each lane by another length: all lanes need new rows
    at different times, so that no update waits for all of them.
    """
    random = np.random.default_rng((*seed, lane))
    begin, end = lanes.start(lane), lanes.start(lane + 1)
    starts = begin + block * random.permutation(-(-(end - begin) // block))
    blocks = [(int(start), min(int(start) + block, end)) for start in starts]
    cuts = range(lane % _WINDOW_BLOCKS + 1, len(blocks), _WINDOW_BLOCKS)
    for first, last in pairwise([0, *cuts, len(blocks)]):
        chosen = tuple(blocks[first:last])
        rows = sum(stop - start for start, stop in chosen)
        if rows:
            yield Window(chosen, random.permutation(rows))
