"""The one place that every answer passes: it names the server, and counts requests by status.

What no user asks for is not counted: probes (a check that finds a replica not ready would count as a query that
failed) and announcements of the control plane.
"""

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cmcl.contract.version import ANNOUNCEMENTS

# nginx's number for "the client went away before it was answered"; nobody reads it.
CLIENT_CLOSED_REQUEST = 499
# Probes, and what brings about a look and nothing else.
NOT_ASKED_BY_USERS = frozenset({"/healthz", "/readyz", ANNOUNCEMENTS})
# By which a client that has the wrong address finds out whose it is; the control plane has one, too.
_SERVER = (b"x-cmcl-server", b"embeddings")


class Counted:
    """An ASGI application around all others, so that nothing which answers can be forgotten."""

    def __init__(self, app: ASGIApp, count: Callable[[int], None]) -> None:
        self.app = app
        self._count = count

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
