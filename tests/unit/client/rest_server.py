"""A server with prepared answers on a real socket, that keeps what it was asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

Answer = tuple[int, Any]


@dataclass
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    body: Any


@dataclass
class RestServer:
    """`answer` is called for every request; a text is sent as it is, anything else as JSON."""

    answer: Callable[[Asked], Answer] = lambda _: (404, {"title": "Not Found"})
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def always(self, *answers: Answer) -> None:
        """One answer after another, the last one for ever."""
        left = list(answers)
        self.answer = lambda _: left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def running() -> Iterator[RestServer]:
    """The server until the block ends."""
    rest = RestServer()

    class Handler(_Handler):
        recorder = rest

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    rest.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    try:
        yield rest
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    recorder: ClassVar[RestServer]

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        asked = Asked(self.command, self.path, body)
        self.recorder.asked.append(asked)
        status, answer = self.recorder.answer(asked)
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Nothing: pytest shows what matters."""
