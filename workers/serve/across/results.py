"""What is dear to find out and never changes: found out once, kept while it is asked for."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SharedResults(Generic[K, V]):
    """So many results, least recently used out first; used from one event loop, so no lock."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._under_way: dict[K, asyncio.Task[V]] = {}

    def known(self, key: K) -> V | None:
        """None where it was not found out yet."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    async def get(self, key: K, find_out: Callable[[], Awaitable[V]]) -> V:
        """The result; those who ask at the same time share one search.

        Raises what `find_out` raises; a failure is not remembered.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._search(key, find_out))
        # Shielded: a client that hangs up must not take the others' result with it.
        return await asyncio.shield(task)

    async def _search(self, key: K, find_out: Callable[[], Awaitable[V]]) -> V:
        try:
            result = await find_out()
        finally:
            del self._under_way[key]
        self._kept[key] = result
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return result
