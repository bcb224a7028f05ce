"""Bodies that are too large are refused before anything parses them."""

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import KINDS, problem, refusal
from service.errors import BodyCutOff, BodyTooLarge

# The one kind of body that may be too large for memory: bytes of a file, taken as they come.
_PART = re.compile(r"^/v1/uploads/[^/]+/parts/[^/]+$")


class BodyLimit:
    """Refuses by Content-Length at once, and a body without one as soon as it is too long.

    Bodies are small here, so a permitted one is collected and handed on in one piece. Parts of files
    are not: they are handed on as they come, and counted.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_part_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_part_bytes = max_part_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "PUT" and _PART.match(scope["path"]):
            await self._hand_on(scope, receive, send)
        else:
            await self._hand_on_whole(scope, receive, send)

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._max_part_bytes
        if _declared(scope) > limit:
            await _refuse(scope, receive, send, limit)
            return
        await self._app(scope, _counted(receive, limit), send)

    async def _hand_on_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._max_bytes
        try:
            body = None if _declared(scope) > limit else await _collect(receive, limit)
        except BodyCutOff as error:
            # For the log alone: nobody is there any more.
            await refusal(error, scope["path"])(scope, receive, send)
            return
        if body is None:
            await _refuse(scope, receive, send, limit)
            return
        await self._app(scope, _replay(body, receive), send)


def _declared(scope: Scope) -> int:
    """What Content-Length says; 0 where it says nothing."""
    declared: bytes = dict(scope["headers"]).get(b"content-length", b"")
    return int(declared) if declared.isdigit() else 0


async def _refuse(scope: Scope, receive: Receive, send: Send, limit: int) -> None:
    await problem(KINDS[BodyTooLarge], _words(limit), scope["path"])(scope, receive, send)


def _words(limit: int) -> str:
    return f"the body may have at most {limit} bytes"


async def _collect(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None if it is too large.

    Raises BodyCutOff: what is left of a body must not be taken for one. An empty rest would be a
    request without a reason, done and remembered for its Idempotency-Key.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BodyCutOff("the connection ended before the body did")
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The collected body first; then whatever the server still has to say (a disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again


def _counted(receive: Receive, limit: int) -> Receive:
    """The body as it comes. Raises BodyTooLarge, to whoever reads it, where it is too long."""
    total = 0

    async def receive_counted() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limit:
            raise BodyTooLarge(_words(limit))
        return message

    return receive_counted
