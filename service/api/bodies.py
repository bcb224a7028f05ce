"""Request bodies: bounds on size, pace, and bytes per owner."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.concurrency import BODY_BYTES
from service.api.dependencies import BYTES, check_scopes, get_principal, permitted_type
from service.api.problems import refusal
from service.api.streamed import too_slow
from service.core.errors import BodyTooLarge, IncompleteBody, Refused, TooManyRequests
from service.core.principal import EVERY_OWNER, Principal
from workers.flow_control import Pace

# Enough for every body without a list of shards.
_SMALL_BYTES = 16 << 10
_WITH_SHARDS = frozenset({"post_dataset", "append_shards"})
_PACE = Pace(idle_timeout_seconds=10.0, bytes_per_second=16 << 10)
# Of all bodies in memory, counted from their first byte to the response. One owner may have three quarters, so that
# small requests of others are always accepted.
_MOST_BYTES = 32 << 20
_MOST_BYTES_OF_OWNER = 24 << 20
# Unfinished bodies of one owner: each holds a connection.
_MOST_UNFINISHED_OF_OWNER = 256
_RETRY_SECONDS = 2


@dataclass(frozen=True)
class _Wanted:
    """What a route accepts: scopes of the key, and bytes. `is_file`: the route streams its body."""

    path: re.Pattern[str]
    scopes: frozenset[str]
    most_bytes: int
    is_file: bool


@dataclass(frozen=True)
class BodyLimits:
    """Largest file, and largest body with a list of shards, in bytes.

    1 MiB lists some ten thousand shards.
    """

    file: int
    with_shards: int = 1 << 20


class Budget:
    """Budget of bytes and unfinished bodies, by owner. For use on the event loop alone."""

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()
        self._unfinished: Counter[str] = Counter()

    @contextmanager
    def body(self, owner: str) -> Iterator["Arriving"]:
        """Count a body from its first byte until the response. Raises TooManyRequests."""
        if self._unfinished[owner] >= _MOST_UNFINISHED_OF_OWNER:
            message = f"the owner has {_MOST_UNFINISHED_OF_OWNER} unfinished request bodies, which is the limit"
            raise TooManyRequests(f"{message}; finish them, or retry later", _RETRY_SECONDS)
        arriving = Arriving(self, owner)
        self._unfinished[owner] += 1
        try:
            yield arriving
        finally:
            arriving.finish()
            self._bytes[owner] -= arriving.bytes
            if not self._bytes[owner]:
                del self._bytes[owner]

    def take(self, owner: str, number: int) -> None:
        """Count bytes of the owner. Raises TooManyRequests."""
        if (
            self._bytes[owner] + number > _MOST_BYTES_OF_OWNER
            or self._bytes.total() + number > _MOST_BYTES
        ):
            message = "too many bytes of request bodies are in memory; retry later"
            raise TooManyRequests(message, _RETRY_SECONDS)
        self._bytes[owner] += number

    def finish(self, owner: str) -> None:
        """Count a body of the owner as finished."""
        self._unfinished[owner] -= 1
        if not self._unfinished[owner]:
            del self._unfinished[owner]


class Arriving:
    """A body that is arriving."""

    def __init__(self, budget: Budget, owner: str) -> None:
        self._budget, self._owner = budget, owner
        self._is_finished = False
        self.bytes = 0

    def add(self, number: int) -> None:
        """Count more of its bytes. Raises TooManyRequests."""
        self._budget.take(self._owner, number)
        self.bytes += number

    def finish(self) -> None:
        """Count it as finished, once."""
        if not self._is_finished:
            self._is_finished = True
            self._budget.finish(self._owner)


class Bodies:
    """ASGI middleware that reads a body whole, after the key was found to have the scopes of the route.

    Bodies are small, except files: those are passed on as a stream, and counted.
    """

    def __init__(
        self,
        app: ASGIApp,
        api: FastAPI,
        limits: BodyLimits,
        budget: Budget,
        pace: Pace = _PACE,
    ) -> None:
        self._app = app
        self._pace = pace
        self._api = api
        self._limits = limits
        self._wanted: dict[str, list[_Wanted]] = {}
        # By method and path, for routes without parameters.
        self._wanted_at: dict[tuple[str, str], _Wanted] = {}
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # No route of these methods reads a body. Paths without a key, which have no owner, use only these.
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        declared = _declared(headers)
        if not declared and b"transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        wanted = self._find(scope)
        if wanted is None:
            # It will be 404 or 405, without reading the body.
            await self._app(scope, receive, send)
            return
        with ExitStack() as until_answered:
            try:
                taken = await self._receive(wanted, declared, scope, receive, until_answered)
            except Refused as refused:
                await refusal(refused, scope["path"])(scope, receive, send)
                return
            await self._app(scope, taken, send)

    async def _receive(
        self,
        wanted: _Wanted,
        declared: int,
        scope: Scope,
        receive: Receive,
        until_answered: ExitStack,
    ) -> Receive:
        """The `receive` that the app gets. Raises Refused."""
        principal: Principal = scope["state"]["principal"]
        check_scopes(principal, wanted.scopes)
        if declared > wanted.most_bytes:
            raise _too_large(wanted.most_bytes)
        if wanted.is_file:
            scope["state"][BODY_BYTES] = None
            return _counted(receive, wanted.most_bytes)
        arriving = until_answered.enter_context(self._budget.body(principal.owner or EVERY_OWNER))
        body = await self._collect(receive, wanted.most_bytes, arriving)
        scope["state"][BODY_BYTES] = len(body)
        return _replay(body, receive)

    async def _collect(self, receive: Receive, limit: int, arriving: Arriving) -> bytes:
        """Read the whole body. Raises BodyTooLarge, TooManyRequests and IncompleteBody.

        A truncated body must not pass for a whole one: an empty one would be a valid request without a reason, and
        its response would be stored for the Idempotency-Key.
        """
        pieces: list[bytes] = []
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout_at(began + self._pace.idle_timeout_seconds) as timeout:
                async for piece in _pieces(receive):
                    arriving.add(len(piece))
                    pieces.append(piece)
                    if arriving.bytes > limit:
                        raise _too_large(limit)
                    now = loop.time()
                    left = self._pace.seconds_left(now - began, arriving.bytes)
                    timeout.reschedule(now + left)
        except TimeoutError as error:
            raise too_slow(self._pace, loop.time() - began, arriving.bytes) from error
        arriving.finish()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _find(self, scope: Scope) -> _Wanted | None:
        if not self._wanted:
            self._wanted = self._of_all_routes()
        method, path = scope["method"], scope["path"]
        if found := self._wanted_at.get((method, path)):
            return found
        found = next((each for each in self._wanted.get(method, ()) if each.path.match(path)), None)
        if found and not found.path.groups:
            self._wanted_at[method, path] = found
        return found

    def _of_all_routes(self) -> dict[str, list[_Wanted]]:
        found: dict[str, list[_Wanted]] = {}
        for route in iter_route_contexts(self._api.routes):
            if route.path is None:
                continue
            is_file = permitted_type(route) == BYTES
            most = self._limits.with_shards if route.name in _WITH_SHARDS else self._small
            wanted = _Wanted(
                compile_path(route.path)[0],
                frozenset(_scopes(getattr(route, "dependant", None))),
                self._limits.file if is_file else most,
                is_file,
            )
            for method in route.methods or ():
                found.setdefault(method, []).append(wanted)
        return found

    @property
    def _small(self) -> int:
        return min(_SMALL_BYTES, self._limits.with_shards)


def _scopes(dependant: Dependant | None) -> Iterator[str]:
    """The scopes that a route requires of its principal."""
    for each in dependant.dependencies if dependant else ():
        if each.call is get_principal:
            yield from each.own_oauth_scopes or ()
        yield from _scopes(each)


def _declared(headers: Mapping[bytes, bytes]) -> int:
    """The Content-Length; 0 without one."""
    declared = headers.get(b"content-length", b"")
    return int(declared) if declared.isdigit() else 0


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body may have at most {limit} bytes")


async def _pieces(receive: Receive) -> AsyncIterator[bytes]:
    """Stream the body. Raises IncompleteBody."""
    is_last = False
    while not is_last:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise IncompleteBody("the connection ended before the body did")
        yield message.get("body", b"")
        is_last = not message.get("more_body", False)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Replay the body, then pass on what the server sends (a disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again


def _counted(receive: Receive, limit: int) -> Receive:
    """Stream the body. Raises BodyTooLarge in the reader if it is too long."""
    total = 0

    async def receive_counted() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limit:
            raise _too_large(limit)
        return message

    return receive_counted
