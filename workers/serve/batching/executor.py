"""A background thread for work that takes long, fair among tenants.

A hundred searches of one tenant delay another's by one of them. Much work may be queued, so a probe behind it
would not show whether the thread is stuck; it reports how long the present piece of work has taken instead.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from workers.serve.fair_queue import FairQueue

T = TypeVar("T")


@dataclass(eq=False)
class _Piece:
    """A piece of work; `answer` gets what it returns or raises, or is cancelled."""

    work: Callable[[], Any]
    answer: asyncio.Future[Any]


class BackgroundExecutor:
    """One thread; tenants take turns. Used from one event loop."""

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

    async def run(self, tenant: str, work: Callable[[], T]) -> T:
        """Run `work` and return its result. Cancelled work is not begun; what has begun runs to its end.

        Raises RuntimeError where no thread can be started, or this is closed.
        """
        loop = asyncio.get_running_loop()
        piece = _Piece(work, loop.create_future())
        self._waiting.add(tenant, piece)
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
