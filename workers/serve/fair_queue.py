"""A fair queue and a fair semaphore: a tenant that asks for much does not delay the others."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Round robin over tenants, first in first out within a tenant. Used from one thread."""

    def __init__(self) -> None:
        self._by_tenant: OrderedDict[str, deque[T]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._by_tenant)

    def add(self, tenant: str, item: T) -> None:
        """Append behind what this tenant has waiting."""
        self._by_tenant.setdefault(tenant, deque()).append(item)

    @property
    def tenant(self) -> str | None:
        """The tenant whose turn it is; None on an empty queue."""
        return next(iter(self._by_tenant), None)

    @property
    def next(self) -> T:
        """The item whose turn it is. Raises StopIteration on an empty queue."""
        return next(iter(self._by_tenant.values()))[0]

    def take(self) -> T:
        """Remove and return `next`; then it is the next tenant's turn. Raises StopIteration."""
        tenant = self.tenant
        taken = self.pop()
        if self.tenant == tenant:
            self.pass_on()
        return taken

    def pop(self) -> T:
        """Remove and return `next`; it stays this tenant's turn while it has more. Raises StopIteration."""
        tenant, waiting = next(iter(self._by_tenant.items()))
        taken = waiting.popleft()
        if not waiting:
            del self._by_tenant[tenant]
        return taken

    def pass_on(self) -> None:
        """Move on to the next tenant. Raises StopIteration on an empty queue."""
        self._by_tenant.move_to_end(next(iter(self._by_tenant)))


@dataclass(eq=False)
class _Waiting:
    items: int
    let_in: asyncio.Future[None]


class FairSemaphore:
    """A bounded number of items in use; tenants that wait take turns. Used from one event loop.

    `most`: at least as many as the largest part that is asked for.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: FairQueue[_Waiting] = FairQueue()

    @asynccontextmanager
    async def held(self, tenant: str, items: int) -> AsyncIterator[None]:
        """Hold so many while the block runs. Entering it waits for them."""
        await self._acquire(tenant, items)
        try:
            yield
        finally:
            self._release(items)

    async def _acquire(self, tenant: str, items: int) -> None:
        waiting = _Waiting(items, asyncio.get_running_loop().create_future())
        self._waiting.add(tenant, waiting)
        self._grant()
        try:
            await waiting.let_in
        except asyncio.CancelledError:
            if not waiting.let_in.cancelled():  # Let in, and cancelled before it continued.
                self._release(items)
            raise

    def _release(self, items: int) -> None:
        self._free += items
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            first = self._waiting.next
            if not first.let_in.done():
                if first.items > self._free:
                    return
                self._free -= first.items
                first.let_in.set_result(None)
            self._waiting.take()
