"""Dynamic batching without a timer: what arrived while the last product ran goes into the next.

Shapes: B rows, F width of the raw feature, E width of the embeddings.

Rows of different requests and versions wait in one queue; each product is of one version and one
modality. A request alone is answered at once, and the busier a replica is the larger its products
become. Small batches are computed on the event loop itself, where a hop to a thread and back would
cost more than the product; large ones in the compute thread, while the loop reads and writes.
"""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from cmcl.fairness import FairQueue
from workers.model.heads import unit_rows
from workers.serve.background import BackgroundExecutor
from workers.serve.errors import DeadlineExceeded
from workers.serve.telemetry import ServeMetrics
from workers.serve.threads import SYSTEM, Threads
from workers.serve.versions.loading import Float32Array, LoadedHeads, ServedVersion

# Rows of one owner before the next one's turn. Small, so that many owners share a product.
_QUANTUM = 64

logger = logging.getLogger(__name__)

# A search that compares with millions of rows, or a map between two versions, takes some seconds.
_HEAVY_SECONDS = 120.0
# The product of 32 rows at width 1024 takes 3 ms of one core; a hop to a thread and back takes 0.2,
# and ten times as long while the loop keeps the interpreter busy.
_INLINE_ROWS = 32
# Beyond this a product is hardly faster per row, and requests of other owners wait for its end.
_MOST_ROWS = 512


@dataclass(frozen=True)
class Ticket:
    """The owner whose share of the products rows take, and the deadline, by the event loop's clock."""

    owner: str = ""
    deadline: float = float("inf")


NO_TICKET = Ticket()


@dataclass(eq=False)
class PendingRows:
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

    work: PendingRows
    start: int
    stop: int

    @property
    def rows_BF(self) -> Float32Array:
        return self.work.rows_BF[self.start : self.stop]


class RowQueue:
    """Deficit round robin over owners, with a request cut where a turn ends.

    First in, first out within an owner. Used from one event loop.
    """

    def __init__(self) -> None:
        self._queue: FairQueue[PendingRows] = FairQueue()
        self._left = _QUANTUM
        self.rows = 0

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, work: PendingRows) -> None:
        assert not work.taken, "work is queued once"
        self._queue.add(work.ticket.owner, work)
        self.rows += work.waiting

    def take(self, most_rows: int) -> list[Slice]:
        """The next rows, at most `most_rows` together, without those of abandoned requests.

        A queue that fails fails all that it holds, and is empty after that: none waits until its deadline.
        """
        taken: dict[PendingRows, Slice] = {}
        try:
            self._take(taken, most_rows)
        except Exception as error:
            # A bug.
            logger.exception("the queue of rows failed, and the requests in it")
            for work in taken:
                work.fail(error)
            while self._queue:
                self._queue.next.fail(error)
                self._queue.pop()
            self._left, self.rows = _QUANTUM, 0
            return []
        return list(taken.values())

    def _take(self, taken: dict[PendingRows, Slice], most_rows: int) -> None:
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
        assert free >= 0
        assert self.rows >= 0
        assert bool(self._queue) or not self.rows, "rows wait that are in no queue"

    def _end_turn(self, work: PendingRows, rows: int) -> None:
        """Where the owner has used its quantum, or has nothing more."""
        assert 0 < rows <= self._left or not work.waiting
        self._left -= rows
        if not work.waiting:
            self._queue.pop()
        is_still_there = self._queue.owner == work.ticket.owner
        if is_still_there and self._left:
            return
        if is_still_there:
            self._queue.pass_on()
        self._left = _QUANTUM


_Result = list[tuple[Slice, Float32Array | Exception]]


class Batcher:
    """Applies heads to rows. Used from one event loop, with one thread for products."""

    def __init__(self, metrics: ServeMetrics, threads: Threads = SYSTEM) -> None:
        self._metrics = metrics
        self._queue = RowQueue()
        self._flush_is_due = False
        self._thread_is_busy = False
        # One, as torch has one: more would only take turns.
        self._products = threads.executor(1, "embed")

    @property
    def waiting_rows(self) -> int:
        """Rows that no product has been started for."""
        return self._queue.rows

    async def embed(
        self,
        version: ServedVersion,
        modality: str,
        rows_BF: Float32Array,
        *,
        normalize: bool = True,
        ticket: Ticket = NO_TICKET,
    ) -> Float32Array:
        """Return embeddings (B × E) by this version; rows of other requests may share the product.

        Raises DeadlineExceeded, where the rows waited until after the deadline.
        """
        loop = asyncio.get_running_loop()
        heads = version.source.in_memory
        if heads is None:
            heads = await asyncio.to_thread(version.source.load)
        assert rows_BF.ndim == 2
        assert rows_BF.dtype == np.float32
        future: asyncio.Future[Float32Array] = loop.create_future()
        self._queue.add(PendingRows(heads, modality, rows_BF, normalize, ticket, future))
        self._schedule(loop)
        return await future

    async def responds(self, seconds: float) -> bool:
        """Return whether the thread of the products completes a task in this time."""
        loop = asyncio.get_running_loop()
        probe = loop.run_in_executor(self._products, lambda: None)
        try:
            await asyncio.wait_for(asyncio.shield(probe), seconds)
        except TimeoutError:
            return False
        return True

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """After everything that the loop has ready, so that requests which are read now join the product."""
        if not self._flush_is_due and not self._thread_is_busy:
            self._flush_is_due = True
            loop.call_soon(self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        self._flush_is_due = False
        assert not self._thread_is_busy, "one product at a time"
        taken = [each for each in self._queue.take(_MOST_ROWS) if _in_time(each.work, loop.time())]
        rows = sum(each.stop - each.start for each in taken)
        assert rows <= _MOST_ROWS
        if rows:
            self._metrics.batch(len(taken), rows)
        if rows > _INLINE_ROWS:
            self._thread_is_busy = True
            product = loop.run_in_executor(self._products, _results, taken)
            product.add_done_callback(lambda done: self._after(done, loop))
            return
        _deliver(_results(taken))
        if self._queue:
            self._schedule(loop)

    def _after(self, done: asyncio.Future[_Result], loop: asyncio.AbstractEventLoop) -> None:
        assert self._thread_is_busy
        self._thread_is_busy = False
        _deliver(done.result())
        if self._queue:
            self._schedule(loop)


def _in_time(work: PendingRows, now: float) -> bool:
    if now <= work.ticket.deadline:
        return True
    work.fail(DeadlineExceeded("the rows waited for longer than the request may"))
    return False


def _results(taken: list[Slice]) -> _Result:
    """Every slice with its embeddings; one product for each set of heads and modality."""

    def product_of(each: Slice) -> tuple[int, str]:
        return (id(each.work.heads), each.work.modality)

    results: _Result = []
    for _, group in groupby(sorted(taken, key=product_of), key=product_of):
        together = list(group)
        try:
            results += _product(together)
        except Exception as error:
            # A bug, or no memory: these requests fail, and the next product is tried anyway.
            logger.exception("a product for %d requests failed", len(together))
            results += [(each, error) for each in together]
    return results


@torch.inference_mode()
def _product(together: list[Slice]) -> _Result:
    pieces = [each.rows_BF for each in together]
    rows_BF = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    first = together[0].work
    head = first.heads.serving[first.modality]
    outputs_BE = head.outputs(torch.from_numpy(rows_BF))
    assert outputs_BE.shape == (len(rows_BF), len(head.bias_E))
    outputs = outputs_BE.numpy()
    # All rows at once: the operation costs as much for one row as for 32.
    units = (
        unit_rows(outputs_BE).numpy() if any(each.work.normalize for each in together) else outputs
    )
    results: _Result = []
    start = 0
    for each, rows_BF in zip(together, pieces, strict=True):
        stop = start + len(rows_BF)
        results.append((each, (units if each.work.normalize else outputs)[start:stop]))
        start = stop
    assert start == len(outputs), "rows without an answer"
    return results


def _deliver(results: _Result) -> None:
    for each, result in results:
        if isinstance(result, Exception):
            each.work.fail(result)
        else:
            each.work.fill(each.start, result)


async def stuck(
    batcher: Batcher, background: Iterable[BackgroundExecutor], seconds: float
) -> str | None:
    """Return which thread is stuck; None where none is. Waits for `seconds` at most.

    Much work may be queued in the background, so a probe behind it would not show whether that thread is stuck: the time
    that the present piece of work has taken does.
    """
    if not await batcher.responds(seconds):
        return f"the compute thread did not respond for {seconds:g} s"
    busy_seconds = max(each.busy_seconds for each in background)
    if busy_seconds > _HEAVY_SECONDS:
        return f"a background thread has been busy with the same work for {busy_seconds:.0f} s"
    return None
