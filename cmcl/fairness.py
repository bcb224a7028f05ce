"""Fairness among owners, for both planes: quotas, and queues and semaphores that take turns.

`Quota` bounds an amount in use, of which no owner can take all. `FairQueue` and `FairSemaphore` serve owners in turns, so
that a hundred requests of one owner delay another's by one of them. All are used from one event loop, without a lock.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

# An owner may hold this many times what stays free (see `fits`).
_TIMES_FREE = 4
T = TypeVar("T")


class OverLimit(Exception):
    """Too much is in use; the same request can succeed in a moment. `is_share`: others could still be served."""

    def __init__(self, message: str, *, is_share: bool) -> None:
        super().__init__(message)
        self.is_share = is_share


def share_of_one(limit: int) -> int:
    """The most that one owner may hold while no other holds anything."""
    return limit * _TIMES_FREE // (_TIMES_FREE + 1)


def fits(limit: int, held: int, total: int, amount: int) -> bool:
    """Whether an owner that holds `held` of the `total` may take `amount` more of the limit.

    An owner may hold at most four times what stays free afterwards. So one owner alone can use 4/5 of the limit, two
    can use 4/9 each, n of them 4 / (4n + 1), and some is left for an owner that holds nothing, however much and however
    long the others hold (dynamic thresholds; Choudhury and Hahne, IEEE/ACM Transactions on Networking 6, 1998). No
    history of owners is needed.

    Small limits are whole numbers: an owner that holds nothing may always take one that is free, and any amount while
    nothing is held at all.
    """
    assert 0 <= held <= total
    assert amount >= 0
    free = limit - total - amount
    if held + amount <= _TIMES_FREE * free:
        return True
    return free >= 0 and not held and (amount == 1 or not total)


def share_now(limit: int, held: int, total: int) -> int:
    """How much an owner that holds `held` of the `total` may hold at this moment."""
    return max(_TIMES_FREE * (limit - total + held) // (_TIMES_FREE + 1), 0)


class Quota:
    """A bounded amount of one thing in use, shared by owners (see `fits`). `what`: the thing, in the plural."""

    def __init__(self, limit: int, what: str) -> None:
        self._limit = limit
        self._what = what
        self._held: Counter[str] = Counter()
        self.total = 0

    @property
    def share_of_one(self) -> int:
        """The most that one owner may hold while no other holds anything."""
        return share_of_one(self._limit)

    def held(self, owner: str, amount: int) -> "_Held":
        """Context manager that counts `amount`. Entering it raises OverLimit if it is too much now."""
        return _Held(self, owner, amount)

    def take(self, owner: str, amount: int) -> None:
        """Count `amount` from now on. Raises OverLimit if it is too much now."""
        held = self._held[owner]
        if not fits(self._limit, held, self.total, amount):
            if self.total + amount > self._limit:
                raise OverLimit(
                    f"{self.total} {self._what} are in use, and {amount} more would exceed the limit of "
                    f"{self._limit}; try again",
                    is_share=False,
                )
            raise OverLimit(
                f"you hold {held} {self._what}, and {amount} more would be over your share, which is "
                f"{share_now(self._limit, held, self.total)} at this moment, so that others are served as well; "
                "try again",
                is_share=True,
            )
        self.release(owner, -amount)
        assert self.total <= self._limit

    def release(self, owner: str, amount: int) -> None:
        """Stop counting `amount`; a negative one is counted without a check."""
        self.total -= amount
        self._held[owner] -= amount
        assert self.total >= self._held[owner] >= 0, f"{self._what} were released twice"
        if not self._held[owner]:
            del self._held[owner]


class _Held:
    """A class and not a generator, because every request passes here twice."""

    __slots__ = ("_amount", "_owner", "_quota")

    def __init__(self, quota: Quota, owner: str, amount: int) -> None:
        self._quota = quota
        self._owner = owner
        self._amount = amount

    def __enter__(self) -> None:
        self._quota.take(self._owner, self._amount)

    def __exit__(self, *_: object) -> None:
        self._quota.release(self._owner, self._amount)


class FairQueue(Generic[T]):
    """Round robin over owners, first in first out within an owner."""

    def __init__(self) -> None:
        self._by_owner: OrderedDict[str, deque[T]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._by_owner)

    def add(self, owner: str, item: T) -> None:
        """Append behind what this owner has waiting."""
        self._by_owner.setdefault(owner, deque()).append(item)

    @property
    def owner(self) -> str | None:
        """The owner whose turn it is; None on an empty queue."""
        return next(iter(self._by_owner), None)

    @property
    def next(self) -> T:
        """The item whose turn it is. Raises StopIteration on an empty queue."""
        return next(iter(self._by_owner.values()))[0]

    def take(self) -> T:
        """Remove and return `next`; then it is the next owner's turn. Raises StopIteration."""
        owner = self.owner
        taken = self.pop()
        if self.owner == owner:
            self.pass_on()
        return taken

    def pop(self) -> T:
        """Remove and return `next`; it stays this owner's turn while it has more. Raises StopIteration."""
        owner, waiting = next(iter(self._by_owner.items()))
        assert waiting, "an owner with nothing that waits has a turn"
        taken = waiting.popleft()
        if not waiting:
            del self._by_owner[owner]
        return taken

    def pass_on(self) -> None:
        """Move on to the next owner. Raises StopIteration on an empty queue."""
        self._by_owner.move_to_end(next(iter(self._by_owner)))


@dataclass(eq=False, frozen=True)
class _Turn:
    amount: int
    granted: asyncio.Future[None]


class FairSemaphore:
    """A bounded amount in use, for which owners wait in turns.

    An amount that does not fit is waited for: smaller ones of other owners do not pass it. An owner at its own limit is
    passed.
    """

    def __init__(
        self, total: int, of_owner: int | None = None, waiting_of_owner: int | None = None
    ) -> None:
        """`of_owner`: the most that one owner may hold. `waiting_of_owner`: the most that may wait of one owner."""
        self._total = total
        self._of_owner = total if of_owner is None else of_owner
        self._waiting_of_owner = waiting_of_owner
        self._held: Counter[str] = Counter()
        # By owner; the next one to be served comes first.
        self._waiting: dict[str, deque[_Turn]] = {}

    @asynccontextmanager
    async def held(self, owner: str, amount: int = 1) -> AsyncIterator[Callable[[], None]]:
        """Hold `amount` until the block ends, or until the function that it is given is called.

        Waits, and raises OverLimit if too many of the owner wait.
        """
        release = await self.acquire(owner, amount)
        try:
            yield release
        finally:
            release()

    async def acquire(self, owner: str, amount: int = 1) -> Callable[[], None]:
        """Wait for `amount`. Return the function that releases it, once. Raises as `held`."""
        assert 0 < amount <= min(self._of_owner, self._total), "it would wait for ever"
        turn = _Turn(amount, asyncio.get_running_loop().create_future())
        turns = self._waiting.setdefault(owner, deque())
        turns.append(turn)
        self._grant()
        if not turn.granted.done():
            await self._wait(owner, turn, turns)
        is_held = True

        def release() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self._release(owner, amount)

        return release

    async def _wait(self, owner: str, turn: _Turn, turns: deque[_Turn]) -> None:
        before = len(turns) - 1
        if self._waiting_of_owner is not None and before >= self._waiting_of_owner:
            turns.pop()
            if not turns:
                del self._waiting[owner]
            raise OverLimit(
                f"{self._held[owner]} requests of the owner are being processed and {before} wait, which is the "
                "limit; send fewer at a time, and retry this one",
                is_share=True,
            )
        try:
            # Shielded: it would be cancelled some iterations before this task sees it.
            await asyncio.shield(turn.granted)
        except asyncio.CancelledError:
            if turn.granted.done():
                self._release(owner, turn.amount)
            else:
                self._remove(owner, turn)
                self._grant()
            raise

    def _release(self, owner: str, amount: int) -> None:
        self._held[owner] -= amount
        assert self._held[owner] >= 0, "released twice"
        if not self._held[owner]:
            del self._held[owner]
        self._grant()

    def _grant(self) -> None:
        """Grant what fits now, to owners in turns."""
        while (owner := self._next()) is not None:
            turn = self._waiting[owner][0]
            self._remove(owner, turn)
            assert not turn.granted.done()
            self._held[owner] += turn.amount
            assert self._held.total() <= self._total
            turn.granted.set_result(None)

    def _next(self) -> str | None:
        """The owner to be served next; None where its amount is not free."""
        for owner, turns in self._waiting.items():
            amount = turns[0].amount
            if self._held[owner] + amount <= self._of_owner:
                return owner if self._held.total() + amount <= self._total else None
        return None

    def _remove(self, owner: str, turn: _Turn) -> None:
        """Remove a turn; the owner's next one queues behind those of other owners."""
        turns = self._waiting.pop(owner)
        turns.remove(turn)
        if turns:
            self._waiting[owner] = turns
