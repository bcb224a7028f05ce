"""Fairness among tenants: a quota, of which no tenant can take all, and a queue and a semaphore that take turns."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from workers.serve.errors import Overloaded

# A tenant may hold this many times what stays free (see `fits`).
_TIMES_FREE = 4
T = TypeVar("T")


def share_of_one(limit: int) -> int:
    """The most that one tenant may hold while no other holds anything."""
    return limit * _TIMES_FREE // (_TIMES_FREE + 1)


def fits(limit: int, held: int, total: int, amount: int) -> bool:
    """Whether a tenant that holds `held` of the `total` may take `amount` more of the limit.

    A tenant may hold at most four times what stays free afterwards. So one tenant alone can use 4/5 of
    the limit, two can use 4/9 each, n of them 4 / (4n + 1), and some is left for a tenant that holds
    nothing, however much and however long the others hold (dynamic thresholds; Choudhury and
    Hahne, IEEE/ACM Transactions on Networking 6, 1998). No history of tenants is needed.

    Small limits are whole numbers: a tenant that holds nothing may always take one that is free, and
    any amount while nothing is held at all.
    """
    free = limit - total - amount
    if held + amount <= _TIMES_FREE * free:
        return True
    return free >= 0 and not held and (amount == 1 or not total)


def share_now(limit: int, held: int, total: int) -> int:
    """How much a tenant that holds `held` of the `total` may hold at this moment."""
    return max(_TIMES_FREE * (limit - total + held) // (_TIMES_FREE + 1), 0)


class Quota:
    """A bounded amount of one thing in use, shared by tenants (see `fits`).

    Used from one event loop, without a lock.
    """

    def __init__(self, limit: int, what: str) -> None:
        self._limit = limit
        self._what = what
        self._held: dict[str, int] = {}
        self.total = 0

    @property
    def share_of_one(self) -> int:
        """The most that one tenant may hold while no other holds anything."""
        return share_of_one(self._limit)

    def held(self, tenant: str, amount: int) -> "_Held":
        """Context manager that counts `amount`. Entering it raises Overloaded if it is too much now."""
        return _Held(self, tenant, amount)

    def take(self, tenant: str, amount: int) -> None:
        """Count `amount` from now on. Raises Overloaded if it is too much now."""
        self._check(tenant, amount)
        self._change(tenant, amount)

    def exchange(self, tenant: str, before: int, after: int) -> None:
        """Count `after` in place of `before`, without a limit: a response that was made is sent."""
        self._change(tenant, after - before)

    def release(self, tenant: str, amount: int) -> None:
        """Stop counting `amount`."""
        self._change(tenant, -amount)

    def _check(self, tenant: str, amount: int) -> None:
        held = self._held.get(tenant, 0)
        if fits(self._limit, held, self.total, amount):
            return
        if self.total + amount > self._limit:
            raise Overloaded(
                f"{self.total} {self._what} are in use, and {amount} more would "
                f"exceed the limit of {self._limit}; try again"
            )
        share = share_now(self._limit, held, self.total)
        raise Overloaded(
            f"you hold {held} {self._what}, and {amount} more would be over your share, which is "
            f"{share} at this moment, so that others are served as well; try again",
            code="share_exceeded",
        )

    def _change(self, tenant: str, amount: int) -> None:
        self.total += amount
        left = self._held.get(tenant, 0) + amount
        if left:
            self._held[tenant] = left
        else:
            self._held.pop(tenant, None)


class _Held:
    """A class and not a generator, because every request passes here twice."""

    __slots__ = ("_amount", "_quota", "_tenant")

    def __init__(self, quota: Quota, tenant: str, amount: int) -> None:
        self._quota = quota
        self._tenant = tenant
        self._amount = amount

    def __enter__(self) -> None:
        self._quota.take(self._tenant, self._amount)

    def __exit__(self, *_: object) -> None:
        self._quota.release(self._tenant, self._amount)


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
