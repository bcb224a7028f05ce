"""The HTTP server: uvicorn, with bounds on request heads, idle connections and clients that stop reading.

uvicorn itself bounds none of these: a head may grow without end, and a connection that never finishes one, or whose
client does not read its response, stays open.

A connection *waits* while the next step is the client's: to finish a head, or to read what was written. Waiting
connections may be closed at any time. They are closed after `IDLE_TIMEOUT_SECONDS` without progress, and at the limit the
oldest of them is closed for a new one. So a flood of unfinished heads displaces itself, and not a client that sends a
whole head at once.

The kernel queues new connections by source address (`connections.py`), so a flood displaces no client before it is
accepted. The event loop is shared by source address, too. The cost of one connection per iteration is bounded, in bytes read and in
callbacks of the parser (a chunk of one byte costs as much as one of 32 KiB), and all connections of a source together
get one such step per iteration: a read, or the start of a request. uvicorn alone handles all that has arrived on one
connection before the next.
"""

import asyncio
import logging
import os
import resource
import socket
from collections.abc import Hashable
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from service.api.connections import (
    IDLE_TIMEOUT_SECONDS,
    LISTENERS,
    Connections,
    LoopScheduler,
    Step,
    listen_by_source,
)
from service.core.principal import EVERY_OWNER, Principal
from service.core.settings import Settings
from workers.flow_control import HeldFlowControl

logger = logging.getLogger(__name__)

# Request line and headers together. Tokens of an issuer have 8 KiB at most.
_HEAD_BYTES = 32 << 10
# Bytes read from one connection at once: thousands of connections may hold as many at the same time.
_READ_BYTES = 32 << 10
# Callbacks of the parser in one step of a connection, and the bytes that are parsed between two looks at them.
_MOST_CALLBACKS = 256
_PARSED_BYTES = 4 << 10
_PROGRESS_BYTES = 64 << 10
# Requests that a client may send before the first response. Each costs about 2 KiB.
_MOST_PIPELINED = 16
# File descriptors for other uses: listening, database, log, object storage, child processes.
_OTHER_DESCRIPTORS = LISTENERS + 256
# New connections of one queue in the kernel. As many may be accepted in one iteration of the event loop.
_BACKLOG = 1024
_GRACEFUL_SECONDS = 10
_FEWEST = 16


class _State(ServerState):
    """State that uvicorn passes to every connection."""

    def __init__(self, bounded: Connections) -> None:
        super().__init__()
        self.bounded = bounded
        self.shares = LoopScheduler()
        # Shared: what is read is copied or parsed before the next read.
        self.buffer = bytearray(_READ_BYTES)


class BoundedHttp(asyncio.BufferedProtocol):
    """Protocol of one connection that reads at most `_READ_BYTES` at once.

    A buffered protocol, because uvloop passes 250 KB at once to an `asyncio.Protocol`, up to 32 times in a row.
    """

    def __init__(self, server_state: ServerState, **options: Any) -> None:
        self._buffer = cast("_State", server_state).buffer
        self._http = Http(server_state=server_state, **options)
        self.connection_made = self._http.connection_made  # type: ignore[method-assign]
        self.connection_lost = self._http.connection_lost  # type: ignore[method-assign]
        self.pause_writing = self._http.pause_writing  # type: ignore[method-assign]
        self.resume_writing = self._http.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._http.data_received(bytes(memoryview(self._buffer)[:nbytes]))


class Http(HttpToolsProtocol):
    """HTTP on one connection, with bounds, and with the side that makes the next step."""

    flow: HeldFlowControl

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        state = cast("_State", self.server_state)
        self._bounded, self._shares = state.bounded, state.shares
        # Whose share of the event loop it uses; behind a proxy, each connection has its own.
        self._source: Hashable = self
        # Bytes of the unfinished head, and the number of finished ones.
        self._head_bytes = 0
        self._heads = 0
        self._is_in_head = True
        self._callbacks = 0
        # Read and not parsed yet.
        self._unparsed = b""
        self._answering: RequestResponseCycle | None = None
        self.unsent = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        address = self.client[0] if self.client else ""
        self._source = self._bounded.source(address) or self
        self.flow = HeldFlowControl(self.transport)
        if not self._bounded.admit(self, address):
            self.transport.abort()
            return
        # uvloop starts to read after this call, even if reading was paused.
        self.loop.call_soon(self._wait_for_share, self._read_on)

    def connection_lost(self, exc: Exception | None) -> None:
        self._bounded.remove(self)
        self._unparsed = b""
        # uvicorn notifies the last request only; the active one may be an earlier one.
        for cycle in (self._answering, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
        # Requests spend time on it as well: a thousand streams may end at the same time.
        self._shares.submit(self._source, partial(self._forget, exc))

    def _forget(self, exc: Exception | None) -> None:
        if self._answering is not None:
            self._answering.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse one step of it; the rest waits for further steps."""
        self._unparsed += data
        self._parse()

    def _parse(self) -> None:
        self._callbacks = 0
        while self._unparsed and self._callbacks < _MOST_CALLBACKS:
            if self.transport.is_closing():
                self._unparsed = b""
                return
            self._parse_piece()
        self._wait_for_share(self._parse if self._unparsed else self._read_on)

    def _parse_piece(self) -> None:
        """Feed the parser a piece within the bound of a head, and count it if it is all head."""
        was_in_head, heads = self._is_in_head, self._heads
        room = min(_PARSED_BYTES, _HEAD_BYTES - self._head_bytes)
        piece, self._unparsed = self._unparsed[:room], self._unparsed[room:]
        super().data_received(piece)
        if self._is_in_head:
            # Those of finished heads were counted then; of this one, again with each piece.
            self._callbacks += len(self.headers or ())
        if not was_in_head or not self._is_in_head or self._heads > heads:
            self._head_bytes = 0
            return
        self._head_bytes += len(piece)
        if self._head_bytes >= _HEAD_BYTES:
            self._refuse(431, f"The head has more than {_HEAD_BYTES} bytes.")

    def _read_on(self) -> None:
        # The first step is scheduled before it is known whether there is something to parse.
        if not self._unparsed:
            self.flow.release()

    def _wait_for_share(self, step: Step) -> None:
        """Run the next step with the next share of the source; reading is paused until then."""
        if not self._shares.submit(self._source, step):
            self.flow.hold()

    def on_body(self, body: bytes) -> None:
        self._callbacks += 1
        super().on_body(body)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _MOST_PIPELINED:
            self.transport.abort()
            return
        self._is_in_head, self._heads = False, self._heads + 1
        self._callbacks += len(self.headers)
        self._bounded.work(self)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_head = True
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._shares.submit(self._source, partial(self._start, cycle, app))

    def _start(self, cycle: RequestResponseCycle, app: Any) -> None:
        if not self.transport.is_closing():
            self._answering = cycle
            super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        if self._answering is not None:
            # The rest of a body that was not read would stay in memory until the next request.
            self._answering.body.clear()
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

    def owner_or_source(self) -> Hashable:
        """See Connection."""
        scope: Any = self._answering.scope if self._answering else {}
        principal: Principal | None = scope.get("state", {}).get("principal")
        return self._source if principal is None else principal.owner or EVERY_OWNER

    def has_progressed(self) -> bool:
        """See Connection."""
        before, self.unsent = self.unsent, self.transport.get_write_buffer_size()
        return before - self.unsent >= _PROGRESS_BYTES

    def _wait(self) -> None:
        self.unsent = self.transport.get_write_buffer_size()
        self._bounded.wait(self)

    def _refuse(self, status: int, message: str) -> None:
        """Respond and close; without a response if another one has started."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        head = (
            b"x-cmcl-server: control-plane\r\n"
            b"content-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n" % len(message)
        )
        self.transport.write(STATUS_LINE[status] + head + message.encode("ascii"))
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server with bounded connections."""

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self.server_state = _State(connections)
        self._connections = connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen as uvicorn does, which ends the process if the port is taken; then also with further sockets."""
        await super().startup(sockets)
        for server in list(self.servers):
            for listening in server.sockets:
                await self._listen_by_source(listening)

    async def _listen_by_source(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(fileno=os.dup(listening.fileno())) as first:
            try:
                others = listen_by_source(first, _BACKLOG)
            except OSError as error:
                logger.warning("connections of all sources wait in one queue: %s", error)
                return
        self.servers += [
            await loop.create_server(self._connection, sock=each, backlog=_BACKLOG)
            for each in others
        ]

    def _connection(self) -> asyncio.BaseProtocol:
        return BoundedHttp(
            server_state=self.server_state, config=self.config, app_state=self.lifespan.state
        )

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        self._connections.close_expired()
        return await super().on_tick(counter)


# Open connections of clients. At the limit, a new one replaces the one that has waited longest for its client, or is
# closed; one address that is not a trusted proxy may use at most half. Each takes a file descriptor and some 100 KiB.
MOST_CONNECTIONS = 4096


def make_server(
    app: ASGIApp,
    settings: Settings,
    log_config: dict[str, Any] | None = None,
    idle_timeout_seconds: float = IDLE_TIMEOUT_SECONDS,
    most: int = MOST_CONNECTIONS,
) -> Server:
    """Create the server for `app`; its `run()` serves until a signal stops it."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        # asyncio accepts either kind of protocol, and uvicorn passes it on.
        http=cast("type[asyncio.Protocol]", BoundedHttp),
        ws="none",
        backlog=_BACKLOG,
        # Overrides uvicorn's own environment variable: settings have one source.
        forwarded_allow_ips=list(settings.trusted_proxies),
        log_config=log_config,
        access_log=False,
        server_header=False,
        # A client that stops reading would keep the process from exiting.
        timeout_graceful_shutdown=_GRACEFUL_SECONDS,
    )
    most = _with_descriptors_for(most)
    return Server(config, Connections(most, settings.trusted_proxies, idle_timeout_seconds))


def _with_descriptors_for(most: int) -> int:
    """Raise the soft limit of file descriptors as needed, and return the number of connections it permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + _OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return most
    fewer = max(_FEWEST, soft - _OTHER_DESCRIPTORS)
    logger.warning(
        "%d connections are wanted, and this process may open %d files: accepting %d connections",
        *(most, soft, fewer),
    )
    return fewer
