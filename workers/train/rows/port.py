"""What training asks of the rows of a dataset, wherever they are.

Shapes: L rows of this rank.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

from workers.model.rows import PairedRows
from workers.train.distributed import World
from workers.train.rows.order import Plan

Transform = Callable[[PairedRows], PairedRows]
"""From raw rows to what training wants of them, row by row, on whatever device it wants them."""

CHUNK_ROWS = 8192


@dataclass(frozen=True)
class LocalBatch:
    """This rank's rows of a global batch.

    `lengths` are the rows of each rank; `everywhere` are those of all ranks, where all rows are held.
    """

    rows: PairedRows
    lengths: tuple[int, ...]
    everywhere: PairedRows | None = None


class TrainingRows(Protocol):
    """Raw rows of one dataset. Every rank asks for the same, in the same order."""

    def __len__(self) -> int:
        """Rows of the whole dataset."""
        ...

    def chunks(self, here: World) -> Iterator[PairedRows]:
        """This rank's part, at most CHUNK_ROWS together; over all ranks each row comes once."""
        ...

    def batches(
        self, plan: Plan, here: World, transform: Transform, start: int = 0
    ) -> Generator[LocalBatch]:
        """Transformed rows of each global batch, from update `start` on."""
        ...

    def held(self) -> PairedRows | None:
        """All rows; None where they are not in memory."""
        ...

    def close(self) -> None:
        """They are not asked for any more: what they have of the local disk is free again."""
        ...


@dataclass(frozen=True)
class TurnedRows:
    """The rows of a dataset as the pair in training reads them."""

    raw: TrainingRows
    transform: Transform

    def __len__(self) -> int:
        """Rows of the whole dataset."""
        return len(self.raw)

    def batches(self, plan: Plan, here: World, start: int = 0) -> Generator[LocalBatch]:
        """This rank's part of each global batch, from update `start` on."""
        return self.raw.batches(plan, here, self.transform, start)
