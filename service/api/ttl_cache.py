"""Answers that are the same for everybody: made once for all who ask at the same time."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from anyio import CapacityLimiter, to_thread

Made = TypeVar("Made")


class TTLCache(Generic[Made]):
    """What `make` returned last, for `seconds` from its end.

    It runs once at a time: who asks meanwhile waits for the same answer. What it raises is not kept.
    """

    def __init__(self, make: Callable[[], Awaitable[Made]], seconds: float = math.inf) -> None:
        self._make = make
        self._seconds = seconds
        self._lock = asyncio.Lock()
        self._made: tuple[float, Made] | None = None

    async def get(self) -> Made:
        """The newest one. Raises what `make` raises."""
        async with self._lock:
            if self._made is None or time.monotonic() - self._made[0] > self._seconds:
                made = await self._make()
                self._made = (time.monotonic(), made)
            return self._made[1]


def in_thread(make: Callable[[], Made]) -> Callable[[], Awaitable[Made]]:
    """The same in a thread of its own: it holds up neither the event loop nor the threads of requests."""
    thread = CapacityLimiter(1)

    async def made() -> Made:
        return await to_thread.run_sync(make, limiter=thread)

    return made
