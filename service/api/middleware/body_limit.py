"""Bodies that are too large are refused before anything parses them."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import KINDS, problem
from service.errors import BodyTooLarge


class BodyLimit:
    """Refuses by Content-Length at once, and a body without one as soon as it is too long.

    Bodies are small here, so a permitted one is collected and handed on in one piece.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = None if self._declares_too_much(scope) else await self._collect(receive)
        if body is None:
            detail = f"the body may have at most {self._max_bytes} bytes"
            await problem(KINDS[BodyTooLarge], detail, scope["path"])(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    def _declares_too_much(self, scope: Scope) -> bool:
        declared = dict(scope["headers"]).get(b"content-length", b"")
        return declared.isdigit() and int(declared) > self._max_bytes

    async def _collect(self, receive: Receive) -> bytes | None:
        """The whole body; None if it is too large."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                return None
            if not message.get("more_body", False):
                return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The collected body first; then whatever the server still has to say (a disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again
