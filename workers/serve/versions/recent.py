"""Versions that requests name exactly (`name@7`): loaded on demand, the last few kept."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from workers.serve.versions.loading import ServedVersion

_Key = tuple[str, int]


class RecentVersions:
    """A small cache, least recently used out first; one event loop, so no lock."""

    def __init__(self, load: Callable[[str, int], ServedVersion], capacity: int) -> None:
        self._load = load
        self._capacity = capacity
        self._kept: OrderedDict[_Key, ServedVersion] = OrderedDict()
        self._loading: dict[_Key, asyncio.Task[ServedVersion]] = {}

    async def get(self, model: str, number: int) -> ServedVersion:
        """The version; requests that ask for it at the same time share one load.

        Raises what `load` raises; a failure is not remembered.
        """
        key = (model, number)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._fetch(key))
        # Shielded: a client that hangs up must not take the others' load with it.
        return await asyncio.shield(task)

    async def _fetch(self, key: _Key) -> ServedVersion:
        try:
            version = await asyncio.to_thread(self._load, *key)
        finally:
            del self._loading[key]
        self._kept[key] = version
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return version
