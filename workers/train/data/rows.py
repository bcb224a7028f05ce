"""What training needs of the rows of a dataset, and the rows of a dataset that fits into memory.

Shapes: N rows of the dataset, L rows of this rank.

A row on its way into training:

    Records (streamed.py)   numpy, as stored, with content keys: what is read from shards and from disk
    PairedRows (model)      the same as tensors
    LocalBatch              this rank's PairedRows of a global batch
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

from workers.model.rows import PairedRows
from workers.train.data.order import Plan, permuted_batches
from workers.train.distributed import World, rank_lengths, rank_slice

Transform = Callable[[PairedRows], PairedRows]
"""From raw rows to what training reads, row by row, on the device of training."""

CHUNK_ROWS = 8192


@dataclass(frozen=True)
class LocalBatch:
    """This rank's rows of a global batch.

    `lengths`: rows of each rank. `everywhere`: rows of all ranks, if all rows are held in memory.
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
        self, plan: Plan, here: World, transform: Transform, start: int = 0
    ) -> Generator[LocalBatch]:
        """Transformed rows of each global batch, from update `start` on."""
        ...

    def held(self) -> PairedRows | None:
        """All rows, or None if they are not in memory."""
        ...

    def close(self) -> None:
        """Free the local disk. The rows cannot be read afterwards."""
        ...


@dataclass(frozen=True)
class HeldRows:
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
        self, plan: Plan, here: World, transform: Transform, start: int = 0
    ) -> Generator[LocalBatch]:
        """See `TrainingRows`. All rows are transformed once, and not in every update."""
        rows_N = transform(self.raw)
        own, lengths = rank_slice(plan.batch_size, here), rank_lengths(plan.batch_size, here)
        for index_B in permuted_batches(len(self), plan, start):
            everywhere = rows_N.at(index_B.to(rows_N.first_NI.device))
            yield LocalBatch(everywhere.at(own), lengths, everywhere)

    def held(self) -> PairedRows:
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

    def batches(self, plan: Plan, here: World, start: int = 0) -> Generator[LocalBatch]:
        """This rank's rows of each global batch, from update `start` on."""
        return self.raw.batches(plan, here, self.transform, start)
