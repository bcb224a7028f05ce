"""The HTTP protocol of a replica: uvicorn's, with head and body of a response in one write.

uvicorn writes them one after the other. A replica that was killed in between left its client with half a response:
HAProxy sends a request to another replica as long as nothing of a response has come, and a head is something. What
one write holds, the kernel delivers or not (docs/log.md has the numbers).

How requests arrive is bounded by HAProxy in front (cmcl/haproxy.py): size and time of a head, connections of one source,
one request at a time on a connection, and bodies in pieces of its buffer, whatever their chunks are.
"""

import asyncio
from typing import Any, cast

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class HttpProtocol(HttpToolsProtocol):
    """One connection. An application that sends a head and no body for a while has the head wait."""

    def on_headers_complete(self) -> None:
        """As uvicorn's, which makes the cycle of a request here, but for an upgrade."""
        before = self.cycle
        super().on_headers_complete()
        # Nothing is written after the head of a response to HEAD.
        if self.cycle is not before and self.scope["method"] != "HEAD":
            self.cycle.transport = cast("asyncio.Transport", CoalescedHead(self.transport))


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
