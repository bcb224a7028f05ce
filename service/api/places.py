"""How many bodies of files are taken at one time: each of them fills memory and this machine's disk."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from anyio import CancelScope
from fastapi import Request
from starlette.types import Message, Receive

from cmcl.contract.pace import LEAST_BYTES_PER_SECOND
from service.errors import TooManyRequests

_RETRY_SECONDS = 2
_KEPT_FOR_OTHERS = 2
# A body that brings nothing for so long, or less than `LEAST_BYTES_PER_SECOND` over its time but for so
# many seconds, is stalled: it keeps its place only until another one needs it.
STALLED_SECONDS = 5.0

Seconds = Callable[[], float]


class Place:
    """A place that one body has, and how far that body is."""

    def __init__(self, owner: str, seconds: Seconds) -> None:
        self.owner = owner
        self._seconds = seconds
        self._arrived = 0
        self._waited = 0.0
        self._waiting_since: float | None = None
        self._wait: CancelScope | None = None

    def watch(self, request: Request) -> Request:
        """The request, whose body ends with TooManyRequests where the place is taken back."""
        return Request(request.scope, self._watched(request.receive))

    def stalled_for(self) -> float:
        """Seconds since it stalled; negative while bytes come, or those that came are written."""
        if self._waiting_since is None:
            return -1.0
        waiting = self._seconds() - self._waiting_since
        behind = self._waited + waiting - self._arrived / LEAST_BYTES_PER_SECOND
        return max(waiting, behind) - STALLED_SECONDS

    def take_back(self) -> None:
        """End the body's wait for its next bytes."""
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
                f"the part stalled after {self._arrived} bytes, and its place was needed for another "
                "one; send it again",
                _RETRY_SECONDS,
            )

        return receive_watched


class Places:
    """So many for all, and all but two of them for one owner, so that nobody keeps the others out.

    A place whose body is stalled goes to whoever needs it: to another part of the same owner, or of
    one that has fewer places. Without keys everybody is one owner: two of the places would lie idle.

    Used on the event loop alone. Who finds none free is told so at once: to wait, a request would hold
    its connection, and with it what of its body has arrived already.
    """

    def __init__(self, total: int, seconds: Seconds = time.monotonic) -> None:
        self._total = total
        self._share = max(1, total - _KEPT_FOR_OTHERS)
        self._seconds = seconds
        self._taken: set[Place] = set()

    @contextmanager
    def one(self, owner: str) -> Iterator[Place]:
        """A place for as long as the block runs. Raises TooManyRequests where none is free."""
        self._make_room(owner)
        place = Place(owner, self._seconds)
        self._taken.add(place)
        try:
            yield place
        finally:
            self._taken.discard(place)

    def _make_room(self, owner: str) -> None:
        held = Counter(place.owner for place in self._taken)
        if held[owner] >= self._share:
            candidates = [place for place in self._taken if place.owner == owner]
            message = f"{self._share} parts of your files are being taken at this moment"
        elif len(self._taken) >= self._total:
            candidates = [
                place
                for place in self._taken
                if place.owner == owner or held[place.owner] > held[owner]
            ]
            message = f"{self._total} parts of files are being taken at this moment"
        else:
            return
        stalled = [place for place in candidates if place.stalled_for() >= 0]
        if not stalled:
            raise TooManyRequests(f"{message}; send this one again", _RETRY_SECONDS)
        given = max(stalled, key=lambda place: (held[place.owner], place.stalled_for()))
        self._taken.discard(given)
        given.take_back()
