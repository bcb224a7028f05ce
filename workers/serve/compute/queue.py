"""Rows that wait for a product, shared out by rows among tenants.

Shapes: B rows of one request, E width of the embeddings.
"""

import asyncio
from dataclasses import dataclass

import numpy as np

from workers.serve.compute.port import Ticket
from workers.serve.fair_queue import FairQueue
from workers.serve.versions.loading import Float32Array, LoadedHeads

# Rows of one tenant before the next one's turn. Small, so that many tenants share a product.
_QUANTUM = 64


@dataclass(eq=False)
class Work:
    """Rows of one request and one modality. `future` gets their embeddings, or is cancelled.

    A request with many rows is computed in several products: `taken` rows were handed out to one.
    """

    heads: LoadedHeads
    modality: str
    rows_BF: Float32Array
    normalize: bool
    ticket: Ticket
    future: asyncio.Future[Float32Array]
    taken: int = 0
    _computed: int = 0
    _embeddings_BE: Float32Array | None = None

    @property
    def waiting(self) -> int:
        """Rows that no product has been started for."""
        return len(self.rows_BF) - self.taken

    def fail(self, error: Exception) -> None:
        """End it with this error, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)

    def fill(self, start: int, embeddings: Float32Array) -> None:
        """Embeddings of the rows from `start` on; the last ones complete the future."""
        if self.future.done():
            return  # The request was cancelled.
        rows = len(self.rows_BF)
        if len(embeddings) == rows:
            self.future.set_result(embeddings)
            return
        if self._embeddings_BE is None:
            self._embeddings_BE = np.empty((rows, embeddings.shape[1]), embeddings.dtype)
        self._embeddings_BE[start : start + len(embeddings)] = embeddings
        self._computed += len(embeddings)
        if self._computed == rows:
            self.future.set_result(self._embeddings_BE)


@dataclass(eq=False)
class Slice:
    """Consecutive rows of a piece of work."""

    work: Work
    start: int
    stop: int

    @property
    def rows_BF(self) -> Float32Array:
        return self.work.rows_BF[self.start : self.stop]


class RowQueue:
    """Deficit round robin over tenants, with a request cut where a turn ends.

    First in, first out within a tenant. Used from one event loop.
    """

    def __init__(self) -> None:
        self._queue: FairQueue[Work] = FairQueue()
        self._left = _QUANTUM
        self.rows = 0

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, work: Work) -> None:
        """Append behind what its tenant has waiting."""
        self._queue.add(work.ticket.tenant, work)
        self.rows += work.waiting

    def take(self, most_rows: int) -> list[Slice]:
        """The next rows, at most so many together, without those of abandoned requests."""
        taken: dict[Work, Slice] = {}
        free = most_rows
        while self._queue and free:
            work = self._queue.next
            if work.future.done():
                self.rows -= work.waiting
                self._queue.pop()
                continue
            rows = min(work.waiting, self._left, free)
            piece = taken.setdefault(work, Slice(work, work.taken, work.taken))
            piece.stop += rows
            work.taken += rows
            self.rows -= rows
            free -= rows
            self._end_turn(work, rows)
        return list(taken.values())

    def _end_turn(self, work: Work, rows: int) -> None:
        """Where the tenant has used its quantum, or has nothing more."""
        self._left -= rows
        if not work.waiting:
            self._queue.pop()
        is_still_there = self._queue.tenant == work.ticket.tenant
        if is_still_there and self._left:
            return
        if is_still_there:
            self._queue.pass_on()
        self._left = _QUANTUM
