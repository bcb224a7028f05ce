"""The compute side of a replica as a port: embedding rows, and heavy work in a background thread.

The thread is fair among owners: a hundred searches of one owner delay another's by one of them. Much work may be
queued, so a probe behind it would not show whether the thread is stuck; it reports how long the present piece of work
has taken instead.

Shapes: B rows, F width of the raw feature, E width of the embeddings.
"""

import asyncio
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from cmcl.fairness import FairQueue
from workers.serve.telemetry import RequestTrace
from workers.serve.versions.loading import Float32Array, ServedVersion

# The owner of work that no request waits for.
BACKGROUND = "(background)"

P = ParamSpec("P")
T = TypeVar("T")

# How long the steps of one owner run before another owner's turn.
_TURN_SECONDS = 0.02
Steps = Generator[None, None, T]
# A search that compares with millions of rows, or a map between two versions, takes some seconds.
_HEAVY_SECONDS = 120.0


@dataclass(frozen=True)
class Ticket:
    """The owner whose share of the compute rows take, the deadline, by the event loop's clock, and where times of a
    traced request are noted."""

    owner: str = ""
    deadline: float = float("inf")
    trace: RequestTrace | None = None


NO_TICKET = Ticket()


class Compute(Protocol):
    """Applies heads to rows; used from one event loop."""

    @property
    def waiting_rows(self) -> int:
        """Rows that no product has been started for."""
        ...

    async def embed(
        self,
        version: ServedVersion,
        modality: str,
        rows_BF: Float32Array,
        *,
        normalize: bool = True,
        ticket: Ticket = NO_TICKET,
    ) -> Float32Array:
        """Embeddings (B × E) by this version; rows of other requests may share the product.

        Raises DeadlineExceeded, where the rows waited until after the deadline.
        """
        ...

    async def run(
        self, owner: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run anything heavy, one after the other, in another thread than the products.

        `owner`: owners are served in turns; or BACKGROUND.
        """
        ...

    @property
    def background_seconds(self) -> float:
        """How long the present work of `run` has taken; 0 where there is none."""
        ...

    async def responds(self, seconds: float) -> bool:
        """Whether the thread of the products completes a task within so many seconds."""
        ...


async def run_interleaved(compute: Compute, owner: str, steps: Steps[T]) -> T:
    """Run steps as `Compute.run` does, with other owners' turns in between. Returns what they return."""
    while True:
        done = await compute.run(owner, _advance, steps)
        if done is not None:
            return done[0]


def _advance(steps: Steps[T]) -> tuple[T] | None:
    until = time.monotonic() + _TURN_SECONDS
    try:
        while time.monotonic() < until:
            next(steps)
    except StopIteration as end:
        return (end.value,)
    return None


def run_to_end(steps: Steps[T]) -> T:
    """Run all steps in this thread. Returns what they return."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        found: T = end.value
        return found


async def stuck(compute: Compute, seconds: float) -> str | None:
    """Return which thread is stuck; None where none is. Waits for `seconds` at most."""
    if not await compute.responds(seconds):
        return f"the compute thread did not respond for {seconds:g} s"
    busy = compute.background_seconds
    if busy > _HEAVY_SECONDS:
        return f"the background thread has been busy with the same work for {busy:.0f} s"
    return None


@dataclass(eq=False)
class _Piece:
    """A piece of work; `answer` gets what it returns or raises, or is cancelled."""

    work: Callable[[], Any]
    answer: asyncio.Future[Any]


class BackgroundExecutor:
    """One thread; owners take turns. Used from one event loop."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        executor: ThreadPoolExecutor | None = None,
    ) -> None:
        # One, as torch has one thread: more would only take turns.
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="heavy")
        self._clock = clock
        self._began: float | None = None
        self._waiting: FairQueue[_Piece] = FairQueue()
        self._is_busy = False

    @property
    def busy_seconds(self) -> float:
        """How long the present piece of work has taken; 0 where there is none."""
        began = self._began
        return 0.0 if began is None else self._clock() - began

    async def run(self, owner: str, work: Callable[[], T]) -> T:
        """Run `work` and return its result. Cancelled work is not begun; what has begun runs to its end.

        Raises RuntimeError where no thread can be started, or this is closed.
        """
        loop = asyncio.get_running_loop()
        piece = _Piece(work, loop.create_future())
        self._waiting.add(owner, piece)
        self._start_next(loop)
        answer: T = await piece.answer
        return answer

    def close(self) -> None:
        """Stop the thread when its work is done."""
        self._executor.shutdown()

    def _start_next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the next piece of work, unless the thread is busy."""
        while self._waiting and not self._is_busy:
            piece = self._waiting.take()
            if not piece.answer.done():
                self._begin(piece, loop)

    def _begin(self, piece: _Piece, loop: asyncio.AbstractEventLoop) -> None:
        try:
            running = loop.run_in_executor(self._executor, self._timed, piece)
        except RuntimeError as error:
            piece.answer.set_exception(error)
        else:
            self._is_busy = True
            running.add_done_callback(partial(self._ended, piece, loop))

    def _ended(
        self, piece: _Piece, loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any]
    ) -> None:
        self._is_busy = False
        error = done.exception()
        if not piece.answer.done():  # Otherwise it was cancelled.
            if error is not None:
                piece.answer.set_exception(error)
            else:
                piece.answer.set_result(done.result())
        self._start_next(loop)

    def _timed(self, piece: _Piece) -> Any:
        if piece.answer.done():
            return None  # It stayed in the executor's queue when no thread could be started for it.
        self._began = self._clock()
        try:
            return piece.work()
        finally:
            self._began = None
