"""A quota: a bounded amount of something, shared so that no tenant can take all of it."""

from workers.serve.errors import Overloaded

# A tenant may hold this many times what stays free (see `fits`).
_TIMES_FREE = 4


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
