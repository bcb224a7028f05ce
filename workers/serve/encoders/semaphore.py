"""How many items of this replica are at an encoder at once; tenants wait for the rest in turns.

The encoder's process knows no tenants, and answers in the order in which items came.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from workers.serve.fair_queue import FairQueue


@dataclass(eq=False)
class _Waiting:
    items: int
    let_in: asyncio.Future[None]


class FairSemaphore:
    """Counts items. Used from one event loop. `most`: no fewer than the largest part asked for."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: FairQueue[_Waiting] = FairQueue()

    @asynccontextmanager
    async def held(self, tenant: str, items: int) -> AsyncIterator[None]:
        """So many, while the block runs. Entering it waits for them."""
        await self._acquire(tenant, items)
        try:
            yield
        finally:
            self._release(items)

    async def _acquire(self, tenant: str, items: int) -> None:
        waiting = _Waiting(items, asyncio.get_running_loop().create_future())
        self._waiting.add(tenant, waiting)
        self._let_in()
        try:
            await waiting.let_in
        except asyncio.CancelledError:
            if not waiting.let_in.cancelled():  # Let in, and cancelled before it went on.
                self._release(items)
            raise

    def _release(self, items: int) -> None:
        self._free += items
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            first = self._waiting.next
            if not first.let_in.done():
                if first.items > self._free:
                    return
                self._free -= first.items
                first.let_in.set_result(None)
            self._waiting.take()
