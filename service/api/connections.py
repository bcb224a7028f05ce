"""Open connections of the server: the limit for each source, and which are closed first."""

import asyncio
import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Protocol

from service.auth.rate_limiter import client_network

# Time for a whole request head, from the start of the connection or the end of the previous response. Also the time
# without enough progress in reading a response.
IDLE_TIMEOUT_SECONDS = 10.0
# Bytes of responses that clients have not read, by owner (by source without a key), and in total.
_MOST_UNREAD_BYTES_OF_ONE = 16 << 20
_MOST_UNREAD_BYTES = 64 << 20


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
