"""A server with a constant response, which shows the maximum rate of the clients.

`python -m benchmarks.peers.trivial --port N --answer BYTES`
"""

import argparse
import asyncio
from typing import cast

import uvloop

_END = b"\r\n\r\n"
_LENGTH = b"Content-Length: "


class _Echo(asyncio.Protocol):
    """Reads whole requests and sends a constant response."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not subclass asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._missing:
            head, _, _ = data.partition(_END)
            length = int(head.partition(_LENGTH)[2].split(b"\r\n", 1)[0])
            self._missing = len(head) + len(_END) + length
        self._missing -= len(data)
        if not self._missing:
            self._transport.write(self._answer)


async def _serve(port: int, length: int) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nx-model-version: 1\r\n\r\n"
    answer = head.encode() + bytes(length)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Echo(answer), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--answer", type=int, required=True)
    options = parser.parse_args()
    uvloop.run(_serve(options.port, options.answer))


if __name__ == "__main__":
    main()
