"""What attacks need below an HTTP library: exact bytes, a source address, thousands of connections."""

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
# So many system calls between two turns of the event loop.
_AT_ONCE = 512
_CLOSED = select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP
# Of Linux; `socket` has no name for it in some Pythons. The port is chosen with `connect` then: `bind`
# alone takes one from half of the range, and searches ever longer while the process waits.
_BIND_ADDRESS_NO_PORT = 24


def bound_socket(source: str) -> socket.socket:
    """A socket that does not block and connects from this address. Raises OSError."""
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
    """Connections from `source` to `place` that each send `data` once, then `drip` every so many seconds.

    All in one loop: a task and a timer for each would cost the attacker more than they cost the server.
    What the other side closes or refuses is counted and opened again. `data` and `drip` must be small:
    a piece that the kernel does not take as a whole is not sent again.
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
        """Keep so many open, without end. Counts are added to `counts`."""
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
            # All that is wanted is open: there is time until the next look.
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
        """An end that comes with it is reported by the next look."""
        try:
            if data:
                os.write(descriptor, data)
        except (BlockingIOError, ConnectionError):
            pass


def head(method: str, path: str, key: str = "", length: int | None = None, **more: str) -> bytes:
    """The head of a request; `more`: headers, with _ for -."""
    headers = {"host": "127.0.0.1"} | ({"authorization": f"Bearer {key}"} if key else {})
    headers |= {} if length is None else {"content-length": str(length)}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def post(path: str, key: str, body: bytes, content_type: str = "application/json") -> bytes:
    """A whole request with a body."""
    return head("POST", path, key, len(body), content_type=content_type) + body


async def read_answer(reader: asyncio.StreamReader) -> int:
    """Read an answer to its end, keep nothing of it, and return its status.

    Raises IncompleteReadError where it is cut.
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
