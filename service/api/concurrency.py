"""Limit on concurrent requests per owner.

A request holds a slot from the end of its body to the head of its response: neither a slow client nor a stream of
events holds one. Parts of files have slots of their own (`fairness.UploadSlots`), because they take as long as the
client sends. Completing an upload releases its slot and waits for one for completions.

A large body costs processor time: 10,000 addresses take 0.8 s, 30 ms of it in pieces that would stall the event loop.
So these requests are handled in a thread, one per owner at a time. Threads share one interpreter lock: more of them
would be no faster, and everything else would be slower.
"""

import asyncio
from contextlib import AsyncExitStack

from anyio import CapacityLimiter, to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.fairness import FairSemaphore
from service.api.problems import refusal
from service.errors import TooManyRequests
from service.principal import EVERY_OWNER, Principal

# Set by `Bodies` in the state of a request: size of its body; None for a file, which is streamed.
BODY_BYTES = "body_bytes"

# In the state of a request: the function that releases its slot, for work that takes minutes.
RELEASE_PLACE = "release_place"

_LARGE_BYTES = 64 << 10
_AT_WORK, _AT_WORK_OF_OWNER = 32, 8
_LARGE_AT_WORK, _LARGE_AT_WORK_OF_OWNER = 2, 1
# Each holds a connection and some kilobytes; bytes of bodies have a budget of their own.
_WAITING_OF_OWNER = 256


class ConcurrencyLimit:
    """The innermost ASGI middleware."""

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
        """Handle it on an event loop of that thread. Only the body and the response pass between the loops."""
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
