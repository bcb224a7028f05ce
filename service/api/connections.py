"""Connections of the server, and its listening sockets.

Open connections have a limit and turns for each source, and an order in which they are closed.

There is one listening socket for each group of source addresses. The kernel queues new connections until the server
accepts them, and drops those beyond the queue's length. Their client sends again after a second. With one queue, a
source that connects faster than the server accepts fills it, and the probe of another source waits for that second, or
several. So the port has several queues, and a source uses always the same: the kernel runs a short program that chooses
it by the source address (IPv6: by its /64).
"""

import asyncio
import ctypes
import errno
import secrets
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Protocol

from service.auth.rate_limiter import client_network

Step = Callable[[], None]

# Time for a whole request head, from the start of the connection or the end of the previous response. Also the time
# without enough progress in reading a response.
IDLE_TIMEOUT_SECONDS = 10.0
# Bytes of responses that clients have not read, by owner (by source without a key), and in total.
_MOST_UNREAD_BYTES_OF_ONE = 16 << 20
_MOST_UNREAD_BYTES = 64 << 20

# log2 of the number of sockets. Two sources share a queue with a probability of about 1 / 64.
_BITS = 6
LISTENERS = 1 << _BITS
_ATTACH = 51  # SO_ATTACH_REUSEPORT_CBPF, which `socket` lacks.
# Instructions of classic BPF, as in linux/bpf_common.h. An address of SKF_NET_OFF is one in the IP header.
_LOAD, _STORE, _LOAD_X, _COPY_TO_X = 0x20, 0x02, 0x61, 0x07
_MULTIPLY, _ADD_X, _XOR_X, _SHIFT, _RETURN = 0x24, 0x0C, 0xAC, 0x74, 0x16
_IP_HEADER = 0xFFF00000
_SOURCE = {socket.AF_INET: (12,), socket.AF_INET6: (8, 12)}


class Connection(Protocol):
    """A connection, as its bounds see it."""

    transport: asyncio.Transport
    # Bytes of responses that its client had not read when it began to wait.
    unsent: int

    def owner_or_source(self) -> Hashable:
        """To whom its unread bytes are counted: the owner of the key, or the source without one."""

    def has_progressed(self) -> bool:
        """Return whether the client read enough of its response since the last call."""


class Connections:
    """All open connections. For use on the event loop alone."""

    def __init__(
        self, most: int, proxies: Sequence[str], idle_timeout_seconds: float = IDLE_TIMEOUT_SECONDS
    ) -> None:
        self._most = most
        self._idle_timeout_seconds = idle_timeout_seconds
        # One source address gets half of all connections. A proxy has no such limit.
        self._share = max(1, most // 2)
        self._proxies = [ip_network(proxy) for proxy in proxies]
        self._sources: dict[Connection, str] = {}
        self._open: Counter[str] = Counter()
        # Since when each connection waits for its client: all, and by source.
        self._waiting: dict[Connection, float] = {}
        self._waiting_of: dict[str, dict[Connection, None]] = {}
        # Unread bytes of waiting connections, and to whom they are counted.
        self._unread: dict[Connection, tuple[Hashable, int]] = {}
        self._unread_of: Counter[Hashable] = Counter()

    def admit(self, connection: Connection, address: str) -> bool:
        """Count a new connection. False at the limit if no waiting connection can be closed."""
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

    def remove(self, connection: Connection) -> None:
        """Remove a closed connection."""
        self.work(connection)
        source = self._sources.pop(connection, None)
        if source is None:
            return
        self._open[source] -= 1
        if not self._open[source]:
            del self._open[source]

    def wait(self, connection: Connection) -> None:
        """The next step is the client's: the connection may be closed from now on."""
        source = self._sources.get(connection)
        if source is None:
            return
        self.work(connection)
        self._waiting[connection] = time.monotonic()
        self._waiting_of.setdefault(source, {})[connection] = None
        if connection.unsent:
            self._count_unread(connection, connection.owner_or_source(), connection.unsent)
            self._bound_unread()

    def work(self, connection: Connection) -> None:
        """The next step is the server's."""
        if self._waiting.pop(connection, None) is None:
            return
        source = self._sources[connection]
        del self._waiting_of[source][connection]
        if not self._waiting_of[source]:
            del self._waiting_of[source]
        self._count_unread(connection, None, 0)

    def close_expired(self) -> None:
        """Close connections that have waited too long without progress."""
        until = time.monotonic() - self._idle_timeout_seconds
        while self._waiting:
            connection, since = next(iter(self._waiting.items()))
            if since > until:
                return
            if connection.has_progressed():
                self.wait(connection)
            else:
                self.remove(connection)
                connection.transport.abort()

    def _count_unread(self, connection: Connection, whose: Hashable, number: int) -> None:
        """Set the number of unread bytes of a connection."""
        if not number and connection not in self._unread:
            return
        counted_to, before = self._unread.pop(connection, (whose, 0))
        self._unread_of[counted_to] -= before
        if not self._unread_of[counted_to]:
            del self._unread_of[counted_to]
        if number:
            self._unread[connection] = (whose, number)
            self._unread_of[whose] += number

    def _bound_unread(self) -> None:
        """Close the connections that have waited longest, of the owner with the most unread bytes."""
        if not self._has_too_many_unread():
            return
        # Counted when it was written; by now the kernel has taken some.
        for connection, (whose, _) in list(self._unread.items()):
            unread = connection.transport.get_write_buffer_size()
            self._count_unread(connection, whose, unread)
        while self._has_too_many_unread():
            most = max(self._unread_of, key=lambda whose: self._unread_of[whose])
            oldest, *others = [each for each, (whose, _) in self._unread.items() if whose == most]
            if not others:
                # A single response may be large; its client has the usual time.
                return
            self.remove(oldest)
            oldest.transport.abort()

    def _has_too_many_unread(self) -> bool:
        most = max(self._unread_of.values(), default=0)
        return most > _MOST_UNREAD_BYTES_OF_ONE or self._unread_of.total() > _MOST_UNREAD_BYTES

    def _close_oldest(self, waiting: Mapping[Connection, object]) -> bool:
        connection = next(iter(waiting), None)
        if connection is None:
            return False
        self.remove(connection)
        connection.transport.abort()
        return True

    def source(self, address: str) -> str:
        """The source to which an address is counted; empty for a proxy."""
        network = client_network(address)
        return "" if self._is_proxy(address) or self._is_proxy(network) else network

    def _is_proxy(self, address: str) -> bool:
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in proxy for proxy in self._proxies)


class LoopScheduler:
    """Runs one step per source in each iteration of the event loop. For use on the event loop alone.

    Round robin: a step queues behind those of the same source, so another source waits for a single step of it.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[Step]] = {}
        # Sources that had their step in this iteration.
        self._served: set[Hashable] = set()

    def submit(self, source: Hashable, step: Step) -> bool:
        """Run `step` now if the source had none in this iteration, otherwise in a later one.

        Return whether it ran now.
        """
        if source in self._served:
            self._waiting.setdefault(source, deque()).append(step)
            return False
        if not self._served:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._served.add(source)
        step()
        return True

    def _next_turn(self) -> None:
        self._served = set(self._waiting)
        if self._served:
            # Before the steps: one that raises must not stop the others.
            asyncio.get_running_loop().call_soon(self._next_turn)
        for source in list(self._waiting):
            steps = self._waiting[source]
            step = steps.popleft()
            if not steps:
                del self._waiting[source]
            step()


def listen_by_source(first: socket.socket, backlog: int) -> list[socket.socket]:
    """Return further listening sockets at the address of `first`, which listens already.

    From then on the kernel chooses one of all by the source of a connection. `first` was bound alone, so a port that
    another program uses was refused. Raises OSError where the system has no such choice, and closes what was opened.
    """
    if not hasattr(socket, "SO_REUSEPORT") or first.family not in _SOURCE:
        raise OSError(errno.ENOPROTOOPT, "listening sockets cannot share a port")
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    others: list[socket.socket] = []
    try:
        for _ in range(LISTENERS - 1):
            other = socket.socket(first.family, socket.SOCK_STREAM)
            others.append(other)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if first.family == socket.AF_INET6:
                only = first.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
                other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
            other.bind(first.getsockname())
            other.listen(backlog)
        _attach(first, _choice(_SOURCE[socket.AddressFamily(first.family)]))
    except OSError:
        for other in others:
            other.close()
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
        raise
    return others


def _choice(words: Sequence[int]) -> list[bytes]:
    """Return the program: a random hash of these words of the IP header, and of it the highest bits.

    A linear function alone would send a range of adjacent addresses to a few sockets for one in a hundred of its
    factors. So its upper half is mixed into the lower one, and the sum multiplied once more.
    """
    code = []
    for number, word in enumerate(words):
        code += [
            _instruction(_LOAD, _IP_HEADER + word),
            _instruction(_MULTIPLY, secrets.randbits(32) | 1),
        ]
        if number:
            code += [_instruction(_LOAD_X, 0), _instruction(_ADD_X)]
        code.append(_instruction(_STORE, 0))
    return [
        *code,
        _instruction(_COPY_TO_X),
        _instruction(_SHIFT, 16),
        _instruction(_XOR_X),
        _instruction(_MULTIPLY, secrets.randbits(32) | 1),
        _instruction(_SHIFT, 32 - _BITS),
        _instruction(_RETURN),
    ]


def _instruction(operation: int, operand: int = 0) -> bytes:
    return struct.pack("HBBI", operation, 0, 0, operand)


def _attach(listening: socket.socket, code: Sequence[bytes]) -> None:
    """Have the kernel run the program for each connection to the group of `listening`."""
    instructions = ctypes.create_string_buffer(b"".join(code))
    program = struct.pack("HL", len(code), ctypes.addressof(instructions))
    listening.setsockopt(socket.SOL_SOCKET, _ATTACH, program)
