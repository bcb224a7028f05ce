"""A real S3 server behind a proxy with a fault per request."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """The server's response."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


Fault = Callable[["Passage"], None]


class Passage(BaseHTTPRequestHandler):
    """One request through the proxy, and its response."""

    protocol_version = "HTTP/1.1"
    # On the handler's class, since the HTTP server makes the handlers.
    bucket: ClassVar["FaultyBucket"]

    def _pass(self) -> None:
        self.close_connection = True
        self.bucket.requests.append(f"{self.command} {self.path}")
        self.bucket.next_fault(self.command)(self)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass

    def forward(self) -> Answer:
        """Forward the request to the server."""
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        host = urlsplit(self.bucket.server).netloc
        connection = HTTPConnection(host)
        headers = {name: value for name, value in self.headers.items() if name != "Expect"}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        answer = Answer(response.status, response.getheaders(), response.read())
        connection.close()
        return answer

    def give(self, answer: Answer, length: int | None = None) -> None:
        """Send a response; `length` overrides Content-Length."""
        promised = len(answer.body) if length is None else length
        self.send_response(answer.status)
        for name, value in answer.headers:
            if name.lower() not in ("content-length", "connection", "date", "server"):
                self.send_header(name, value)
        if self.command == "HEAD":
            promised = int(dict(answer.headers).get("Content-Length", 0))
        self.send_header("Content-Length", str(promised))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing: tests read `requests`."""


def honest(passage: Passage) -> None:
    """No fault."""
    passage.give(passage.forward())


def lost_answer(passage: Passage) -> None:
    """The request is executed, and the response is lost."""
    passage.forward()


def slow_down(passage: Passage) -> None:
    """503, as S3 answers too many requests; nothing was done."""
    passage.rfile.read(int(passage.headers.get("Content-Length", 0)))
    words = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"
    passage.give(Answer(503, [("Content-Type", "application/xml")], words))


def half_a_body(passage: Passage) -> None:
    """The connection ends in the middle."""
    answer = passage.forward()
    half = answer.body[: len(answer.body) // 2]
    passage.give(Answer(answer.status, answer.headers, half), length=len(answer.body))


def other_bytes(passage: Passage) -> None:
    """The right number of bytes, but wrong ones."""
    answer = passage.forward()
    headers = [(name, value) for name, value in answer.headers if "checksum" not in name.lower()]
    passage.give(Answer(answer.status, headers, bytes(reversed(answer.body))))


def no_answer(passage: Passage) -> None:
    """No response until the end of the test."""
    passage.bucket.over.wait(30)


class FaultyBucket:
    """A server at which faults can be queued; without one it responds normally."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.requests: list[str] = []
        self.over = threading.Event()
        self.url = ""
        self._faults: list[tuple[str, Fault]] = []

    def order(self, method: str, *faults: Fault) -> None:
        """Queue faults for the next requests with that method."""
        self._faults += [(method, fault) for fault in faults]

    def next_fault(self, method: str) -> Fault:
        """The next queued fault of this method."""
        for order in self._faults:
            if order[0] == method:
                self._faults.remove(order)
                return order[1]
        return honest

    @contextmanager
    def running(self) -> Iterator["FaultyBucket"]:
        """Run the proxy, which listens at `url`."""
        handler = type("Passage", (Passage,), {"bucket": self})
        http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        self.url = f"http://127.0.0.1:{http.server_port}"
        try:
            yield self
        finally:
            self.over.set()
            http.shutdown()
            http.server_close()
            thread.join()
