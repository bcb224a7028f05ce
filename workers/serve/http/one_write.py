"""The head of an answer leaves with its body, in one write.

uvicorn writes them one after the other. A replica that was killed in between had its client left with
half an answer: HAProxy sends a request to another replica as long as nothing of an answer has come,
and a head is something (8 of 100 kills under load, docs/log.md). What one write holds, the kernel
delivers or not.
"""

import asyncio
from typing import Any, cast

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# As much as asyncio itself lets wait before it asks for a pause.
_MOST_BYTES = 64 << 10


class OneWrite(HttpToolsProtocol):
    """uvicorn's protocol, on a connection that joins what is written in one turn of the loop."""

    def connection_made(  # type: ignore[override]  # as uvicorn's own
        self, transport: asyncio.Transport
    ) -> None:
        """As asyncio has it."""
        super().connection_made(cast("asyncio.Transport", _Joined(transport, self.loop)))


def write_answers_at_once() -> None:
    """From now on, in every server that uvicorn starts in this process.

    Ray Serve starts one in each replica, and has no setting for how that speaks HTTP.
    """
    HTTP_PROTOCOLS["auto"] = f"{OneWrite.__module__}:{OneWrite.__qualname__}"


class _Joined:
    """A transport; what it does not say here is the one's behind it."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []
        self._bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)
        self._bytes += len(data)
        if self._bytes > _MOST_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        pieces, self._pieces, self._bytes = self._pieces, [], 0
        if pieces and not self._transport.is_closing():
            self._transport.write(b"".join(pieces))
