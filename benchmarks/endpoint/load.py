"""Closed-loop clients: each sends a request, waits for the whole answer, and sends the next one.

All of them run in one thread with epoll, so that sixty-four clients use less CPU than the server, and in a separate
process (`ClientProcess`), so that they do not share an interpreter with the code under test.
Requests are not retried: a failed request is recorded, and its client continues with the next one.
"""

import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from benchmarks.endpoint.messages import Head, MalformedResponse, head_of
from benchmarks.processes import Child

# Recorded instead of a status if there was none.
REFUSED, CUT, TOO_LATE, GARBLED = 0, 1, 2, 3
KINDS = {REFUSED: "refused", CUT: "cut", TOO_LATE: "too late", GARBLED: "garbled"}
UNCHECKED, WRONG, RIGHT = -1, 0, 1

_OK = 200
_ROOM = 1 << 16
# Pause after a refused connection, because refusals take only microseconds.
_REFUSED_PAUSE = 0.01
_LOOK_SECONDS = 0.05
_PACK = 50_000

# Checks a body, with the version that it names and the request's number.
Check = Callable[[memoryview, int, int], bool]

ANSWER = np.dtype(
    [
        ("sent", "f8"),  # by time.time(), so that it can be compared across processes
        ("seconds", "f4"),
        ("status", "i2"),
        ("version", "i4"),
        ("request", "i2"),
        ("checked", "i1"),
        ("length", "i4"),
    ]
)
Answers = NDArray[np.void]

_STOP, _BEGUN = "stop", "begun"


class Record:
    """Answers, packed from time to time, because an hour has millions of them."""

    def __init__(self) -> None:
        self._packed: list[Answers] = []
        self._latest: list[tuple[float | int, ...]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, *fields: float | int) -> None:
        """Add one answer: the fields of ANSWER, in order."""
        self._latest.append(fields)
        self._count += 1
        if len(self._latest) == _PACK:
            self._packed.append(np.array(self._latest, dtype=ANSWER))
            self._latest = []

    def all(self) -> Answers:
        """Return the answers added so far."""
        return np.concatenate([*self._packed, np.array(self._latest, dtype=ANSWER)])


@dataclass(frozen=True)
class Load:
    """A load: the requests in a cycle, the number of clients, and the duration in seconds.

    The duration is extended, up to three times, until there are `least` answers. `check_each`:
    check every answer on arrival. Otherwise only the first answer to each request is checked,
    after the load, because parsing JSON costs more than sending requests.
    """

    address: str
    requests: Sequence[bytes]
    clients: int
    seconds: float
    least: int = 0
    check_each: bool = False
    timeout: float = 30.0


def drive(
    load: Load, check: Check | None = None, should_continue: Callable[[], bool] = lambda: True
) -> Answers:
    """Run a load. Return all answers and failures in the order in which they ended.

    Ends after `load.seconds`, or when `should_continue` returns False. Requests in progress are then
    awaited but not counted, so that they do not slow down the next measurement.
    """
    pool = _ClientPool(load, check)
    with closing(pool):
        begin = time.perf_counter()
        while should_continue():
            spent = time.perf_counter() - begin
            enough = len(pool.answers) >= load.least or spent >= 3 * load.seconds
            if spent >= load.seconds and enough:
                break
            pool.turn()
        found = pool.answers.all()
        samples = dict(pool.samples)
        pool.drain()
    for number, (place, body) in samples.items():
        if check is not None:
            found[place]["checked"] = check(memoryview(body), int(found[place]["version"]), number)
    return found


class _Client:
    """One socket and its current request."""

    def __init__(self, first: int) -> None:
        self.number = first
        self.socket: socket.socket | None = None
        self.watched = 0
        self.data = bytearray(_ROOM)
        self.begin(first, b"")

    def begin(self, number: int, request: bytes) -> None:
        """Start the next request."""
        self.number = number
        self.rest = memoryview(request)
        self.filled = 0
        self.head: Head | None = None
        self.sent = self.started = 0.0

    def write(self) -> bool:
        """Write, and return whether the whole request is sent. Raises OSError."""
        assert self.socket is not None
        try:
            self.rest = self.rest[self.socket.send(self.rest) :]
        except BlockingIOError:
            return False
        return not self.rest

    def read(self) -> bool:
        """Read, and return whether the answer is complete. Raises OSError, MalformedResponse, and EOFError if
        it is cut."""
        assert self.socket is not None
        got = self.socket.recv_into(memoryview(self.data)[self.filled :])
        if not got:
            raise EOFError
        self.filled += got
        if self.head is None:
            self.head = head_of(self.data, self.filled)
        wanted = self.head.end if self.head else self.filled + _ROOM
        if wanted > len(self.data):
            self.data.extend(bytes(wanted - len(self.data)))
        return self.head is not None and self.filled >= self.head.end


class _ClientPool:
    """All clients and their answers."""

    def __init__(self, load: Load, check: Check | None) -> None:
        self._load = load
        self._check = check
        parts = urlsplit(load.address)
        self._place = (str(parts.hostname), int(parts.port or 80))
        self._poll = select.epoll()
        self._by_socket: dict[int, _Client] = {}
        self._later: list[tuple[float, _Client]] = []
        self._next_look = time.perf_counter() + _LOOK_SECONDS
        self._is_over = False
        self.answers = Record()
        # By request: index of its first answer, and the body.
        self.samples: dict[int, tuple[int, bytes]] = {}
        for first in range(load.clients):
            self._ask(_Client(first % len(load.requests)))

    def close(self) -> None:
        """Hang up."""
        for client in self._by_socket.values():
            if client.socket is not None:
                client.socket.close()
        self._poll.close()

    def drain(self) -> None:
        """Send no further requests, and wait for those in progress."""
        self._is_over = True
        end = time.perf_counter() + self._load.timeout
        while self._by_socket and time.perf_counter() < end:
            self.turn()

    def turn(self) -> None:
        """Read and write all ready sockets."""
        for number, events in self._poll.poll(_REFUSED_PAUSE):
            client = self._by_socket.get(number)
            if client is not None:
                self._move(client, events)
        now = time.perf_counter()
        while self._later and self._later[0][0] <= now:
            self._ask(self._later.pop(0)[1])
        if now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            self._expire(now)

    def _move(self, client: _Client, events: int) -> None:
        try:
            if events & select.EPOLLIN:
                # Also while the request is being written: a server may reject it before its end.
                if client.read():
                    self._answered(client)
            elif events & select.EPOLLOUT:
                self._write(client)
            else:
                self._fail(client, CUT)
        except BlockingIOError:
            pass  # The event belongs to an earlier socket with this descriptor.
        except (OSError, EOFError):
            self._fail(client, CUT)
        except MalformedResponse:
            self._fail(client, GARBLED)

    def _ask(self, client: _Client) -> None:
        if self._is_over:
            self._close(client)
            return
        number = (client.number + 1) % len(self._load.requests)
        client.begin(number, self._load.requests[number])
        client.sent, client.started = time.time(), time.perf_counter()
        try:
            if client.socket is None:
                self._connect(client)
            self._write(client)
        except ConnectionRefusedError:
            self._fail(client, REFUSED)
        except OSError:
            self._fail(client, CUT)

    def _connect(self, client: _Client) -> None:
        client.socket = socket.create_connection(self._place, timeout=self._load.timeout)
        client.socket.setblocking(False)
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._by_socket[client.socket.fileno()] = client
        client.watched = select.EPOLLIN
        self._poll.register(client.socket, client.watched)

    def _write(self, client: _Client) -> None:
        assert client.socket is not None
        wanted = select.EPOLLIN if client.write() else select.EPOLLIN | select.EPOLLOUT
        if wanted != client.watched:
            client.watched = wanted
            self._poll.modify(client.socket, wanted)

    def _answered(self, client: _Client) -> None:
        head = client.head
        assert head is not None
        checked = UNCHECKED
        seconds = time.perf_counter() - client.started
        if self._check is not None and head.status == _OK:
            with memoryview(client.data)[head.begin : head.end] as body:
                if self._load.check_each:
                    checked = int(self._check(body, head.version, client.number))
                elif client.number not in self.samples:
                    self.samples[client.number] = (len(self.answers), bytes(body))
        self.answers.add(
            *(client.sent, seconds, head.status, head.version),
            *(client.number, checked, head.end - head.begin),
        )
        if head.is_last or client.rest:
            self._close(client)
        self._ask(client)

    def _fail(self, client: _Client, kind: int) -> None:
        seconds = time.perf_counter() - client.started
        self.answers.add(client.sent, seconds, kind, 0, client.number, UNCHECKED, 0)
        self._close(client)
        self._later.append((time.perf_counter() + _REFUSED_PAUSE, client))

    def _close(self, client: _Client) -> None:
        if client.socket is not None:
            self._by_socket.pop(client.socket.fileno(), None)
            client.socket.close()
            client.socket = None

    def _expire(self, now: float) -> None:
        for client in list(self._by_socket.values()):
            if now - client.started > self._load.timeout:
                self._fail(client, TOO_LATE)


class ClientProcess(Child):
    """One process for all loads, because starting a process takes longer than most of them."""

    def __init__(self) -> None:
        super().__init__(_run)

    def ask(self, load: Load, check: Check | None = None) -> Answers:
        """Run a load to its end and return all answers."""
        self.begin(load, check)
        return self.answers()

    def begin(self, load: Load, check: Check | None = None) -> None:
        """Start a load, and return when the first requests are sent."""
        self._pipe.send((load, check))
        assert self._pipe.recv() == _BEGUN

    def end(self) -> Answers:
        """Stop the running load early and return its answers."""
        self._pipe.send(_STOP)
        return self.answers()

    def answers(self) -> Answers:
        """Wait for the end of the load. Raises EOFError if the process failed."""
        found: Answers = self._pipe.recv()
        return found


def _run(pipe: Connection) -> None:
    try:
        while True:
            message = pipe.recv()
            if message == _STOP:
                continue  # The load had already ended.
            load, check = message
            pipe.send(_BEGUN)
            pipe.send(drive(load, check, lambda: not pipe.poll()))
    except EOFError:
        pass  # The parent has closed the pipe.
