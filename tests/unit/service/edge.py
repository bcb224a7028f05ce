"""The control plane's server on a local port, and misbehaving clients."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.server import Server, make_server
from service.core.settings import Settings

GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n"
# More than the buffers of both kernels hold.
LARGE = Response(b"x" * (32 << 20))


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Small at one path, large at another."""
    response = LARGE if scope["path"] == "/large" else PlainTextResponse("ok")
    await response(scope, receive, send)


class Edge:
    """A server on a port of this machine."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.address: tuple[str, int] = server.servers[0].sockets[0].getsockname()

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """A connection from one of this machine's own addresses."""
        return socket.create_connection(self.address, timeout=10, source_address=(source, 0))

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Block its event loop; the kernel accepts what clients send. Needs a connection."""
        is_stopped, go_on = threading.Event(), threading.Event()

        def stop() -> None:
            is_stopped.set()
            go_on.wait(60)

        loop = next(iter(self.server.server_state.connections)).loop
        loop.call_soon_threadsafe(stop)
        assert is_stopped.wait(60)
        try:
            yield
        finally:
            go_on.set()

    def open_after(self, seconds: float) -> int:
        """Number of the server's connections after that time."""
        time.sleep(seconds)
        return len(self.server.server_state.connections)


@contextmanager
def served_edge(
    app: ASGIApp = app,
    idle_timeout_seconds: float = 30.0,
    trusted: str = "10.9.9.9",
    most: int = 64,
) -> Iterator[Edge]:
    settings = Settings(auth="off", port=0, trusted_proxies=(trusted,))
    server = make_server(app, settings, idle_timeout_seconds=idle_timeout_seconds, most=most)
    thread = threading.Thread(target=server.run, name="edge")
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Edge(server)
    finally:
        server.should_exit = True
        thread.join()


def read_to_end(client: socket.socket) -> bytes:
    """All until the server closes."""
    received = bytearray()
    with suppress(ConnectionError):
        while piece := client.recv(1 << 16):
            received += piece
    return bytes(received)


def send_without_end(client: socket.socket, piece: bytes, most: int = 64 << 20) -> int:
    """Send endlessly; return the bytes accepted before the connection was closed."""
    sent = 0
    with suppress(ConnectionError):
        while sent < most:
            sent += client.send(piece)
    return sent


def is_answered(client: socket.socket) -> bool:
    with suppress(ConnectionError):
        client.sendall(GET + b"\r\n")
        return client.recv(1 << 16).startswith(b"HTTP/1.1 200")
    return False


def read_ok(client: socket.socket) -> None:
    """One small answer, on a connection that stays open."""
    received = b""
    while not received.endswith(b"\r\n\r\nok"):
        piece = client.recv(1 << 16)
        assert piece, received
        received += piece
