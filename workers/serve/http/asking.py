"""Who asks and how: what every request that embeds something says outside of its body."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from workers.serve.access.port import Caller
from workers.serve.compute.port import Ticket
from workers.serve.errors import HeadersTooLarge, InvalidRequest
from workers.serve.http.replica import Replica
from workers.serve.versions.reference import parse_version

MIN_VERSION = "x-min-model-version"
ROUTING_KEY = "x-routing-key"
TIMEOUT_MS = "x-request-timeout-ms"

_LONGEST_MS = 600_000
# A proxy in front has its own limit; uvicorn has none.
_MOST_HEADER_BYTES = 32 << 10
# Almost all requests are answered before; the others cost a task that listens to their socket.
_BEFORE_WATCHING_SECONDS = 0.05


@dataclass(frozen=True)
class Asking:
    """`routing` decides, where given, who is shown a version on trial."""

    caller: Caller
    ticket: Ticket
    min_version: int
    routing: str | None


def read_asking(request: Request, replica: Replica) -> Asking:
    """From the headers alone. Raises HeadersTooLarge, Unauthorized, InvalidRequest, NotReady."""
    headers = request.headers
    size = sum(len(name) + len(value) for name, value in headers.raw)
    if size > _MOST_HEADER_BYTES:
        raise HeadersTooLarge(f"the headers have {size} bytes; permitted are {_MOST_HEADER_BYTES}")
    caller = replica.access.admit(headers.get("authorization"))
    deadline = asyncio.get_running_loop().time() + _seconds(headers.get(TIMEOUT_MS), replica)
    return Asking(
        caller,
        Ticket(caller.key, deadline),
        parse_version(headers.get(MIN_VERSION), MIN_VERSION),
        headers.get(ROUTING_KEY),
    )


def _seconds(text: str | None, replica: Replica) -> float:
    if text is None:
        return replica.args.queue_seconds
    if not text.isdecimal() or not 1 <= int(text) <= _LONGEST_MS:
        raise InvalidRequest(
            f"the header {TIMEOUT_MS} is {text[:60]!r}; permitted are 1 to {_LONGEST_MS}",
            param=TIMEOUT_MS,
        )
    return int(text) / 1000


@asynccontextmanager
async def given_up_with(request: Request) -> AsyncIterator[None]:
    """What happens inside ends when the client goes away. Raises ClientDisconnect then."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a request is answered inside of a task")
    watch = _Watch(request, task)
    later = asyncio.get_running_loop().call_later(_BEFORE_WATCHING_SECONDS, watch.start)
    try:
        yield
    except asyncio.CancelledError:
        if watch.client_is_gone and not task.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        later.cancel()
        watch.stop()


class _Watch:
    """Listens to a client that waits, and cancels its request when it hangs up."""

    def __init__(self, request: Request, task: asyncio.Task[object]) -> None:
        self._request = request
        self._task = task
        self._listening: asyncio.Task[None] | None = None
        self.client_is_gone = False

    def start(self) -> None:
        self._listening = asyncio.create_task(self._listen())

    def stop(self) -> None:
        if self._listening is not None:
            self._listening.cancel()

    async def _listen(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.client_is_gone = True
        self._task.cancel()
