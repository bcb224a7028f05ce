"""The HTTP protocol of a replica: uvicorn's, with whole responses in one write and bounded steps of the loop.

uvicorn writes the head of a response and its body one after the other. A replica that was killed in between
left its client with half a response: HAProxy sends a request to another replica as long as nothing of a
response has come, and a head is something. What one write holds, the kernel delivers or not (docs/log.md has
the numbers).

uvicorn also parses all that has arrived at once: 256 KiB in chunks of one byte are 40,000 callbacks, and every
other client waits for them. Here parsing is cut into steps of about a millisecond, and what is left waits for
later turns of the event loop, source addresses in turns.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any, cast

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from workers.flow_control import HeldFlowControl
from workers.serve.fair_queue import FairQueue

# What a connection may parse in one step, looked at after each piece.
_STEP_SECONDS = 0.001
_PIECE_BYTES = 4 << 10
# What all connections may parse in one turn of the event loop as it arrives; more than a burst of usual requests
# takes. Beyond it they wait for later turns, each of which does about so much of what waits.
_ARRIVING_SECONDS = 0.02
_WAITING_SECONDS = 0.001
# Requests that a client may send before the response to the first one.
_MOST_PIPELINED = 16
_NOTHING = memoryview(b"")


class HttpProtocol(HttpToolsProtocol):
    """One connection. An application that sends a head and no body for a while has the head wait."""

    flow: HeldFlowControl

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._scheduler = _scheduler_of(self.server_state)
        self._address = ""
        # Was read, and is not parsed yet.
        self._unparsed = _NOTHING

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self.flow = HeldFlowControl(self.transport)
        self._address = self.client[0] if self.client else ""

    def connection_lost(self, exc: Exception | None) -> None:
        self._unparsed = _NOTHING
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        is_waiting = bool(self._unparsed)
        if len(data) <= _PIECE_BYTES and not is_waiting and self._scheduler.has_time:
            # The same as below for most requests, with less around it.
            began = perf_counter()
            super().data_received(data)
            self._scheduler.spend(perf_counter() - began)
            return
        self._unparsed = memoryview(bytes(self._unparsed) + data if is_waiting else data)
        if not is_waiting and not self._scheduler.run(self._address, self._parse):
            self.flow.hold()

    def _parse(self) -> None:
        until = perf_counter() + _STEP_SECONDS
        while self._unparsed and not self.transport.is_closing():
            piece, self._unparsed = self._unparsed[:_PIECE_BYTES], self._unparsed[_PIECE_BYTES:]
            super().data_received(cast("bytes", piece))  # The parser takes any buffer.
            if perf_counter() >= until:
                break
        if self.transport.is_closing():
            self._unparsed = _NOTHING
        elif self._unparsed:
            self.flow.hold()
            self._scheduler.wait(self._address, self._parse)
        else:
            self.flow.release()

    def handle_websocket_upgrade(self) -> None:
        self._unparsed = _NOTHING
        super().handle_websocket_upgrade()

    def on_headers_complete(self) -> None:
        """As uvicorn's, which makes the cycle of a request here, but for an upgrade."""
        if len(self.pipeline) >= _MOST_PIPELINED:
            self.transport.abort()
            return
        before = self.cycle
        super().on_headers_complete()
        # Nothing is written after the head of a response to HEAD.
        if self.cycle is not before and self.scope["method"] != "HEAD":
            self.cycle.transport = cast("asyncio.Transport", CoalescedHead(self.transport))


def install_protocol() -> None:
    """Use this protocol in every server that uvicorn starts in this process from now on.

    Ray Serve starts one in each replica, and has no setting for how that speaks HTTP.
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


class ParseScheduler:
    """Runs parsing steps of all connections of a server, bounded in each turn of its event loop.

    Steps that wait run in later turns, source addresses alternately.
    """

    def __init__(self) -> None:
        self._waiting: FairQueue[Callable[[], None]] = FairQueue()
        self._seconds = 0.0
        self._is_due = False
        # Whether the present turn has time for what arrives.
        self.has_time = True

    def run(self, address: str, step: Callable[[], None]) -> bool:
        """Run the step now if the turn has time for it, otherwise in a later one. Returns whether it ran."""
        if not self.has_time:
            self.wait(address, step)
            return False
        self._timed(step)
        return True

    def wait(self, address: str, step: Callable[[], None]) -> None:
        """Run the step in a later turn."""
        self._waiting.add(address, step)
        self._schedule()

    def spend(self, seconds: float) -> None:
        """Count what was parsed in the present turn."""
        self._seconds += seconds
        self.has_time = self._seconds < _ARRIVING_SECONDS
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._is_due = False
        self._seconds, self.has_time = 0.0, True
        if self._waiting:
            # Before the steps: one that raises does not end the turns of the others.
            self._schedule()
        while self._waiting and self._seconds < _WAITING_SECONDS:
            self._timed(self._waiting.take())

    def _timed(self, step: Callable[[], None]) -> None:
        began = perf_counter()
        try:
            step()
        finally:
            self.spend(perf_counter() - began)


def _scheduler_of(state: ServerState) -> ParseScheduler:
    """Return the scheduler of a server, whose connections share one event loop."""
    scheduler: ParseScheduler = vars(state).setdefault("parsing", ParseScheduler())
    return scheduler
