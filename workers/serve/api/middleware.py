"""The HTTP protocol, and the ASGI layer around all routes: every request enters and every response leaves through it.

It refuses hosts that are not allowed, names the server in each response, counts requests by status, and
releases what a request held (its place, its rows, bytes in memory) when its response has been sent. A client
that asks for much and reads slowly would otherwise have response after response pile up, counted nowhere.

Errors are answered in OpenAI's shape, by this layer and by the routes.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, cast
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cmcl.contract.version import ANNOUNCEMENTS, PARTS
from cmcl.fairness import OverLimit, Quota
from workers.serve.api.context import Holding, hold_for
from workers.serve.errors import ApiError, Forbidden, InvalidRequest, Overloaded

# nginx's number for a client that disconnected before it was answered; it is only counted.
CLIENT_CLOSED_REQUEST = 499
# Message for an unknown path or method, which is most often the other server's.
_ELSEWHERE = (
    "this is the embeddings endpoint; models, datasets, jobs and versions are at the control plane "
    "(CMCL_URL of the client, by default port 8000)"
)
_LONGEST_PATH = 200

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]

_HERE = "localhost"
_ANY = "*"
# Clients of one endpoint use few names, and parsing one costs a twentieth of a request of one row.
_NAMES = 64

# Not counted, and answered under any host name: probes (one that finds a replica not ready would count as a
# query that failed) and requests of the control plane.
INTERNAL_PATHS = frozenset({"/healthz", "/readyz", ANNOUNCEMENTS, PARTS})
# By which a client with the wrong address sees whose it is; the control plane has one, too.
_SERVER = (b"x-cmcl-server", b"embeddings")
_UNAUTHORIZED = 401
# Responses 401 at once and in a second; beyond that each waits, so that a flood of wrong keys, which comes on
# as many connections, takes little of the processor. As at the control plane.
_REFUSALS_AT_ONCE = 600
_REFUSALS_PER_SECOND = 10
_REFUSAL_SECONDS = 1.0
# More than most responses have. uvicorn takes a message of any size at once, and lets the next one wait until most
# of it has been read. HAProxy ends a connection whose client reads nothing.
_PIECE_BYTES = 256 << 10


def install_error_handlers(app: FastAPI) -> None:
    """Let every error leave in OpenAI's shape."""

    async def on_error(_: Request, error: Exception) -> Response:
        return answer_to(error)

    async def on_http_exception(request: Request, error: HTTPException) -> Response:
        asked = f"{request.method} {request.url.path[:_LONGEST_PATH]}"
        message = f"{asked}: {error.detail}; {_ELSEWHERE}"
        code = "method_not_allowed" if error.status_code == 405 else "path_not_found"
        headers = error.headers or {}
        return _response(error.status_code, InvalidRequest.kind, message, None, code, headers)

    for kind in (ApiError, OverLimit, ClientDisconnect, Exception):
        app.exception_handler(kind)(on_error)
    app.exception_handler(HTTPException)(on_http_exception)


def answer_to(error: Exception) -> Response:
    """Return the response for an error. Of an unhandled one it has no details: they are for the log."""
    if isinstance(error, OverLimit):
        error = Overloaded.from_limit(error)
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if isinstance(error, ApiError):
        return _response(
            error.status, error.kind, str(error), error.param, error.code, error.headers
        )
    message = "internal server error"
    return _response(500, "server_error", message, None, ApiError.default_code, {})


def _response(
    status: int,
    kind: str,
    message: str,
    param: str | None,
    code: str,
    headers: Mapping[str, str],
) -> Response:
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status, headers)


class FastPath:
    """An ASGI application: requests of one path and method go to `handler`, all others to `app`.

    FastAPI's and Starlette's layers (routing, dependencies, exit stacks, telemetry) cost a one-row request a
    quarter of its time, and `POST /v1/embeddings` needs none of them.
    """

    def __init__(self, app: FastAPI, path: str, method: str, handler: Handler) -> None:
        self.app = app
        self._path = path
        self._method = method
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_meant = (
            scope["type"] == "http"
            and scope["path"] == self._path
            and scope["method"] == self._method
        )
        if not is_meant:
            await self.app(scope, receive, send)
            return
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except (ApiError, OverLimit, ClientDisconnect) as error:
            return answer_to(error)
        except Exception as error:
            logger.exception("%s %s failed", self._method, self._path)
            return answer_to(error)


class AllowedHosts:
    """Without keys, web pages must not reach the endpoint through a browser.

    Such a page can send requests in two ways: to this address, and then the browser sends the page's `Origin`; or
    to a name of its own that resolves to this address since the page was loaded (DNS rebinding), and then the
    browser sends that name as `Host`. Numeric addresses cannot be rebound. Other programs than browsers can send
    any header; to keep those out, require keys.
    """

    def __init__(self, named: Sequence[str]) -> None:
        """`named`: names besides loopback and numeric addresses; `*` is any."""
        self._named = frozenset(name.lower().removesuffix(".") for name in named)

    def check(self, scope: Scope) -> None:
        """Raises Forbidden."""
        if _ANY in self._named:
            return
        asked = [_name_in(f"//{host}") for host in _headers(scope, b"host")]
        for name in asked:
            if not self._is_known(name) and _address(name) is None:
                raise Forbidden(
                    f"the Host is {name[:60]!r}; without keys, permitted are numeric "
                    "addresses, localhost and the names in allowed_hosts. The operator can "
                    "add this one, or require keys",
                    code="unknown_host",
                )
        for origin in _headers(scope, b"origin"):
            page = _name_in(origin)
            if page not in asked and not self._is_known(page):
                raise Forbidden(
                    f"pages of {origin[:60]!r} are refused without keys. The operator "
                    "can add their host to allowed_hosts, or require keys",
                    code="unknown_origin",
                )

    def _is_known(self, name: str) -> bool:
        address = _address(name)
        is_loopback = address is not None and address.is_loopback
        return name == _HERE or name in self._named or is_loopback


def _headers(scope: Scope, wanted: bytes) -> Iterator[str]:
    return (value.decode("latin-1") for name, value in scope["headers"] if name == wanted)


@lru_cache(_NAMES)
def _name_in(address: str) -> str:
    """Return the name in lower case, without port and final dot; empty where there is none."""
    try:
        return (urlsplit(address).hostname or "").removesuffix(".")
    except ValueError:
        return ""


@lru_cache(_NAMES)
def _address(name: str) -> IPv4Address | IPv6Address | None:
    """The address that a name is in numbers."""
    try:
        return ip_address(name)
    except ValueError:
        return None


class TokenBucket:
    """A token bucket: `burst` at once, and `per_second` after that."""

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


class Middleware:
    """Wraps the application of a replica.

    `count` is called with the status of each request. `bytes_held`: the quota that a response takes in place of
    the body of its request.
    """

    def __init__(
        self,
        app: ASGIApp,
        count: Callable[[int], None],
        bytes_held: Quota,
        hosts: AllowedHosts | None = None,
        refusal_seconds: float = _REFUSAL_SECONDS,
    ) -> None:
        self.app = app
        self._count = count
        self._hosts = hosts
        self.bytes_held = bytes_held
        self._refusals = TokenBucket(_REFUSALS_AT_ONCE, _REFUSALS_PER_SECOND)
        self._refusal_seconds = refusal_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on what is no request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        holding = hold_for(scope)
        response = _Response(self, send, holding)
        try:
            app = self._refusal_of(scope) or self.app
            await app(scope, receive, response)
        except asyncio.CancelledError:
            raise
        except BaseException:
            response.status = 500
            raise
        finally:
            holding.release()
            if scope["path"] not in INTERNAL_PATHS:
                self._count(response.status)

    async def slow_down(self, status: int) -> None:
        """Delay a response to a wrong key, if there are many of them."""
        if status == _UNAUTHORIZED and not self._refusals.take():
            await asyncio.sleep(self._refusal_seconds)

    def _refusal_of(self, scope: Scope) -> ASGIApp | None:
        if self._hosts is None or scope["path"] in INTERNAL_PATHS:
            return None
        try:
            self._hosts.check(scope)
        except Forbidden as error:
            return answer_to(error)
        return None


class _Response:
    """`send` of one request, in pieces."""

    def __init__(self, layer: Middleware, send: Send, holding: Holding) -> None:
        self._layer = layer
        self._send = send
        self._holding = holding
        self._start: Message | None = None
        # Serve cancels a request whose client has disconnected.
        self.status = CLIENT_CLOSED_REQUEST

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            # It is sent with the first piece.
            self._start = message
            return
        body = message.get("body", b"")
        if body and not message.get("more_body"):
            self._holding.exchange(self._layer.bytes_held, len(body))
        if (start := self._start) is not None:
            self._start = None
            self.status = start["status"]
            await self._layer.slow_down(self.status)
            start["headers"] = [*start.get("headers", ()), _SERVER]
            await self._send(start)
        if len(body) <= _PIECE_BYTES:
            await self._send(message)
            return
        for piece in _pieces(message):
            await self._send(piece)


def _pieces(message: Message) -> Iterator[Message]:
    """A large message in several, the last of them empty: it is taken when the others have been."""
    body = message["body"]
    for begin in range(0, len(body), _PIECE_BYTES):
        piece = body[begin : begin + _PIECE_BYTES]
        yield {**message, "body": piece, "more_body": True}
    yield {**message, "body": b"", "more_body": message.get("more_body", False)}


class HttpProtocol(HttpToolsProtocol):
    """One connection: uvicorn's protocol, with head and body of a response in one write.

    uvicorn writes them one after the other. A replica that was killed in between left its client with half a response:
    HAProxy sends a request to another replica as long as nothing of a response has come, and a head is something. What
    one write holds, the kernel delivers or not (docs/log.md has the numbers). An application that sends a head and no
    body for a while has the head wait.

    How requests arrive is bounded by HAProxy in front (cmcl/haproxy.py): size and time of a head, connections of one
    source, one request at a time on a connection, and bodies in pieces of its buffer, whatever their chunks are.
    """

    def on_headers_complete(self) -> None:
        """As uvicorn's, which makes the cycle of a request here, but for an upgrade."""
        before = self.cycle
        super().on_headers_complete()
        # Nothing is written after the head of a response to HEAD.
        if self.cycle is not before and self.scope["method"] != "HEAD":
            self.cycle.transport = cast("asyncio.Transport", CoalescedHead(self.transport))


def install_protocol() -> None:
    """Use this protocol in every server that uvicorn starts in this process from now on.

    Ray Serve starts one in each replica, and has no setting for its HTTP protocol.
    """
    HTTP_PROTOCOLS["auto"] = f"{HttpProtocol.__module__}:{HttpProtocol.__qualname__}"


class CoalescedHead:
    """The transport of one response, which writes the head with the first of the body."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self._begun = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Keep the head, and write everything else."""
        if self._begun:
            self._transport.write(self._taken() + data)
        elif data.startswith(b"HTTP/1.1 100 "):
            self._transport.write(data)
        else:
            self._begun, self._head = True, data

    def close(self) -> None:
        """Write the head of a response without a body, and close the connection."""
        if head := self._taken():
            self._transport.write(head)
        self._transport.close()

    def _taken(self) -> bytes:
        head, self._head = self._head, b""
        return head
