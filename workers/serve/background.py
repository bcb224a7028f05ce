"""Heavy work of a replica in a background thread, fair among owners: a hundred searches of one owner delay another's by
one of them. Products have a thread of their own (`batcher.py`), since they must not wait for a second.
"""

import asyncio
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

from cmcl.fairness import FairQueue

# The owner of work that no request waits for.
BACKGROUND = "(background)"

P = ParamSpec("P")
T = TypeVar("T")
Steps = Generator[None, None, T]

# How long the steps of one owner run before another owner's turn.
_TURN_SECONDS = 0.02


@dataclass(eq=False)
class _Piece:
    """A piece of work; `answer` gets what it returns or raises, or is cancelled."""

    work: Callable[[], Any]
    answer: asyncio.Future[Any]


class BackgroundExecutor:
    """One thread for everything heavy but products; owners take turns. Used from one event loop."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        executor: ThreadPoolExecutor | None = None,
    ) -> None:
        # One, as torch has one thread: more would only take turns. Started now: later, the system may be out of threads.
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="heavy")
        self._executor.submit(int)
        self._clock = clock
        self._began: float | None = None
        self._waiting: FairQueue[_Piece] = FairQueue()
        self._is_busy = False

    @property
    def busy_seconds(self) -> float:
        """How long the present piece of work has taken; 0 where there is none."""
        began = self._began
        return 0.0 if began is None else self._clock() - began

    async def run(
        self, owner: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function and return its result. Cancelled work is not begun; what has begun runs to its end.

        `owner`: owners are served in turns; or BACKGROUND. Raises RuntimeError where this is closed.
        """
        loop = asyncio.get_running_loop()
        piece = _Piece(partial(function, *args, **kwargs), loop.create_future())
        self._waiting.add(owner, piece)
        self._start_next(loop)
        answer = piece.answer
        del piece
        try:
            found: T = await answer
        finally:
            # An error refers to this frame, which must not refer to what holds the error: the work, and a body of many
            # megabytes with it, would stay until the garbage collector runs.
            del answer
        return found

    async def run_steps(self, owner: str, steps: Steps[T]) -> T:
        """Run steps, with other owners' turns in between. Returns what they return."""
        while True:
            done = await self.run(owner, _advance, steps)
            if done is not None:
                return done[0]

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
        work = piece.work
        del piece  # As in `run`.
        self._began = self._clock()
        try:
            return work()
        finally:
            self._began = None


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
