"""Caches of bounded size, from which the least recently used entry leaves first."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LRU(OrderedDict[K, V]):
    """A dict of at most `most` entries. Writing an entry counts as a use, reading it does not."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self._most:
            self.popitem(last=False)


class AsyncLRUCache(Generic[K, V]):
    """Async LRU cache that coalesces concurrent loads. Used from one event loop."""

    def __init__(self, most: int) -> None:
        self._results: LRU[K, V] = LRU(most)
        self._loading: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K, load: Callable[[], Awaitable[V]]) -> V:
        """Return the cached result, or load it. A failure is raised to all who wait and not cached."""
        if key in self._results:
            self._results.move_to_end(key)
            return self._results[key]
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load(key, load))
        # Shielded: a client that disconnects must not cancel the load of the others.
        return await asyncio.shield(task)

    async def _load(self, key: K, load: Callable[[], Awaitable[V]]) -> V:
        try:
            result = await load()
        finally:
            del self._loading[key]
        self._results[key] = result
        return result
