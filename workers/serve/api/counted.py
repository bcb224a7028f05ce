"""The one place that every answer passes: it names the server, and counts requests by status.

What no user asks for is not counted: probes (a check that finds a replica not ready would count as a query that
failed) and announcements of the control plane.
"""

import asyncio
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cmcl.contract.version import ANNOUNCEMENTS

# nginx's number for "the client went away before it was answered"; nobody reads it.
CLIENT_CLOSED_REQUEST = 499
# Probes, and what brings about a look and nothing else.
NOT_ASKED_BY_USERS = frozenset({"/healthz", "/readyz", ANNOUNCEMENTS})
# By which a client that has the wrong address finds out whose it is; the control plane has one, too.
_SERVER = (b"x-cmcl-server", b"embeddings")
_UNAUTHORIZED = 401
# Answers 401 at once and in a second; beyond that each waits, so that a flood of wrong keys, which comes on
# so many connections, takes little of the processor. As at the control plane.
_REFUSALS_AT_ONCE = 600
_REFUSALS_PER_SECOND = 10
_REFUSAL_SECONDS = 1.0


class RateLimiter:
    """A token bucket: so many at once, and so many in a second after that."""

    def __init__(
        self, burst: float, per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self._tokens = burst
        self._at = clock()

    def take(self) -> bool:
        """Take a token. False where there is none."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Counted:
    """An ASGI application around all others, so that nothing which answers can be forgotten."""

    def __init__(
        self,
        app: ASGIApp,
        count: Callable[[int], None],
        refusal_seconds: float = _REFUSAL_SECONDS,
    ) -> None:
        self.app = app
        self._count = count
        self._refusals = RateLimiter(_REFUSALS_AT_ONCE, _REFUSALS_PER_SECOND)
        self._refusal_seconds = refusal_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # Serve cancels a request whose client has gone.
        status = CLIENT_CLOSED_REQUEST

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status == _UNAUTHORIZED and not self._refusals.take():
                    await asyncio.sleep(self._refusal_seconds)
                message["headers"] = [*message.get("headers", ()), _SERVER]
            await send(message)

        try:
            await self.app(scope, receive, told)
        except asyncio.CancelledError:
            raise
        except BaseException:
            status = 500
            raise
        finally:
            if scope["path"] not in NOT_ASKED_BY_USERS:
                self._count(status)
