"""Low-level connections of attacks: exact bytes, a source address, thousands of connections."""

import asyncio
import errno
import os
import select
import socket
import time
from collections import Counter
from types import TracebackType
from typing import Self

_PASS_SECONDS = 0.05
# System calls between two iterations of the event loop.
_AT_ONCE = 512
_CLOSED = select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP
# Linux's IP_BIND_ADDRESS_NO_PORT, which `socket` lacks in some versions of Python. The port is then
# chosen by `connect`; `bind` alone uses half of the range, and its search gets slower.
_BIND_ADDRESS_NO_PORT = 24


def bound_socket(source: str) -> socket.socket:
    """Return a non-blocking socket with this source address. Raises OSError."""
    made = socket.socket()
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        made.bind((source, 0))
    except OSError:
        made.close()
        raise
    return made


class HeldConnections:
    """Connections from `source` to `place` that send `data` once, then `drip` every few seconds.

    One loop serves all of them: a task and a timer per connection would cost the attacker more
    than the server. Connections that the other side closes or refuses are counted and opened
    again. `data` and `drip` must be small: data that the kernel does not accept at once is
    dropped.
    """

    def __init__(
        self, place: tuple[str, int], source: str, data: bytes, drip: bytes, seconds: float
    ) -> None:
        self._place = place
        self._source = source
        self._data = data
        self._drip = drip
        self._seconds = seconds
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._connected: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._poll.close()
        for each in self._sockets.values():
            each.close()

    async def keep(self, number: int, counts: Counter[str]) -> None:
        """Keep `number` connections open, forever. Counts are added to `counts`."""
        due = time.monotonic() + self._seconds
        while True:
            for _ in range(min(number - len(self._sockets), _AT_ONCE)):
                if not self._open(counts):
                    break
            for descriptor, event in self._poll.poll(0, _AT_ONCE):
                self._happened(descriptor, event, counts)
            counts["most at once"] = max(counts["most at once"], len(self._connected))
            if self._drip and time.monotonic() > due:
                due = time.monotonic() + self._seconds
                await self._send_drips()
            # All connections are open; wait until the next check.
            await asyncio.sleep(_PASS_SECONDS if len(self._sockets) == number else 0)

    def _open(self, counts: Counter[str]) -> bool:
        made = bound_socket(self._source)
        failed = made.connect_ex(self._place)
        if failed not in {0, errno.EINPROGRESS}:
            counts[errno.errorcode.get(failed, str(failed))] += 1
            made.close()
            return False
        self._sockets[made.fileno()] = made
        self._poll.register(made.fileno(), select.EPOLLOUT | select.EPOLLRDHUP)
        return True

    def _happened(self, descriptor: int, event: int, counts: Counter[str]) -> None:
        if event & _CLOSED:
            self._poll.unregister(descriptor)
            self._sockets.pop(descriptor).close()
            known = descriptor in self._connected
            self._connected.discard(descriptor)
            counts["closed by the other side" if known else "refused"] += 1
        elif event & select.EPOLLOUT:
            self._send(descriptor, self._data)
            self._connected.add(descriptor)
            counts["connections"] += 1
            self._poll.modify(descriptor, select.EPOLLRDHUP)

    async def _send_drips(self) -> None:
        for number, descriptor in enumerate(list(self._connected)):
            self._send(descriptor, self._drip)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)

    def _send(self, descriptor: int, data: bytes) -> None:
        """Send without raising: epoll reports a closed connection later."""
        try:
            if data:
                os.write(descriptor, data)
        except (BlockingIOError, ConnectionError):
            pass


def head(method: str, path: str, key: str = "", length: int | None = None, **more: str) -> bytes:
    """Return the head of a request. `more`: headers, with _ for -."""
    headers = {"host": "127.0.0.1"} | ({"authorization": f"Bearer {key}"} if key else {})
    headers |= {} if length is None else {"content-length": str(length)}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def post(path: str, key: str, body: bytes, content_type: str = "application/json") -> bytes:
    """Return a complete request with a body."""
    return head("POST", path, key, len(body), content_type=content_type) + body


async def read_answer(reader: asyncio.StreamReader) -> int:
    """Read a response to its end, discard it, and return its status.

    Raises IncompleteReadError if it is cut.
    """
    text = await reader.readuntil(b"\r\n\r\n")
    status_line, *lines = text.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await _skip(reader, size + 2)
        await reader.readuntil(b"\r\n")
    else:
        await _skip(reader, int(headers.get("content-length", 0)))
    return int(status_line.split()[1])


async def _skip(reader: asyncio.StreamReader, size: int) -> None:
    while size:
        piece = await reader.read(min(size, 1 << 18))
        if not piece:
            raise asyncio.IncompleteReadError(b"", size)
        size -= len(piece)
