"""A cache of bounded size, from which the least recently used entry leaves first."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class AsyncLRUCache(Generic[K, V]):
    """Async LRU cache that coalesces concurrent loads. Used from one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tasks: OrderedDict[K, asyncio.Task[V]] = OrderedDict()

    async def get(self, key: K, load: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Return the cached result, or load it. A failure is raised to all who wait and not cached."""
        # Shielded: a client that disconnects must not cancel the load of the others.
        return await asyncio.shield(self._task(key, load))

    def peek(self, key: K, load: Callable[[], Coroutine[Any, Any, V]]) -> V | None:
        """Return the cached result; None while it is being loaded, which this begins while fewer than `most` are loading."""
        # Only `most` of the loads that have ended are kept.
        if key not in self._tasks and len(self._tasks) >= 2 * self._most:
            return None
        task = self._task(key, load)
        return task.result() if task.done() and not task.exception() else None

    def _task(self, key: K, load: Callable[[], Coroutine[Any, Any, V]]) -> asyncio.Task[V]:
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(load(), name=f"load {key}")
            task.add_done_callback(lambda done: self._evict(key, done))
        else:
            self._tasks.move_to_end(key)
        return task

    def _evict(self, key: K, ended: asyncio.Task[V]) -> None:
        """Drop a failure, or the results beyond `most`. A load that has not ended stays: others wait for it."""
        if (ended.cancelled() or ended.exception()) and self._tasks.get(key) is ended:
            del self._tasks[key]
        done = [key for key, task in self._tasks.items() if task.done()]
        for oldest in done[: -self._most]:
            del self._tasks[oldest]
