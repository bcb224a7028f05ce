"""Fair sharing: of the event loop by source address, of requests and upload slots by owner.

Scheduling is round robin: work queues behind work of the same source or owner, so another one waits for a single step
and not for all of it.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager

from anyio import CancelScope
from fastapi import Request
from starlette.types import Message, Receive

from cmcl.contract.pace import LEAST_BYTES_PER_SECOND
from service.errors import TooManyRequests

Step = Callable[[], None]

_RETRY_SECONDS = 2
# Slots that one owner cannot have.
_RESERVED_SLOTS = 2
# A body is stalled if no byte arrives for so long, or if it is so many seconds behind `LEAST_BYTES_PER_SECOND`. It keeps
# its slot only until another one needs it.
STALLED_SECONDS = 5.0

Seconds = Callable[[], float]


class LoopScheduler:
    """Runs one step per source in each iteration of the event loop. For use on the event loop alone."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[Step]] = {}
        # Sources that had their step in this iteration.
        self._served: set[Hashable] = set()

    def submit(self, source: Hashable, step: Step) -> bool:
        """Run `step` now if the source had none in this iteration, otherwise in a later one.

        Return whether it ran now.
        """
        if source in self._served:
            self._waiting.setdefault(source, deque()).append(step)
            return False
        if not self._served:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._served.add(source)
        step()
        return True

    def _next_turn(self) -> None:
        self._served = set(self._waiting)
        if self._served:
            # Before the steps: one that raises must not stop the others.
            asyncio.get_running_loop().call_soon(self._next_turn)
        for source in list(self._waiting):
            steps = self._waiting[source]
            step = steps.popleft()
            if not steps:
                del self._waiting[source]
            step()


class FairSemaphore:
    """Semaphore with a limit per owner. For use on the event loop alone.

    Waiting requests are served in order of arrival within an owner; a free slot goes to the owner that has waited
    longest since its last one.
    """

    def __init__(self, total: int, of_owner: int, waiting_of_owner: int) -> None:
        self._total = total
        self._of_owner = of_owner
        self._waiting_of_owner = waiting_of_owner
        self._taken: Counter[str] = Counter()
        # By owner; the next one to be served comes first.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def slot(self, owner: str) -> AsyncIterator[Callable[[], None]]:
        """Hold a slot until the block ends, or until the function that it is given is called.

        Raises TooManyRequests if too many requests of the owner wait.
        """
        await self._acquire(owner)
        is_taken = True

        def release() -> None:
            nonlocal is_taken
            if is_taken:
                is_taken = False
                self._release(owner)

        try:
            yield release
        finally:
            release()

    async def _acquire(self, owner: str) -> None:
        if self._is_free(owner) and owner not in self._waiting:
            self._taken[owner] += 1
            return
        queue = self._waiting.setdefault(owner, deque())
        if len(queue) >= self._waiting_of_owner:
            raise TooManyRequests(
                f"{self._taken[owner]} requests of the owner are being processed and {len(queue)} wait, which "
                "is the limit; send fewer at a time, and retry this one",
                _RETRY_SECONDS,
            )
        place = asyncio.get_running_loop().create_future()
        queue.append(place)
        try:
            # Shielded: `place` would be cancelled some iterations before this task sees it.
            await asyncio.shield(place)
        except asyncio.CancelledError:
            if place.done():
                self._release(owner)
            else:
                self._forget(owner, place)
            raise

    def _is_free(self, owner: str) -> bool:
        return self._taken.total() < self._total and self._taken[owner] < self._of_owner

    def _release(self, owner: str) -> None:
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]
        following = next((each for each in self._waiting if self._is_free(each)), None)
        if following is not None:
            self._taken[following] += 1
            self._waiting[following][0].set_result(None)
            self._forget(following, self._waiting[following][0])

    def _forget(self, owner: str, place: asyncio.Future[None]) -> None:
        """Remove a waiting request; the owner's next one queues behind those of other owners."""
        queue = self._waiting.pop(owner)
        queue.remove(place)
        if queue:
            self._waiting[owner] = queue


class UploadSlot:
    """The slot of one body, and the pace of that body."""

    def __init__(self, owner: str, seconds: Seconds) -> None:
        self.owner = owner
        self._seconds = seconds
        self._arrived = 0
        self._waited = 0.0
        self._waiting_since: float | None = None
        self._wait: CancelScope | None = None

    def watch(self, request: Request) -> Request:
        """Wrap the request: its body raises TooManyRequests if the slot is reclaimed."""
        return Request(request.scope, self._watched(request.receive))

    def stalled_for(self) -> float:
        """Seconds since it stalled; negative while bytes arrive or are written."""
        if self._waiting_since is None:
            return -1.0
        waiting = self._seconds() - self._waiting_since
        behind = self._waited + waiting - self._arrived / LEAST_BYTES_PER_SECOND
        return max(waiting, behind) - STALLED_SECONDS

    def reclaim(self) -> None:
        """Reclaim the slot: cancel the wait for the next bytes."""
        if self._wait is not None:
            self._wait.cancel()

    def _watched(self, receive: Receive) -> Receive:
        async def receive_watched() -> Message:
            self._waiting_since = began = self._seconds()
            with CancelScope() as self._wait:
                message = await receive()
                self._waiting_since = None
                self._waited += self._seconds() - began
                self._arrived += len(message.get("body", b""))
                return message
            raise TooManyRequests(
                f"the part stalled after {self._arrived} bytes, and its slot was needed for another one; "
                "send it again",
                _RETRY_SECONDS,
            )

        return receive_watched


class UploadSlots:
    """Slots for the bodies of parts, which take memory and disk. One owner may have all but two of them.

    A slot whose body is stalled is reclaimed for another part of the same owner, or of an owner with fewer slots.

    For use on the event loop alone. A request that finds no slot is refused at once: to wait, it would hold its
    connection, and what has arrived of its body.
    """

    def __init__(self, total: int, seconds: Seconds = time.monotonic) -> None:
        self._total = total
        self._share = max(1, total - _RESERVED_SLOTS)
        self._seconds = seconds
        self._taken: set[UploadSlot] = set()

    @contextmanager
    def one(self, owner: str) -> Iterator[UploadSlot]:
        """Hold a slot for the block. Raises TooManyRequests if none is free."""
        self._make_room(owner)
        place = UploadSlot(owner, self._seconds)
        self._taken.add(place)
        try:
            yield place
        finally:
            self._taken.discard(place)

    def _make_room(self, owner: str) -> None:
        held = Counter(place.owner for place in self._taken)
        if held[owner] >= self._share:
            candidates = [place for place in self._taken if place.owner == owner]
            message = f"{self._share} parts of your files are being received"
        elif len(self._taken) >= self._total:
            candidates = [
                place
                for place in self._taken
                if place.owner == owner or held[place.owner] > held[owner]
            ]
            message = f"{self._total} parts of files are being received"
        else:
            return
        stalled = [place for place in candidates if place.stalled_for() >= 0]
        if not stalled:
            raise TooManyRequests(f"{message}; send this one again", _RETRY_SECONDS)
        given = max(stalled, key=lambda place: (held[place.owner], place.stalled_for()))
        self._taken.discard(given)
        given.reclaim()
