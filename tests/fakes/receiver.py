"""A webhook receiver: a real HTTP server on this machine, with prepared responses."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar


@dataclass(frozen=True)
class Received:
    """One message as it arrived; names of headers in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Answers one status after another, and repeats the last. A callable writes its own response."""

    port: int = 0
    answers: list[int | Callable[[socket.socket], None]] = field(default_factory=lambda: [204])
    headers: Mapping[str, str] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    # In place of the list: choose the status by the message.
    judge: Callable[[Received], int] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}/hook"

    def answer_to(self, message: Received) -> int | Callable[[socket.socket], None]:
        """Return the next response."""
        self.received.append(message)
        if self.judge is not None:
            return self.judge(message)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Run the receiver until the block ends."""
    made = Receiver()

    class Handler(_Handler):
        receiver = made

    server = _Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    made.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    # Some tests hang up in the middle, which the standard library would print.
    daemon_threads = True
    block_on_close = False
    # With the 5 of the standard library, connections that arrive together wait for a retransmission.
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing."""


class _Handler(BaseHTTPRequestHandler):
    receiver: ClassVar[Receiver]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.receiver.answer_to(Received(self.path, headers, body))
        if not isinstance(answer, int):
            answer(self.connection)
            self.close_connection = True
            return
        self.send_response(answer)
        for name, value in self.receiver.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Print nothing."""
