"""Heavy work of a replica in a background thread, fair among owners: a hundred searches of one owner delay another's by
one of them. Products have a thread of their own (`batcher.py`), since they must not wait for a second.

And a cache of what took long to find out.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Generator, Hashable
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

from cmcl.fairness import FairSemaphore
from workers.serve.threads import SYSTEM, Threads

# The owner of work that no request waits for.
BACKGROUND = "(background)"

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Steps = Generator[None, None, T]

# How long the steps of one owner run before another owner's turn.
_TURN_SECONDS = 0.02


class BackgroundExecutor:
    """Threads for heavy work; owners take turns. Used from one event loop.

    `count` threads: one where work holds the interpreter or is torch's, since more would only take turns.
    """

    def __init__(self, threads: Threads = SYSTEM, count: int = 1) -> None:
        self._executor = threads.executor(count, "heavy")
        self._clock = threads.seconds
        self._began: list[float] = []
        self._turns = FairSemaphore(count)

    @property
    def busy_seconds(self) -> float:
        """How long the oldest piece of work that runs has taken; 0 where there is none."""
        return self._clock() - min(self._began, default=self._clock())

    async def run(
        self, owner: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function and return its result. Cancelled work is not begun; what has begun runs to its end.

        `owner`: owners are served in turns; or BACKGROUND. Raises RuntimeError where the executor is shut down.
        """
        release = await self._turns.acquire(owner)
        try:
            # No name for the future: its error refers to this frame, and a cycle would keep a body of many megabytes until
            # the garbage collector runs.
            return await asyncio.get_running_loop().run_in_executor(
                self._executor, self._timed, partial(function, *args, **kwargs)
            )
        finally:
            release()

    async def run_steps(self, owner: str, steps: Steps[T]) -> T:
        """Run steps, with other owners' turns in between. Returns what they return."""
        while True:
            done = await self.run(owner, self._advance, steps)
            if done is not None:
                return done[0]

    def _advance(self, steps: Steps[T]) -> tuple[T] | None:
        until = self._clock() + _TURN_SECONDS
        try:
            while self._clock() < until:
                next(steps)
        except StopIteration as end:
            return (end.value,)
        return None

    def _timed(self, work: Callable[[], T]) -> T:
        began = self._clock()
        self._began.append(began)
        try:
            return work()
        finally:
            self._began.remove(began)


def run_to_end(steps: Steps[T]) -> T:
    """Run all steps in this thread. Returns what they return."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        found: T = end.value
        return found


class AsyncLRUCache(Generic[K, T]):
    """Async LRU cache that coalesces concurrent loads. Used from one event loop."""

    def __init__(self, most: int) -> None:
        assert most > 0
        self._most = most
        self._tasks: OrderedDict[K, asyncio.Task[T]] = OrderedDict()

    async def get(self, key: K, load: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the cached result, or load it. A failure is raised to all who wait and not cached."""
        # Shielded: a client that disconnects must not cancel the load of the others.
        return await asyncio.shield(self._task(key, load))

    def peek(self, key: K, load: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        """Return the cached result; None while it is being loaded, which this begins while fewer than `most` are loading."""
        # Only `most` of the loads that have ended are kept.
        if key not in self._tasks and len(self._tasks) >= 2 * self._most:
            return None
        task = self._task(key, load)
        return task.result() if task.done() and not task.exception() else None

    def _task(self, key: K, load: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(load(), name=f"load {key}")
            task.add_done_callback(lambda done: self._evict(key, done))
        else:
            self._tasks.move_to_end(key)
        return task

    def _evict(self, key: K, ended: asyncio.Task[T]) -> None:
        """Drop a failure, or the results beyond `most`. A load that has not ended stays: others wait for it."""
        if (ended.cancelled() or ended.exception()) and self._tasks.get(key) is ended:
            del self._tasks[key]
        done = [key for key, task in self._tasks.items() if task.done()]
        for oldest in done[: -self._most]:
            del self._tasks[oldest]
