"""Cache of a value that is expensive to create and equal for all requests."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from anyio import CapacityLimiter, to_thread

Made = TypeVar("Made")


class TTLCache(Generic[Made]):
    """Caches what `make` returned for `seconds`, and coalesces concurrent calls. Errors are not cached."""

    def __init__(self, make: Callable[[], Awaitable[Made]], seconds: float = math.inf) -> None:
        self._make = make
        self._seconds = seconds
        self._lock = asyncio.Lock()
        self._made: tuple[float, Made] | None = None

    async def get(self) -> Made:
        """Return the value, and create it if it is too old. Raises what `make` raises."""
        async with self._lock:
            if self._made is None or time.monotonic() - self._made[0] > self._seconds:
                made = await self._make()
                self._made = (time.monotonic(), made)
            return self._made[1]


def in_thread(make: Callable[[], Made]) -> Callable[[], Awaitable[Made]]:
    """Run `make` in a thread of its own, which blocks neither the event loop nor the threads of requests."""
    thread = CapacityLimiter(1)

    async def made() -> Made:
        return await to_thread.run_sync(make, limiter=thread)

    return made
