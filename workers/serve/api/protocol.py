"""The HTTP protocol of a replica: uvicorn's, with whole responses in one write and bounded steps of the loop.

uvicorn writes the head of a response and its body one after the other. A replica that was killed in between
left its client with half a response: HAProxy sends a request to another replica as long as nothing of a
response has come, and a head is something. What one write holds, the kernel delivers or not (docs/log.md has
the numbers).

uvicorn also parses all that has arrived at once: 256 KiB in chunks of one byte are 40,000 callbacks, and every
other client waits for them. Here parsing is cut into steps of about a millisecond, and what is left waits for
later turns of the event loop, source addresses in turns. A body of declared length is one callback for all that
has arrived of it, so it is not cut; but many large bodies arrive in turns, and requests do not wait behind them.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from cmcl.fairness import FairQueue
from workers.flow_control import HeldFlowControl

# What a connection may parse in one step, looked at after each piece: so many bytes, or what has arrived of a body
# of declared length.
_STEP_SECONDS = 0.001
_PIECE_BYTES = 4 << 10
_END_OF_HEAD = b"\r\n\r\n"
# A row of 1024 numbers is 20 KiB of JSON.
_SMALL_BYTES = 32 << 10
# What all connections may parse in one turn of the event loop as it arrives; more than a burst of usual requests
# takes. Beyond it they wait for later turns, each of which does about so much of what waits.
_ARRIVING_SECONDS = 0.02
_WAITING_SECONDS = 0.001
# The same for large bodies as they arrive. Each byte costs as much again before and after it is parsed, and a request
# takes about ten turns of the loop: while 64 bodies of 6 MB arrived, 20 ms of parsing in each turn made it 0.5 s.
_BODIES_SECONDS = 0.001
# Requests that a client may send before the response to the first one.
_MOST_PIPELINED = 16
# The parser takes any buffer.
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
        # Bytes of the present body that are still to come, if it has a declared length.
        self._body_left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self.flow = HeldFlowControl(self.transport)
        self._address = self.client[0] if self.client else ""

    def connection_lost(self, exc: Exception | None) -> None:
        self._unparsed = _NOTHING
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._unparsed:
            self._unparsed = memoryview(bytes(self._unparsed) + data)
            return
        left: bytes | memoryview = data
        if self._scheduler.has_time:
            began = perf_counter()
            left = self._parse_small(data)
            self._scheduler.spend(perf_counter() - began)
        if left:
            self._unparsed = memoryview(left)
            if not self._scheduler.run(self._step()):
                self.flow.hold()

    def _parse_small(self, data: bytes) -> bytes | memoryview:
        """Parse a piece, or a head with its whole small body: most requests. Returns what is left to parse in steps.

        A body that is cut into pieces costs a request of one row a tenth of its time.
        """
        if len(data) <= _PIECE_BYTES:
            super().data_received(data)
            return b""
        end = -1 if self._body_left else data.find(_END_OF_HEAD, 0, _PIECE_BYTES)
        if end < 0 or len(data) > _SMALL_BYTES:
            return data
        end += len(_END_OF_HEAD)
        # Where an upgrade finds it.
        self._unparsed = memoryview(data)[end:]
        super().data_received(data[:end])
        body, self._unparsed = self._unparsed, _NOTHING
        if len(body) != self._body_left:
            return body
        super().data_received(cast("bytes", body))
        return b""

    def _step(self) -> "ParseStep":
        return ParseStep(self._address, self._parse, is_body=self._body_left > _PIECE_BYTES)

    def _parse(self) -> None:
        until = perf_counter() + _STEP_SECONDS
        while self._unparsed and not self.transport.is_closing():
            size = max(self._body_left, _PIECE_BYTES)
            piece, self._unparsed = self._unparsed[:size], self._unparsed[size:]
            super().data_received(cast("bytes", piece))
            if perf_counter() >= until:
                break
        if self.transport.is_closing():
            self._unparsed = _NOTHING
        elif self._unparsed:
            self.flow.hold()
            self._scheduler.wait(self._step())
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
        if self.cycle is before:
            return  # An upgrade.
        self._body_left = _declared_bytes(self.headers)
        # Nothing is written after the head of a response to HEAD.
        if self.scope["method"] != "HEAD":
            self.cycle.transport = cast("asyncio.Transport", CoalescedHead(self.transport))

    def on_body(self, body: bytes) -> None:
        """As uvicorn's, which copies what it passes on twice; here a large body is passed on as it is."""
        cycle = self.cycle
        if self._body_left:
            self._body_left -= len(body)
            if not cycle.body and not cycle.response_complete:
                cycle.body, body = cast("bytearray", body), b""
        super().on_body(body)


def _declared_bytes(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """The length of a body that comes in one piece; 0 without one, and for chunks.

    The parser has refused invalid and contradictory lengths before.
    """
    declared = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            return 0
        if name == b"content-length":
            declared = int(value)
    return declared


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


@dataclass(frozen=True, slots=True)
class ParseStep:
    """A parsing step of a connection from `address`. `is_body`: of a large body."""

    address: str
    parse: Callable[[], None]
    is_body: bool = False


class ParseScheduler:
    """Runs parsing steps of all connections of a server, bounded in each turn of its event loop.

    Steps that wait run in later turns, source addresses alternately, and of each address large bodies and all else.
    """

    def __init__(self) -> None:
        self._waiting: FairQueue[ParseStep] = FairQueue()
        self._seconds = 0.0
        self._body_seconds = 0.0
        self._is_due = False
        # Whether the present turn has time for what arrives.
        self.has_time = True

    def run(self, step: ParseStep) -> bool:
        """Run the step now if the turn has time for it, otherwise in a later one. Returns whether it ran."""
        if not self.has_time or (step.is_body and self._body_seconds >= _BODIES_SECONDS):
            self.wait(step)
            return False
        self._timed(step)
        return True

    def wait(self, step: ParseStep) -> None:
        """Run the step in a later turn."""
        self._waiting.add(f"{step.address} body" if step.is_body else step.address, step)
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
        self._seconds, self._body_seconds, self.has_time = 0.0, 0.0, True
        if self._waiting:
            # Before the steps: one that raises does not end the turns of the others.
            self._schedule()
        while self._waiting and self._seconds < _WAITING_SECONDS:
            self._timed(self._waiting.take())

    def _timed(self, step: ParseStep) -> None:
        began = perf_counter()
        try:
            step.parse()
        finally:
            seconds = perf_counter() - began
            if step.is_body:
                self._body_seconds += seconds
            self.spend(seconds)


def _scheduler_of(state: ServerState) -> ParseScheduler:
    """Return the scheduler of a server, whose connections share one event loop."""
    scheduler: ParseScheduler = vars(state).setdefault("parsing", ParseScheduler())
    return scheduler
