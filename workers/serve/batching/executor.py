"""One thread for what takes long, which says how long it has been at the same piece of work.

Many pieces may wait for it, so whether it moves cannot be told from one more that is put behind them.
Tenants take turns: a hundred searches of one delay another's by one of them.
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
    """`answer` gets what `work` returns or raises, or is cancelled."""

    work: Callable[[], Any]
    answer: asyncio.Future[Any]


class BackgroundExecutor:
    """Used from one event loop."""

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
        """How long it has been at the piece of work that it does now; 0 where it does none."""
        began = self._began
        return 0.0 if began is None else self._clock() - began

    async def run(self, tenant: str, work: Callable[[], T]) -> T:
        """What `work` returns or raises. Abandoned work is not begun; what has begun goes on.

        Raises RuntimeError where no thread can be started, or this is closed.
        """
        loop = asyncio.get_running_loop()
        piece = _Piece(work, loop.create_future())
        self._waiting.add(tenant, piece)
        self._go_on(loop)
        answer: T = await piece.answer
        return answer

    def close(self) -> None:
        """End the thread, once what runs in it is over."""
        self._executor.shutdown()

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """With whoever is next, unless the thread is at something."""
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
        if not piece.answer.done():  # Else abandoned meanwhile.
            if error is not None:
                piece.answer.set_exception(error)
            else:
                piece.answer.set_result(done.result())
        self._go_on(loop)

    def _timed(self, piece: _Piece) -> Any:
        if piece.answer.done():
            return None  # It stayed in the executor's queue when no thread could be started for it.
        self._began = self._clock()
        try:
            return piece.work()
        finally:
            self._began = None
