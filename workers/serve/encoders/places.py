"""How many items of this replica are at an encoder at once; what is beyond waits here, by turns.

The encoder's process knows no keys, and answers in the order in which items came.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from workers.serve.turns import Turns


@dataclass(eq=False)
class _Waiting:
    items: int
    let_in: asyncio.Future[None]


class Places:
    """Used from one event loop. `most`: no fewer than the largest part that is asked for."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._turns: Turns[_Waiting] = Turns()

    @asynccontextmanager
    async def held(self, key: str, items: int) -> AsyncIterator[None]:
        """So many, while the block runs. Entering it waits for them."""
        await self._take(key, items)
        try:
            yield
        finally:
            self._give_back(items)

    async def _take(self, key: str, items: int) -> None:
        waiting = _Waiting(items, asyncio.get_running_loop().create_future())
        self._turns.add(key, waiting)
        self._let_in()
        try:
            await waiting.let_in
        except asyncio.CancelledError:
            if not waiting.let_in.cancelled():  # Let in, and given up before it was noticed.
                self._give_back(items)
            raise

    def _give_back(self, items: int) -> None:
        self._free += items
        self._let_in()

    def _let_in(self) -> None:
        while self._turns:
            waiting = self._turns.next
            if not waiting.let_in.done():
                if waiting.items > self._free:
                    return
                self._free -= waiting.items
                waiting.let_in.set_result(None)
            self._turns.take()
