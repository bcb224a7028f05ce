"""The HTTP server: uvicorn, with a bound for heads, idle connections and clients that stop reading.

uvicorn itself bounds none of these. A head may grow without end, a connection that never finishes one
stays open for ever, and so does one whose client does not take its answer.

A connection *waits* while the next step is the client's: to finish a head, or to take what was written.
Waiting connections are the ones that can be closed at any time. They are closed after `_PATIENCE_SECONDS`
without progress, and the oldest of them makes room for a new one where the limit is reached. So a flood of
unfinished heads pushes out itself, and not a client that sends a whole head at once.
"""

import asyncio
import logging
import resource
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from service.control.access.rates import client_network
from service.settings import Settings

logger = logging.getLogger(__name__)

# Request line and headers together. Tokens of an issuer have 8 KiB at most.
_HEAD_BYTES = 32 << 10
# For a whole head, from the first byte of the connection or the end of the answer before it. Also how long
# an answer may lie without `_PROGRESS_BYTES` of it being taken.
_PATIENCE_SECONDS = 10.0
_PROGRESS_BYTES = 64 << 10
# Requests that a client may send before the answer to the first one. Each costs about 2 KiB.
_MOST_PIPELINED = 16
# Descriptors that are no connections of clients: database, log, object storage, child processes.
_OTHER_DESCRIPTORS = 256
# Accepted in one turn of the event loop at most, and queued in the kernel.
_BACKLOG = 1024
_GRACEFUL_SECONDS = 10
_FEWEST = 16


class Connections:
    """All open connections, oldest waiting one first. For use on the event loop alone."""

    def __init__(
        self, most: int, proxies: Sequence[str], patience_seconds: float = _PATIENCE_SECONDS
    ) -> None:
        self._most = most
        self._patience_seconds = patience_seconds
        # Half for one source address; a proxy sends everybody's requests from one.
        self._share = max(1, most // 2)
        self._proxies = [ip_network(proxy) for proxy in proxies]
        self._sources: dict[BoundedHttp, str] = {}
        self._open: Counter[str] = Counter()
        # By source and of all: since when each connection waits.
        self._waiting: dict[BoundedHttp, float] = {}
        self._waiting_of: dict[str, dict[BoundedHttp, None]] = {}

    def admit(self, connection: "BoundedHttp", address: str) -> bool:
        """Count a new connection. False where there is no room and no waiting one to close."""
        source = self.source(address)
        has_all_of_its_share = bool(source) and self._open[source] >= self._share
        if has_all_of_its_share and not self._close_oldest(self._waiting_of.get(source, {})):
            return False
        if len(self._sources) >= self._most and not self._close_oldest(self._waiting):
            return False
        self._sources[connection] = source
        self._open[source] += 1
        self.wait(connection)
        return True

    def remove(self, connection: "BoundedHttp") -> None:
        """It is closed."""
        self.work(connection)
        source = self._sources.pop(connection, None)
        if source is None:
            return
        self._open[source] -= 1
        if not self._open[source]:
            del self._open[source]

    def wait(self, connection: "BoundedHttp") -> None:
        """From now on the next step is the client's."""
        source = self._sources.get(connection)
        if source is None:
            return
        self.work(connection)
        self._waiting[connection] = time.monotonic()
        self._waiting_of.setdefault(source, {})[connection] = None

    def work(self, connection: "BoundedHttp") -> None:
        """The next step is ours."""
        if self._waiting.pop(connection, None) is None:
            return
        source = self._sources[connection]
        del self._waiting_of[source][connection]
        if not self._waiting_of[source]:
            del self._waiting_of[source]

    def close_expired(self) -> None:
        """Close what has waited too long without progress."""
        until = time.monotonic() - self._patience_seconds
        while self._waiting:
            connection, since = next(iter(self._waiting.items()))
            if since > until:
                return
            if connection.has_progressed():
                self.wait(connection)
            else:
                self.remove(connection)
                connection.transport.abort()

    def _close_oldest(self, waiting: Mapping["BoundedHttp", object]) -> bool:
        connection = next(iter(waiting), None)
        if connection is None:
            return False
        self.remove(connection)
        connection.transport.abort()
        return True

    def source(self, address: str) -> str:
        """As whose connection it counts; empty for a proxy, which has no share."""
        network = client_network(address)
        return "" if self._is_proxy(address) or self._is_proxy(network) else network

    def _is_proxy(self, address: str) -> bool:
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in proxy for proxy in self._proxies)


class _State(ServerState):
    """What uvicorn hands to every connection."""

    def __init__(self, bounded: Connections) -> None:
        super().__init__()
        self.bounded = bounded


class BoundedHttp(HttpToolsProtocol):
    """One connection, with a bound on its heads and a note of who makes the next step."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._bounded = cast("_State", self.server_state).bounded
        # Of the head that has begun and not ended, and how many have ended.
        self._head_bytes = 0
        self._heads = 0
        self._is_in_head = True
        self._unsent = 0
        self._answering: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        if not self._bounded.admit(self, self.client[0] if self.client else ""):
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._bounded.remove(self)
        # uvicorn says so to the last request alone; the one at work may be an earlier one.
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser pieces that cannot pass the bound, and count those that were in a head alone."""
        while data and not self.transport.is_closing():
            was_in_head, heads = self._is_in_head, self._heads
            room = _HEAD_BYTES - self._head_bytes
            piece, data = data[:room], data[room:]
            super().data_received(piece)
            if not was_in_head or not self._is_in_head or self._heads > heads:
                self._head_bytes = 0
                continue
            self._head_bytes += len(piece)
            if self._head_bytes >= _HEAD_BYTES:
                self._refuse(431, f"The head has more than {_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _MOST_PIPELINED:
            self.transport.abort()
            return
        self._is_in_head, self._heads = False, self._heads + 1
        self._bounded.work(self)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_head = True
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:
            self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.cycle is not None and not self.cycle.response_complete:
            self._bounded.work(self)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def has_progressed(self) -> bool:
        """Whether the client took enough of its answer since the last time that it was asked."""
        before, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        return before - self._unsent >= _PROGRESS_BYTES

    def _wait(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._bounded.wait(self)

    def _refuse(self, status: int, words: str) -> None:
        """Answer and close; without an answer where another one is under way."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        head = (
            b"x-cmcl-server: control-plane\r\n"
            b"content-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n" % len(words)
        )
        self.transport.write(STATUS_LINE[status] + head + words.encode("ascii"))
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server with bounded connections."""

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self.server_state = _State(connections)
        self._connections = connections

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        self._connections.close_expired()
        return await super().on_tick(counter)


def make_server(
    app: ASGIApp,
    settings: Settings,
    log_config: dict[str, Any] | None = None,
    patience_seconds: float = _PATIENCE_SECONDS,
) -> Server:
    """The server for `app`; its `run()` serves until a signal ends it."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=BoundedHttp,
        ws="none",
        backlog=_BACKLOG,
        # Also where uvicorn's own variable says something else: there is one place for settings.
        forwarded_allow_ips=list(settings.trusted_proxies),
        log_config=log_config,
        access_log=False,
        server_header=False,
        # A client that takes nothing any more would keep the process from ending for ever.
        timeout_graceful_shutdown=_GRACEFUL_SECONDS,
    )
    most = _with_descriptors_for(settings.max_connections)
    return Server(config, Connections(most, settings.trusted_proxies, patience_seconds))


def _with_descriptors_for(most: int) -> int:
    """Raise the soft limit of descriptors as far as needed: how many connections there may be then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + _OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return most
    fewer = max(_FEWEST, soft - _OTHER_DESCRIPTORS)
    logger.warning(
        "CMCL_MAX_CONNECTIONS is %d, and this process may open %d files: %d connections are taken",
        *(most, soft, fewer),
    )
    return fewer
