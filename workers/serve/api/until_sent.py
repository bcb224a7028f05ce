"""What a request takes up, counted until its answer has left: its place, its rows, bytes in memory.

A client that asks for much and reads slowly would otherwise have answer after answer pile up, each of
them counted nowhere.
"""

import asyncio
import logging
from collections.abc import Iterator

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workers.serve.errors import InvalidRequest
from workers.serve.quota import Quota

logger = logging.getLogger(__name__)

_HOLDING = "cmcl.holding"
# More than most answers have. uvicorn takes a message of any size at once, and lets the next one wait
# until a client has read most of it.
_PIECE_BYTES = 256 << 10


class ReleaseOnSent:
    """An ASGI layer: at the end of each request it gives back what was held for it.

    `bytes_held`: where answers count, in place of the bodies that they answer.
    `stall_seconds`: for each 256 KiB of an answer to leave, before its connection is given up. Under
    a proxy of Ray's own nothing waits here, as it takes in answers whole.
    """

    def __init__(self, app: ASGIApp, bytes_held: Quota, stall_seconds: float) -> None:
        self._app = app
        self._bytes_held = bytes_held
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        holding = scope[_HOLDING] = _Holding()
        sending = _Sending(send, holding, self._bytes_held, self._stall_seconds)
        try:
            await self._app(scope, receive, sending)
        except _Stalled:
            # Without an end the server closes the connection, so nobody takes it for complete.
            logger.warning("a client took nothing for %g s; given up", self._stall_seconds)
        finally:
            holding.give_back()


def hold_until_sent(request: Request, quota: Quota, tenant: str, amount: int) -> None:
    """Count this from now until the answer has left, or the request has failed. Raises Overloaded."""
    quota.take(tenant, amount)
    holding: _Holding = request.scope[_HOLDING]
    holding.add(quota, tenant, amount)


def hold_answer(request: Request, quota: Quota, tenant: str, size: int) -> None:
    """Count an answer of about so many bytes before it is made. Raises Overloaded, InvalidRequest."""
    if size > quota.share_of_one:
        raise InvalidRequest(
            f"the answer would take about {size} bytes; permitted are {quota.share_of_one}: send fewer "
            "rows in one request, or ask for encoding_format base64 or for raw bytes",
            "input",
            "answer_too_large",
        )
    hold_until_sent(request, quota, tenant, size)


class _Holding:
    """What one request holds of each quota."""

    def __init__(self) -> None:
        self._held: dict[tuple[Quota, str], int] = {}

    def add(self, quota: Quota, tenant: str, amount: int) -> None:
        self._held[quota, tenant] = self._held.get((quota, tenant), 0) + amount

    def exchange(self, quota: Quota, amount: int) -> None:
        """Hold `amount` of this quota in place of what is held of it."""
        for (held, tenant), before in self._held.items():
            if held is quota:
                quota.exchange(tenant, before, amount)
                self._held[held, tenant] = amount

    def give_back(self) -> None:
        for (quota, tenant), amount in self._held.items():
            quota.release(tenant, amount)


class _Sending:
    """`send` of one request: in pieces, each of which must leave in time."""

    def __init__(
        self, send: Send, holding: _Holding, bytes_held: Quota, stall_seconds: float
    ) -> None:
        self._send = send
        self._holding = holding
        self._bytes_held = bytes_held
        self._stall_seconds = stall_seconds
        self._start: Message | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            # It leaves with the first piece: timing costs more than all else here.
            self._start = message
            return
        body = message.get("body", b"")
        if body and not message.get("more_body"):
            self._holding.exchange(self._bytes_held, len(body))
        if len(body) <= _PIECE_BYTES:
            await self._send_in_time(message)
            return
        for piece in _pieces(message):
            await self._send_in_time(piece)

    async def _send_in_time(self, message: Message) -> None:
        start, self._start = self._start, None
        try:
            async with asyncio.timeout(self._stall_seconds):
                if start is not None:
                    await self._send(start)
                await self._send(message)
        except TimeoutError as error:
            raise _Stalled from error


class _Stalled(BaseException):
    """Nobody took the next piece in time. No `Exception`: there is nobody left to be told of one."""


def _pieces(message: Message) -> Iterator[Message]:
    """One that is large in several, the last of them empty: it is taken when the others have left."""
    body = message["body"]
    for begin in range(0, len(body), _PIECE_BYTES):
        piece = body[begin : begin + _PIECE_BYTES]
        yield {**message, "body": piece, "more_body": True}
    yield {**message, "body": b"", "more_body": message.get("more_body", False)}
