"""Limits on concurrent requests and uploads per owner, with fair turns: work queues behind work of the same owner.

A request holds a slot from the end of its body to the head of its response: neither a slow client nor a stream of
events holds one. Files have slots of their own (`UploadSlots`), because they take as long as the client sends.

A large body costs processor time: 10,000 addresses take 0.8 s, 30 ms of it in pieces that would stall the event loop.
So these requests are handled in a thread, one per owner at a time. Threads share one interpreter lock: more of them
would be no faster, and everything else would be slower.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from anyio import CancelScope, CapacityLimiter, to_thread
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import refusal
from service.core.errors import TooManyRequests
from service.core.principal import EVERY_OWNER, Principal
from workers.flow_control import LEAST_BYTES_PER_SECOND

# Set by `Bodies` in the state of a request: size of its body; None for a file, which is streamed.
BODY_BYTES = "body_bytes"

# In the state of a request: the function that releases its slot, for work that takes minutes.
RELEASE_SLOT = "release_slot"

_LARGE_BYTES = 64 << 10
_AT_WORK, _AT_WORK_OF_OWNER = 32, 8
_LARGE_AT_WORK, _LARGE_AT_WORK_OF_OWNER = 2, 1
# Each holds a connection and some kilobytes; bytes of bodies have a budget of their own.
_WAITING_OF_OWNER = 256
_RETRY_SECONDS = 2
# A body is stalled if no byte arrives for so long, or if it is so many seconds behind `LEAST_BYTES_PER_SECOND`. It keeps
# its slot only until another one needs it.
STALLED_SECONDS = 5.0
Seconds = Callable[[], float]


class RequestSlots:
    """The slots of one process, which the API and the page share."""

    def __init__(self) -> None:
        self.small = FairSemaphore(_AT_WORK, _AT_WORK_OF_OWNER, _WAITING_OF_OWNER)
        self.large = FairSemaphore(_LARGE_AT_WORK, _LARGE_AT_WORK_OF_OWNER, _WAITING_OF_OWNER)
        self.threads = CapacityLimiter(_LARGE_AT_WORK)


class ConcurrencyLimit:
    """The innermost ASGI middleware."""

    def __init__(self, app: ASGIApp, slots: RequestSlots) -> None:
        self._app = app
        self._slots = slots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.get("state", {})
        principal: Principal | None = state.get("principal")
        size: int | None = state.get(BODY_BYTES, 0)
        if scope["type"] != "http" or principal is None or size is None:
            await self._app(scope, receive, send)
            return
        is_large = size > _LARGE_BYTES
        slots = self._slots.large if is_large else self._slots.small
        try:
            release = await slots.acquire(principal.owner or EVERY_OWNER)
        except TooManyRequests as refused:
            await refusal(refused, scope["path"])(scope, receive, send)
            return
        state[RELEASE_SLOT] = release

        async def send_and_release(message: Message) -> None:
            release()
            await send(message)

        try:
            if is_large:
                await self._in_thread(scope, await receive(), send)
            else:
                await self._app(scope, receive, send_and_release)
        finally:
            release()

    async def _in_thread(self, scope: Scope, body: Message, send: Send) -> None:
        """Handle it on an event loop of that thread. Only the body and the response pass between the loops."""
        received, answer = [body], list[Message]()

        async def receive_body() -> Message:
            return received.pop() if received else {"type": "http.disconnect"}

        async def keep(message: Message) -> None:
            answer.append(message)

        def run() -> None:
            asyncio.run(self._app(scope, receive_body, keep))  # type: ignore[arg-type]

        await to_thread.run_sync(run, limiter=self._slots.threads)
        for message in answer:
            await send(message)


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
        release = await self.acquire(owner)
        try:
            yield release
        finally:
            release()

    async def acquire(self, owner: str) -> Callable[[], None]:
        """Wait for a slot. Return the function that releases it, once. Raises as `slot`."""
        await self._acquire(owner)
        is_taken = True

        def release() -> None:
            nonlocal is_taken
            if is_taken:
                is_taken = False
                self._release(owner)

        return release

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
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            # Shielded: `turn` would be cancelled some iterations before this task sees it.
            await asyncio.shield(turn)
        except asyncio.CancelledError:
            if turn.done():
                self._release(owner)
            else:
                self._forget(owner, turn)
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

    def _forget(self, owner: str, turn: asyncio.Future[None]) -> None:
        """Remove a waiting request; the owner's next one queues behind those of other owners."""
        queue = self._waiting.pop(owner)
        queue.remove(turn)
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
                f"the file stalled after {self._arrived} bytes, and its slot was needed for another one; "
                "send it again",
                _RETRY_SECONDS,
            )

        return receive_watched


class UploadSlots:
    """Slots for the bodies of files, which take memory. One owner may have `of_owner` of them.

    A slot whose body is stalled is reclaimed for another file of the same owner, or of an owner with fewer slots.

    For use on the event loop alone. A request that finds no slot is refused at once: to wait, it would hold its
    connection, and what has arrived of its body.
    """

    def __init__(self, total: int, of_owner: int, seconds: Seconds = time.monotonic) -> None:
        self._total = total
        self._share = of_owner
        self._seconds = seconds
        self._taken: set[UploadSlot] = set()

    @contextmanager
    def one(self, owner: str) -> Iterator[UploadSlot]:
        """Hold a slot for the block. Raises TooManyRequests if none is free."""
        self._make_room(owner)
        slot = UploadSlot(owner, self._seconds)
        self._taken.add(slot)
        try:
            yield slot
        finally:
            self._taken.discard(slot)

    def _make_room(self, owner: str) -> None:
        held = Counter(slot.owner for slot in self._taken)
        if held[owner] >= self._share:
            candidates = [slot for slot in self._taken if slot.owner == owner]
            message = f"{self._share} of your files are being received"
        elif len(self._taken) >= self._total:
            candidates = [
                slot
                for slot in self._taken
                if slot.owner == owner or held[slot.owner] > held[owner]
            ]
            message = f"{self._total} files are being received"
        else:
            return
        stalled = [slot for slot in candidates if slot.stalled_for() >= 0]
        if not stalled:
            raise TooManyRequests(f"{message}; send this one again", _RETRY_SECONDS)
        given = max(stalled, key=lambda slot: (held[slot.owner], slot.stalled_for()))
        self._taken.discard(given)
        given.reclaim()
