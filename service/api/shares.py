"""Fair shares: of the event loop by source address, and of threads by owner.

Both are round robins. Work of one source or owner queues behind work of the same one, so however much of it
there is, the next step of another one waits for a single step and not for all of it.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager

from service.errors import TooManyRequests

Step = Callable[[], None]

_RETRY_SECONDS = 2


class LoopScheduler:
    """Runs one step of each source in a turn of the event loop. For use on the event loop alone."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[Step]] = {}
        # Those that have had their step of the present turn.
        self._served: set[Hashable] = set()

    def submit(self, source: Hashable, step: Step) -> bool:
        """Run `step` now if the source has had none in this turn, otherwise in one of the next.

        Returns whether it ran now.
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
            # Before the steps: one that raises does not stop the others' turns.
            asyncio.get_running_loop().call_soon(self._next_turn)
        for source in list(self._waiting):
            steps = self._waiting[source]
            step = steps.popleft()
            if not steps:
                del self._waiting[source]
            step()


class FairSemaphore:
    """A number of places, of which one owner has a share. For use on the event loop alone.

    Requests that find none wait in the order of their arrival; a place that becomes free goes to the owner
    that has waited longest since its last one.
    """

    def __init__(self, total: int, of_owner: int, waiting_of_owner: int) -> None:
        self._total = total
        self._of_owner = of_owner
        self._waiting_of_owner = waiting_of_owner
        self._taken: Counter[str] = Counter()
        # By owner; the one whose turn is next comes first.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def slot(self, owner: str) -> AsyncIterator[Callable[[], None]]:
        """A place until the block ends, or the function that it is given is called.

        Raises TooManyRequests where too many requests of the owner wait.
        """
        await self._take(owner)
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

    async def _take(self, owner: str) -> None:
        if self._is_free(owner) and owner not in self._waiting:
            self._taken[owner] += 1
            return
        queue = self._waiting.setdefault(owner, deque())
        if len(queue) >= self._waiting_of_owner:
            raise TooManyRequests(
                f"{self._taken[owner]} requests of the owner are being answered and {len(queue)} wait, which "
                "is the limit; send fewer at a time, and this one again",
                _RETRY_SECONDS,
            )
        place = asyncio.get_running_loop().create_future()
        queue.append(place)
        try:
            # Shielded: `place` would be cancelled some turns before this task notices it.
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
        """Remove a waiting request; the owner's next one is queued behind those of other owners."""
        queue = self._waiting.pop(owner)
        queue.remove(place)
        if queue:
            self._waiting[owner] = queue
