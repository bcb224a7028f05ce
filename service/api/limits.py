"""Budgets of one owner: request bodies in memory, requests in progress, large responses, files that arrive.

What a client may cost before its key is known is bounded by the proxy (cmcl/service_proxy.cfg), which also closes
connections that stall. `OwnerLimits` reads a body when its route is known, and only for a key with the scopes of the route.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cmcl.fairness import FairSemaphore, OverLimit, Quota
from service.api.dependencies import BYTES, check_scopes, get_principal, permitted_type
from service.api.problems import error_response
from service.core.errors import BodyTooLarge, IncompleteBody
from service.core.principal import EVERY_OWNER, Principal

# Enough for every body without a list of shards or the features of a row.
_SMALL_BYTES = 16 << 10
_WITH_LISTS = frozenset({"post_dataset", "append_shards", "erase_row"})
# 1 MiB lists some ten thousand shards. Validating them takes 0.8 s, and other requests wait for 30 ms of it at a time.
# A row of two of the widest features has 32,768 numbers of at most 25 characters.
_MOST_BYTES, _LARGE_BYTES = 1 << 20, 64 << 10
# Parsing holds the interpreter, for 50 ms and more with 340,000 empty objects. Ten thousand shards of both kinds have
# 60,000 values.
_MOST_VALUES = 100_000
# For a whole body. The proxy sends one of at most 63 KiB when it is complete.
_BODY_SECONDS = 60.0
_MEMORY_BYTES = 32 << 20
_AT_WORK, _AT_WORK_OF_OWNER = 32, 8
_LARGE_AT_WORK, _LARGE_AT_WORK_OF_OWNER = 2, 1
# Responses with more than a piece, until the client has taken all but the last ones.
_SENDING, _SENDING_OF_OWNER, _PIECE_BYTES = 256, 8, 64 << 10
_WAITING_OF_OWNER = 256


class Budgets:
    """The budgets of one process, which the API and the page share. `file_bytes`: the largest streamed body."""

    def __init__(self, file_bytes: int, files_at_once: int) -> None:
        self.file_bytes = file_bytes
        self.files = Quota(files_at_once, "files being received")
        self.bodies = Quota(_MEMORY_BYTES, "bytes of request bodies")
        self.requests = FairSemaphore(_AT_WORK, _AT_WORK_OF_OWNER, _WAITING_OF_OWNER)
        self.large = FairSemaphore(_LARGE_AT_WORK, _LARGE_AT_WORK_OF_OWNER, _WAITING_OF_OWNER)
        self.sending = FairSemaphore(_SENDING, _SENDING_OF_OWNER, _WAITING_OF_OWNER)


def get_budgets(request: Request) -> Budgets:
    budgets: Budgets = request.app.state.budgets
    return budgets


BudgetsDep = Annotated[Budgets, Depends(get_budgets)]


class OwnerLimits:
    """The innermost ASGI middleware."""

    def __init__(self, app: ASGIApp, budgets: Budgets) -> None:
        self._app = app
        self._budgets = budgets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope.get("state", {}).get("principal") is None:
            await self._app(scope, receive, send)
            return
        request = _Limited(self._budgets, scope, receive, send)
        try:
            if not request.has_body:
                await request.wait_for_slot(self._budgets.requests)
            await self._app(scope, request.receive, request.send)
        except OverLimit as error:
            # The slot was denied: other errors are answered within the app.
            await error_response(error, scope["path"])(scope, receive, send)
        finally:
            request.end()


class _Limited:
    """`receive` and `send` of one request, which hold what the budgets count."""

    def __init__(self, budgets: Budgets, scope: Scope, receive: Receive, send: Send) -> None:
        self._budgets, self._scope = budgets, scope
        self._receive, self._send = receive, send
        self._principal: Principal = scope["state"]["principal"]
        self._owner = self._principal.owner or EVERY_OWNER
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        self._declared = int(declared) if declared.isdigit() else 0
        self.has_body = self._declared > 0 or b"transfer-encoding" in headers
        self._is_read = not self.has_body
        self._limit = 0
        self._arrived = 0
        self._in_memory = 0
        self._slot: Callable[[], None] | None = None
        self._sending: Callable[[], None] | None = None
        scope["state"]["release_slot"] = self.release_slot

    async def wait_for_slot(self, slots: FairSemaphore) -> None:
        """Raises OverLimit if too many requests of the owner wait."""
        self._slot = await slots.acquire(self._owner)

    def release_slot(self) -> None:
        """Let another request of the owner run; for work that takes minutes."""
        if self._slot is not None:
            self._slot()
            self._slot = None

    def end(self) -> None:
        """Release all that the request holds."""
        self.release_slot()
        if self._sending is not None:
            self._sending()
        self._budgets.bodies.release(self._owner, self._in_memory)

    async def receive(self) -> Message:
        """See ASGI. The first call reads the whole body, unless the route streams it, and waits for a slot.

        Raises Forbidden, BodyTooLarge, IncompleteBody, OverLimit.
        """
        if self._is_read:
            return await self._receive()
        if not self._limit:
            self._begin()
        if permitted_type(self._scope.get("route")) == BYTES:
            message = await self._receive()
            self._count(message)
            return message
        self._is_read = True
        body = await self._read()
        is_large = len(body) > _LARGE_BYTES
        if is_large and body.count(b",") > _MOST_VALUES:
            raise BodyTooLarge(
                f"the body may have at most {_MOST_VALUES} values (commas are counted)"
            )
        await self.wait_for_slot(self._budgets.large if is_large else self._budgets.requests)
        return {"type": "http.request", "body": body, "more_body": False}

    def _begin(self) -> None:
        route = self._scope.get("route")
        if isinstance(route, APIRoute):
            check_scopes(self._principal, _scopes(route.dependant))
        if permitted_type(route) == BYTES:
            self._limit = self._budgets.file_bytes
        else:
            self._limit = _MOST_BYTES if route and route.name in _WITH_LISTS else _SMALL_BYTES
        if self._declared > self._limit:
            raise BodyTooLarge(f"the body may have at most {self._limit} bytes")

    async def _read(self) -> bytes:
        """A truncated body must not pass for a whole one: an empty one would be a valid request without a reason."""
        pieces, is_last = list[bytes](), False
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while not is_last:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise IncompleteBody("the connection ended before the body did")
                    self._budgets.bodies.take(self._owner, len(message["body"]))
                    self._in_memory += len(message["body"])
                    self._count(message)
                    pieces.append(message["body"])
                    is_last = not message["more_body"]
        except TimeoutError as error:
            raise IncompleteBody(
                f"{self._arrived} bytes of the body arrived in {_BODY_SECONDS:g} s, which is the limit; send it again"
            ) from error
        return b"".join(pieces)

    def _count(self, message: Message) -> None:
        self._arrived += len(message.get("body", b""))
        if self._arrived > self._limit:
            raise BodyTooLarge(f"the body may have at most {self._limit} bytes")

    async def send(self, message: Message) -> None:
        """See ASGI. The slot is released with the head: neither a slow client nor a stream holds it.

        A large body is sent in pieces, each once the client has taken those before. The head of a response that is large
        as a whole waits until few others of the owner are being sent, so few are in memory.
        """
        if message["type"] == "http.response.start":
            length = dict(message["headers"]).get(b"content-length", b"0")
            if int(length) > _PIECE_BYTES:
                self._sending = await self._budgets.sending.acquire(self._owner)
            self.release_slot()
        body = message.get("body", b"")
        for start in range(_PIECE_BYTES, len(body), _PIECE_BYTES):
            piece = body[start - _PIECE_BYTES : start]
            await self._send({**message, "body": piece, "more_body": True})
        await self._send({**message, "body": body[start:]} if len(body) > _PIECE_BYTES else message)


def _scopes(dependant: Dependant) -> Iterator[str]:
    """The scopes that a route requires of its principal."""
    for each in dependant.dependencies:
        if each.call is get_principal:
            yield from each.own_oauth_scopes or ()
        yield from _scopes(each)


# A client that is slower over a whole body would hold its place for hours. The proxy disconnects one that sends nothing.
LEAST_BYTES_PER_SECOND = 64 << 10
GRACE_SECONDS = 20.0


async def pieces_of(request: Request) -> AsyncIterator[bytes]:
    """Yield the pieces of a body. Raises IncompleteBody if it ends early, or arrives too slowly.

    Only the time spent waiting for a piece counts, not the time that the caller spends with it.
    """
    waited, arrived = 0.0, 0
    now = asyncio.get_running_loop().time
    before = now()
    try:
        async for piece in request.stream():
            waited += now() - before
            arrived += len(piece)
            if waited > GRACE_SECONDS + arrived / LEAST_BYTES_PER_SECOND:
                raise IncompleteBody(
                    f"{arrived} bytes of the body arrived in {waited:.1f} s: permitted are {GRACE_SECONDS:g} s more "
                    f"than {LEAST_BYTES_PER_SECOND} bytes/s take; send it again"
                )
            yield piece
            before = now()
    except ClientDisconnect as error:
        raise IncompleteBody("the connection ended before the body did") from error
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) != arrived:
        raise IncompleteBody(f"{arrived} bytes arrived, the Content-Length is {declared}")
