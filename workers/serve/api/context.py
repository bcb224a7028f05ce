"""The context of a request: the replica, the caller, headers, deadline and body; and what it may hold.

Amounts are counted in requests, rows and bytes: a request of 4096 rows is not one of 1 row, and a request that waits
(for its body, for a version) holds neither rows nor many bytes. All of them count until the response has been
sent (`middleware.py`), so that responses which are not read are bounded, too.
"""

import asyncio
import ipaddress
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import orjson
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from cmcl.fairness import Quota
from cmcl.storage.object_store import ObjectStore
from cmcl.tracing import exporter_from
from workers.serve.api.openapi import answered_header, header_parameter
from workers.serve.api.wire.vectors import JSON
from workers.serve.auth import Access, Caller
from workers.serve.background import BackgroundExecutor, Steps, run_to_end
from workers.serve.batcher import Batcher, Ticket
from workers.serve.collections.collections import Collections
from workers.serve.drift import QueryWatch
from workers.serve.encoders.client import EncoderClient
from workers.serve.errors import (
    BodyTimeout,
    BodyTooLarge,
    DeadlineExceeded,
    HeadersTooLarge,
    InvalidRequest,
)
from workers.serve.settings import Proxies, ServeSettings
from workers.serve.telemetry import (
    ServeMetrics,
)
from workers.serve.versions.live import LiveVersions, VersionLookup, parse_version

if TYPE_CHECKING:
    from workers.serve.otel import OpenTelemetryTracing

logger = logging.getLogger(__name__)

MIN_VERSION = "x-min-model-version"
TIMEOUT_MS = "x-request-timeout-ms"
_OF_CONTEXT = {name.encode(): name for name in (MIN_VERSION, TIMEOUT_MS)}
LONGEST_MS = 600_000
_POSITIVE = {"type": "integer", "minimum": 1}
# For the description: headers that `read_context` reads, and headers of responses.
TIMEOUT = header_parameter(
    TIMEOUT_MS,
    {**_POSITIVE, "maximum": LONGEST_MS},
    "deadline of the request in milliseconds; 504 after it",
)
ASKED_VERSION = [
    header_parameter(
        MIN_VERSION, _POSITIVE, "wait until this version or a later one answers; 503 after a while"
    ),
    TIMEOUT,
]
ANSWERED_VERSION = {
    "x-model-version": answered_header({"type": "integer"}, "number of the version that answered")
}
_HOLDING = "cmcl.holding"
# A proxy in front has its own limit; uvicorn has none.
_MOST_HEADER_BYTES = 32 << 10
# Addresses of proxies, which are few.
_ADDRESSES = 64
# Parsing or writing this much takes at most about 5 ms on the event loop; more goes to the background. The way there
# and back costs as much under load: 32 rows of width 1024 in JSON from 16 clients fell from 8,049 to 5,640
# rows a second when 128 KiB was the limit.
_INLINE_BYTES = 1 << 20
P = ParamSpec("P")
T = TypeVar("T")


class Admission:
    """The quotas of one replica: requests, rows that are embedded, bytes of bodies and responses, exports, and
    items at each encoder, by its name.

    An export keeps a whole index in memory until its last byte is taken.
    """

    def __init__(self, args: ServeSettings) -> None:
        self.requests = Quota(args.max_requests_in_flight, "requests")
        self.rows = Quota(args.max_rows_in_flight, "rows")
        self.exports = Quota(args.max_exports, "exports")
        self.bytes = Quota(args.max_bytes_in_flight, "bytes of bodies and responses")
        self.encoders = {
            spec.name: Quota(spec.max_queued, f"items at encoder {spec.name!r}")
            for spec in args.encoders
        }

    def at_encoder(self, name: str, owner: str, items: int) -> AbstractContextManager[None]:
        """Context manager that counts items while they are encoded. Entering it raises OverLimit."""
        quota = self.encoders.get(name)
        return nullcontext() if quota is None else quota.held(owner, items)


class Holding:
    """What one request holds of each quota. A request has one owner."""

    def __init__(self) -> None:
        self._owner = ""
        self._held: dict[Quota, int] = {}

    def add(self, quota: Quota, owner: str, amount: int) -> None:
        assert self._owner in ("", owner), "a request has one owner"
        self._owner = owner
        self._held[quota] = self._held.get(quota, 0) + amount

    def exchange(self, quota: Quota, amount: int) -> None:
        """Hold `amount` of this quota in place of what is held of it."""
        before = self._held.get(quota)
        if before is not None:
            # A response that was made is sent: without a check.
            quota.release(self._owner, before - amount)
            self._held[quota] = amount

    def release(self) -> None:
        for quota, amount in self._held.items():
            quota.release(self._owner, amount)


def hold_for(scope: Scope) -> Holding:
    """Begin to note what the request of this scope holds."""
    assert _HOLDING not in scope
    holding = scope[_HOLDING] = Holding()
    return holding


def hold_until_sent(request: Request, quota: Quota, owner: str, amount: int) -> None:
    """Count an amount until the response has been sent, or the request has failed. Raises OverLimit."""
    quota.take(owner, amount)
    holding: Holding = request.scope[_HOLDING]
    holding.add(quota, owner, amount)


def hold_answer(request: Request, quota: Quota, owner: str, size: int) -> None:
    """Count a response of about `size` bytes before it is made. Raises OverLimit, InvalidRequest."""
    if size > quota.share_of_one:
        raise InvalidRequest(
            f"the response would have about {size} bytes; permitted are {quota.share_of_one}: send fewer "
            "rows in one request, or ask for encoding_format base64 or for raw bytes",
            "input",
            "answer_too_large",
        )
    hold_until_sent(request, quota, owner, size)


def open_tracing(environment: Mapping[str, str], replica: str) -> "OpenTelemetryTracing | None":
    """Tracing as OpenTelemetry's variables say; None without a destination. `replica`: its id.

    A replica that cannot trace answers nevertheless: the reason is logged.
    """
    try:
        exporter = exporter_from(environment)
        if exporter is None:
            return None
        from workers.serve.otel import OpenTelemetryTracing
    except (ImportError, ValueError) as error:
        logger.error("loads of versions are not traced: %s", error)  # noqa: TRY400
        return None
    return OpenTelemetryTracing(exporter, replica)


@dataclass(frozen=True)
class Replica:
    """The parts of one replica. Created in `app.py`, and by tests without Ray."""

    args: ServeSettings
    store: ObjectStore
    live: LiveVersions
    lookup: VersionLookup
    batcher: Batcher
    background: BackgroundExecutor
    # Lance lets other threads run while it searches.
    searches: BackgroundExecutor
    # By name.
    encoders: Mapping[str, EncoderClient]
    access: Access
    admission: Admission
    metrics: ServeMetrics
    collections: Collections
    # Makes every replica poll the store now. Does not wait, and never fails.
    announce: Callable[[], None] = lambda: None
    tracing: "OpenTelemetryTracing | None" = None
    # Number of replicas by Serve's state. May wait for Serve's controller.
    replica_states: Callable[[], Mapping[str, int]] = dict
    # None: queries are not watched.
    queries: QueryWatch | None = None


@dataclass(frozen=True)
class RequestContext:
    """What the headers of a request say.

    `seconds`: how long the request may take, from its headers to its response. `owner`: what quotas count by, see
    `owner_of`.
    """

    caller: Caller
    owner: str
    ticket: Ticket
    seconds: float
    min_version: int


def read_context(request: Request, replica: Replica) -> RequestContext:
    """Read the context from the headers. Raises HeadersTooLarge, Unauthorized, InvalidRequest, NotReady."""
    raw = request.headers.raw
    size = 0
    # The first of each, as Headers.get returns, in one pass: each look-up there is one.
    headers: dict[str, str] = {}
    for name, value in raw:
        size += len(name) + len(value)
        if name in _OF_CONTEXT:
            headers.setdefault(_OF_CONTEXT[name], value.decode("latin-1"))
    if size > _MOST_HEADER_BYTES:
        raise HeadersTooLarge(f"the headers have {size} bytes; permitted are {_MOST_HEADER_BYTES}")
    caller = replica.access.authenticate(authorization_of(request.headers))
    seconds = _seconds(headers.get(TIMEOUT_MS), replica)
    owner = owner_of(caller, request, replica.args.trusted_proxies)
    return RequestContext(
        caller,
        owner,
        Ticket(owner, asyncio.get_running_loop().time() + seconds),
        seconds,
        parse_version(headers.get(MIN_VERSION), MIN_VERSION),
    )


def owner_of(caller: Caller, request: Request, proxies: Proxies = ()) -> str:
    """What quotas and queues count by: the owner, whose keys share everything.

    The operator's keys are one owner each. Without keys it is the source address (IPv6: its /64). A proxy's
    own address tells nothing about its clients: of a request that one of `proxies` has forwarded, it is the
    last address in X-Forwarded-For, which that proxy has written.
    """
    if caller.owner is not None:
        return f"owner {caller.owner}"
    if caller.key:
        return f"key {caller.key}"
    host = request.client.host if request.client else ""
    if proxies and _is_in(host, proxies):
        forwarded = ",".join(request.headers.getlist("x-forwarded-for"))
        host = forwarded.rpartition(",")[2].strip() or host
    return f"address {_network_of(host)}"


@lru_cache(_ADDRESSES)
def _is_in(host: str, networks: Proxies) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in networks)


def _network_of(host: str) -> str:
    if ":" not in host:
        return host
    try:
        return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
    except ValueError:
        return host


def authorization_of(headers: Headers) -> str | None:
    """Return the header Authorization; None where it was sent twice, as a proxy may have read the other one."""
    given = [value for name, value in headers.raw if name == b"authorization"]
    return given[0].decode("latin-1") if len(given) == 1 else None


def _seconds(text: str | None, replica: Replica) -> float:
    if text is None:
        return replica.args.queue_seconds
    # The form first: int() raises ValueError for thousands of digits.
    if not re.fullmatch(r"[0-9]{1,6}", text) or not 1 <= int(text) <= LONGEST_MS:
        raise InvalidRequest(
            f"the header {TIMEOUT_MS} is {text[:60]!r}; permitted are 1 to {LONGEST_MS}",
            param=TIMEOUT_MS,
        )
    return int(text) / 1000


class within_deadline:  # noqa: N801 - a context manager
    """Cancel the block when the deadline passes. Raises DeadlineExceeded then.

    Ray Serve cancels a request whose client has disconnected. Work in a thread runs to its end without a waiter. Do not use
    it around a write: whether it was done must not be left open. A class and not a generator, because every request passes
    here.
    """

    def __init__(self, context: RequestContext) -> None:
        self._seconds = context.seconds
        self._timeout = asyncio.timeout_at(context.ticket.deadline)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the request was not done within its deadline of {self._seconds:g} s"
            ) from None


async def held_body(request: Request, replica: Replica, owner: str) -> bytes:
    """Read the whole body. It and its request are counted until the response has been sent.

    Bytes count when they have arrived: a declared length that is never sent counts nothing. Raises
    BodyTooLarge, BodyTimeout, OverLimit and ClientDisconnect.
    """
    args, admission = replica.args, replica.admission
    _check_declared(request, args.max_body_bytes)
    hold_until_sent(request, admission.requests, owner, 1)
    # Joined once: a bytearray that grows may be copied nine times.
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(args.body_seconds):
            async for chunk in request.stream():
                if not chunk:
                    continue
                hold_until_sent(request, admission.bytes, owner, len(chunk))
                chunks.append(chunk)
                size += len(chunk)
                if size > args.max_body_bytes:
                    raise _too_large("more than that", args.max_body_bytes)
    except TimeoutError as error:
        raise BodyTimeout(
            f"{size} bytes of the body arrived in {args.body_seconds:g} s, which are permitted for all of it; send it "
            "again"
        ) from error
    return await run_if_large(replica, owner, size, b"".join, chunks)


async def run_if_large(
    replica: Replica,
    owner: str,
    size: int,
    function: Callable[P, T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Call a function that parses or writes `size` bytes: here, or in the background in turns with other owners."""
    if size <= _INLINE_BYTES:
        return function(*args, **kwargs)
    return await replica.background.run(owner, function, *args, **kwargs)


async def run_steps_if_large(replica: Replica, owner: str, size: int, steps: Steps[T]) -> T:
    """The same for a function in steps, with other owners' turns between them."""
    if size <= _INLINE_BYTES:
        return run_to_end(steps)
    return await replica.background.run_steps(owner, steps)


@asynccontextmanager
async def admitted(request: Request, replica: Replica) -> AsyncIterator[RequestContext]:
    """Read the headers of a request without a body, count it, and limit the block to its deadline.

    Raises as `read_context` does, OverLimit, DeadlineExceeded.
    """
    context = read_context(request, replica)
    with replica.admission.requests.held(context.owner, 1):
        async with within_deadline(context):
            yield context


@asynccontextmanager
async def posted(
    request: Request, replica: Replica, parse: Callable[[bytes], T]
) -> AsyncIterator[tuple[RequestContext, bytes, T]]:
    """Read the headers and the body of a request, parse it, and limit the block to its deadline.

    Raises as `read_context`, `held_body` and `parse` do, DeadlineExceeded.
    """
    context = read_context(request, replica)
    body = await held_body(request, replica, context.owner)
    async with within_deadline(context):
        parsed = await run_if_large(replica, context.owner, len(body), parse, body)
        yield context, body, parsed


def json_answer(body: object, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response in JSON."""
    return Response(orjson.dumps(body), media_type=JSON, headers=headers)


def _check_declared(request: Request, most: int) -> None:
    """Raises BodyTooLarge for the declared length, if there is one."""
    text = request.headers.get("content-length", "").lstrip("0")
    # By its length first: int() raises ValueError for thousands of digits.
    if text.isdecimal() and (len(text) > len(str(most)) or int(text) > most):
        raise _too_large(f"{text[:20]} bytes", most)


def _too_large(found: str, most: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body has {found}; permitted are {most} bytes")
