"""All rows of a dataset in the memory of every rank: quick, and each epoch is one permutation.

Shapes: N rows.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from workers.model.rows import PairedRows
from workers.train.distributed import World, lengths_of, share_of
from workers.train.rows.order import Plan, permuted_batches
from workers.train.rows.port import CHUNK_ROWS, LocalBatch, Transform


@dataclass(frozen=True)
class HeldRows:
    """See the port."""

    raw: PairedRows

    def __len__(self) -> int:
        return len(self.raw)

    def chunks(self, here: World) -> Iterator[PairedRows]:
        """See the port."""
        own = share_of(len(self), here)
        for start in range(own.start, own.stop, CHUNK_ROWS):
            yield self.raw.at(slice(start, min(start + CHUNK_ROWS, own.stop)))

    def batches(
        self, plan: Plan, here: World, transform: Transform, start: int = 0
    ) -> Generator[LocalBatch]:
        """See the port. All rows are transformed once, so that no update has to."""
        rows_N = transform(self.raw)
        own, lengths = share_of(plan.batch_size, here), lengths_of(plan.batch_size, here)
        for index_B in permuted_batches(len(self), plan, start):
            everywhere = rows_N.at(index_B.to(rows_N.first_NI.device))
            yield LocalBatch(everywhere.at(own), lengths, everywhere)

    def held(self) -> PairedRows:
        """See the port."""
        return self.raw

    def close(self) -> None:
        """See the port: they have nothing of the local disk."""
