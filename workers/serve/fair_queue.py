"""A queue in which a tenant that asks for much does not delay those that ask for little."""

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """First in, first out within a tenant; tenants in turns (round robin). Used from one thread."""

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
        """It is the next tenant's turn. Raises StopIteration on an empty queue."""
        self._by_tenant.move_to_end(next(iter(self._by_tenant)))
