"""How many requests of one owner are worked on at a time, and where.

A request works from the end of its body to the head of its answer: a slow client holds no place, and neither
does a stream of events. Parts of files are bounded by their own places (api/places.py), as they take as long
as their clients send. Completing an upload gives its place back and waits for one among completions.

A large body costs time of the processor: 10,000 addresses are 0.8 s of it, some 30 ms of that in pieces which
would stall the event loop. So these requests are parsed, validated and answered in a thread, one of an owner
at a time. Threads share one interpreter lock: more of them would not make any of them faster, but everything
else slower.
"""

import asyncio
from contextlib import AsyncExitStack

from anyio import CapacityLimiter, to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.fairness import FairSemaphore
from service.api.problems import refusal
from service.errors import TooManyRequests
from service.principal import EVERY_OWNER, Principal

# Set by `Bodies` in the state of a request: bytes of its body; None for a file, which comes as it is read.
BODY_BYTES = "body_bytes"

# In the state of a request: the function that gives its place back, for work that takes minutes.
RELEASE_PLACE = "release_place"

_LARGE_BYTES = 64 << 10
_AT_WORK, _AT_WORK_OF_OWNER = 32, 8
_LARGE_AT_WORK, _LARGE_AT_WORK_OF_OWNER = 2, 1
# They hold a connection and some kilobytes each; bytes of bodies have their own budget.
_WAITING_OF_OWNER = 256


class ConcurrencyLimit:
    """The innermost layer: routes, validation and answers are behind it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._places = FairSemaphore(_AT_WORK, _AT_WORK_OF_OWNER, _WAITING_OF_OWNER)
        self._large = FairSemaphore(_LARGE_AT_WORK, _LARGE_AT_WORK_OF_OWNER, _WAITING_OF_OWNER)
        self._threads = CapacityLimiter(_LARGE_AT_WORK)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.get("state", {})
        principal: Principal | None = state.get("principal")
        size: int | None = state.get(BODY_BYTES, 0)
        if scope["type"] != "http" or principal is None or size is None:
            await self._app(scope, receive, send)
            return
        is_large = size > _LARGE_BYTES
        places = self._large if is_large else self._places
        async with AsyncExitStack() as stack:
            try:
                place = places.slot(principal.owner or EVERY_OWNER)
                release = await stack.enter_async_context(place)
            except TooManyRequests as refused:
                await refusal(refused, scope["path"])(scope, receive, send)
                return
            state[RELEASE_PLACE] = release
            if is_large:
                await self._in_thread(scope, await receive(), send)
                return

            async def send_and_release(message: Message) -> None:
                release()
                await send(message)

            await self._app(scope, receive, send_and_release)

    async def _in_thread(self, scope: Scope, body: Message, send: Send) -> None:
        """Answer it on an event loop of that thread. Only the body and the answer pass between the loops."""
        received, answer = [body], list[Message]()

        async def receive_body() -> Message:
            return received.pop() if received else {"type": "http.disconnect"}

        async def keep(message: Message) -> None:
            answer.append(message)

        def run() -> None:
            asyncio.run(self._app(scope, receive_body, keep))  # type: ignore[arg-type]

        await to_thread.run_sync(run, limiter=self._threads)
        for message in answer:
            await send(message)
