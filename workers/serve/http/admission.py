"""How much is taken on at once: requests, rows and bytes.

Rows and bytes, because a request of 4096 rows is not one of 1 row. Requests, because one that waits
(for its body, for a version) holds neither rows nor many bytes. All of them count until the answer has
left (`until_sent`), so that slow readers pile up nothing.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from workers.serve.errors import Overloaded
from workers.serve.settings import ServeArgs

# A key that was turned away a moment ago still counts as somebody who wants a share.
_REMEMBERED_SECONDS = 1.0


class Budget:
    """So much of one thing at a time, shared by all keys. Used from one event loop, without a lock.

    While half of it is free everybody is served. Beyond that no key may hold more than its equal
    share among those that ask now, so that one that sends without end does not shut out the others.

    `keeps_room`: a share is left for somebody who has not asked yet. For what may be held for a long
    time by a client that does nothing.
    """

    def __init__(
        self,
        limit: int,
        what: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        keeps_room: bool = False,
    ) -> None:
        self._limit = limit
        self._what = what
        self._keeps_room = keeps_room
        self._clock = clock
        self._held: dict[str, int] = {}
        self._asked: dict[str, float] = {}
        self.total = 0

    def held(self, key: str, amount: int) -> "_Held":
        """Counts this while the block runs. Entering it raises Overloaded if it is too much now."""
        return _Held(self, key, amount)

    def take(self, key: str, amount: int) -> None:
        """Count this from now on. Raises Overloaded if it is too much now."""
        self._check(key, amount)
        self._change(key, amount)

    def exchange(self, key: str, before: int, after: int) -> None:
        """Count `after` in place of `before`, however much it is: what was made cannot be refused."""
        self._change(key, after - before)

    def give_back(self, key: str, amount: int) -> None:
        """Count it no more."""
        self._change(key, -amount)

    def _check(self, key: str, amount: int) -> None:
        total = self.total + amount
        if 2 * total <= self._limit:
            return
        share = self._share(key)
        if total > self._limit:
            raise Overloaded(
                f"{self.total} {self._what} are being worked on already, and {amount} more would "
                f"be over the limit of {self._limit}; try again"
            )
        if self._held.get(key, 0) + amount > share:
            raise Overloaded(
                f"your key holds {self._held.get(key, 0)} {self._what}, and with {amount} more it "
                f"would hold more than its share of {share}, so that others are served as well; try again",
                code="share_exceeded",
            )

    def _share(self, key: str) -> int:
        active = self._count_active(key)
        # Where no keys are asked for all are one, and nobody is there to keep room for.
        if self._keeps_room and key:
            # What fits into the whole is let in once, however small the shares are.
            return max(self._limit // (active + 1), 0 if self._held.get(key) else self._limit)
        return self._limit // active

    def _count_active(self, key: str) -> int:
        """Keys that hold something or have asked a moment ago, this one among them."""
        now = self._clock()
        self._asked[key] = now
        self._asked = {
            each: at for each, at in self._asked.items() if now - at < _REMEMBERED_SECONDS
        }
        return len(self._asked.keys() | self._held.keys())

    def _change(self, key: str, amount: int) -> None:
        self.total += amount
        left = self._held.get(key, 0) + amount
        if left:
            self._held[key] = left
        else:
            self._held.pop(key, None)


class _Held:
    """A class and no generator: every request passes here twice."""

    __slots__ = ("_amount", "_budget", "_key")

    def __init__(self, budget: Budget, key: str, amount: int) -> None:
        self._budget = budget
        self._key = key
        self._amount = amount

    def __enter__(self) -> None:
        self._budget.take(self._key, self._amount)

    def __exit__(self, *_: object) -> None:
        self._budget.give_back(self._key, self._amount)


class Admission:
    """What one replica takes on: requests, rows that are embedded, bytes of bodies and answers, exports,
    and items at each encoder, by its modality.

    An export keeps a whole index in memory until its last byte is taken.
    """

    def __init__(self, args: ServeArgs) -> None:
        self.requests = Budget(args.max_requests_in_flight, "requests", keeps_room=True)
        self.rows = Budget(args.max_rows_in_flight, "rows", keeps_room=True)
        self.exports = Budget(args.max_exports, "exports", keeps_room=True)
        self.bytes = Budget(
            args.max_bytes_in_flight, "bytes of bodies and answers", keeps_room=True
        )
        self.encoders = {
            spec.modality: Budget(spec.max_queued, f"items at the encoder of {spec.modality!r}")
            for spec in args.encoders
        }

    def at_encoder(self, modality: str, key: str, items: int) -> AbstractContextManager[None]:
        """Counts items while they are encoded. Entering it raises Overloaded if they are too many."""
        budget = self.encoders.get(modality)
        return nullcontext() if budget is None else budget.held(key, items)
