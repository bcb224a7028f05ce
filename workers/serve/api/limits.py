"""Limits of requests: how much a replica takes on at once and one owner may hold of it, and deadlines.

Amounts are counted in requests, rows and bytes: a request of 4096 rows is not one of 1 row, and a request that waits
(for its body, for a version) holds neither rows nor many bytes. All of them count until the response has been
sent (`middleware.py`), so that responses which are not read are bounded, too.
"""

import asyncio
from contextlib import AbstractContextManager, nullcontext

from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from cmcl.fairness import Quota
from workers.serve.errors import DeadlineExceeded, InvalidRequest
from workers.serve.settings import ServeSettings

_HOLDING = "cmcl.holding"
# Almost all requests are answered before; the others get a timer, and a task that listens to their socket.
_BEFORE_WATCHING_SECONDS = 0.05


class Admission:
    """The quotas of one replica: requests, rows that are embedded, bytes of bodies and responses, exports, and
    items at each encoder, by its name.

    An export keeps a whole index in memory until its last byte is taken.
    """

    def __init__(self, args: ServeSettings) -> None:
        self.requests = Quota(args.max_requests_in_flight, "requests")
        self.rows = Quota(args.max_rows_in_flight, "rows")
        self.exports = Quota(args.max_exports, "exports")
        self.bytes = Quota(args.max_bytes_in_flight, "bytes of bodies and responses")
        self.encoders = {
            spec.name: Quota(spec.max_queued, f"items at encoder {spec.name!r}")
            for spec in args.encoders
        }

    def at_encoder(self, name: str, owner: str, items: int) -> AbstractContextManager[None]:
        """Context manager that counts items while they are encoded. Entering it raises OverLimit."""
        quota = self.encoders.get(name)
        return nullcontext() if quota is None else quota.held(owner, items)


class Holding:
    """What one request holds of each quota. A request has one owner."""

    def __init__(self) -> None:
        self._owner = ""
        self._held: dict[Quota, int] = {}

    def add(self, quota: Quota, owner: str, amount: int) -> None:
        """Note what was taken of this quota."""
        self._owner = owner
        self._held[quota] = self._held.get(quota, 0) + amount

    def exchange(self, quota: Quota, amount: int) -> None:
        """Hold `amount` of this quota in place of what is held of it."""
        before = self._held.get(quota)
        if before is not None:
            # A response that was made is sent: without a check.
            quota.release(self._owner, before - amount)
            self._held[quota] = amount

    def release(self) -> None:
        """Give everything back."""
        for quota, amount in self._held.items():
            quota.release(self._owner, amount)


def hold_for(scope: Scope) -> Holding:
    """Begin to note what the request of this scope holds."""
    holding = scope[_HOLDING] = Holding()
    return holding


def hold_until_sent(request: Request, quota: Quota, owner: str, amount: int) -> None:
    """Count an amount until the response has been sent, or the request has failed. Raises OverLimit."""
    quota.take(owner, amount)
    holding: Holding = request.scope[_HOLDING]
    holding.add(quota, owner, amount)


def hold_answer(request: Request, quota: Quota, owner: str, size: int) -> None:
    """Count a response of about so many bytes before it is made. Raises OverLimit, InvalidRequest."""
    if size > quota.share_of_one:
        raise InvalidRequest(
            f"the response would have about {size} bytes; permitted are {quota.share_of_one}: send fewer "
            "rows in one request, or ask for encoding_format base64 or for raw bytes",
            "input",
            "answer_too_large",
        )
    hold_until_sent(request, quota, owner, size)


class CancelOnDisconnect:
    """Cancel the block when the client disconnects, or at its deadline. It then raises ClientDisconnect or DeadlineExceeded.

    `deadline`: by the event loop's clock; `seconds`: how long that was from the headers, for the message. A class and
    not a generator, because every request passes here.
    """

    def __init__(self, request: Request, deadline: float, seconds: float) -> None:
        self._request = request
        self._deadline = deadline
        self._seconds = seconds
        self._watching: asyncio.Task[None] | None = None
        self._reason: Exception | None = None

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request must be answered inside a task")
        self._task = task
        loop = asyncio.get_running_loop()
        begin = min(self._deadline, loop.time() + _BEFORE_WATCHING_SECONDS)
        self._later = loop.call_at(begin, self._begin_watching)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._later.cancel()
        if self._watching is not None:
            self._watching.cancel()
        reason = self._reason
        if kind is asyncio.CancelledError and reason is not None and not self._task.uncancel():
            raise reason from None

    def _begin_watching(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        try:
            async with asyncio.timeout_at(self._deadline):
                while (await self._request.receive())["type"] != "http.disconnect":
                    pass
            self._reason = ClientDisconnect()
        except TimeoutError:
            self._reason = DeadlineExceeded(
                f"the request was not done within its deadline of {self._seconds:g} s"
            )
        self._task.cancel()
