"""Rows that wait for the heads; whoever sends much takes turns with whoever sends little."""

import asyncio
from dataclasses import dataclass

from workers.serve.compute.port import Ticket
from workers.serve.turns import Turns
from workers.serve.versions.loading import Float32Array, LoadedHeads


@dataclass(eq=False)
class Work:
    """Rows of one request and one modality. `future` gets their embeddings, or is cancelled."""

    heads: LoadedHeads
    modality: str
    rows_BF: Float32Array
    normalize: bool
    ticket: Ticket
    future: asyncio.Future[Float32Array]

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.rows_BF)


class FairQueue:
    """First come, first served within a key; keys take turns. Used from one event loop."""

    def __init__(self) -> None:
        self._turns: Turns[Work] = Turns()
        self.rows = 0

    def __bool__(self) -> bool:
        return bool(self._turns)

    def add(self, work: Work) -> None:
        """Behind what its key has waiting."""
        self._turns.add(work.ticket.key, work)
        self.rows += work.rows

    def take(self, most_rows: int) -> list[Work]:
        """The next pieces of work, of so many rows together; a larger piece comes alone.

        Abandoned ones are left out.
        """
        taken: list[Work] = []
        rows = 0
        while self._turns:
            if taken and rows + self._turns.next.rows > most_rows:
                break
            work = self._turns.take()
            self.rows -= work.rows
            if not work.future.done():
                taken.append(work)
                rows += work.rows
        return taken
