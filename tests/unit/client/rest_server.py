"""A server with prepared responses on a real socket, which records requests."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

Answer = tuple[int, Any] | tuple[int, Any, Mapping[str, str]]


@dataclass
class Asked:
    """A recorded request. JSON bodies are parsed."""

    method: str
    path: str
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass
class RestServer:
    """`answer` is called for every request; a text is sent as it is, anything else as JSON.

    None instead of an answer hangs up.
    """

    answer: Callable[[Asked], Answer | None] = lambda _: (404, {"title": "Not Found"})
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def always(self, *answers: Answer | None) -> None:
        """Return these responses in order, then repeat the last one."""
        left = list(answers)
        self.answer = lambda _: left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def running() -> Iterator[RestServer]:
    """Run the server until the block ends."""
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
        data = self.rfile.read(length)
        is_json = self.headers.get("Content-Type") == "application/json"
        body = json.loads(data) if is_json else data or None
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, body, headers)
        self.recorder.asked.append(asked)
        prepared = self.recorder.answer(asked)
        if prepared is None:
            self.close_connection = True
            return
        self._send(*prepared)

    def _send(self, status: int, answer: Any, headers: Mapping[str, str] | None = None) -> None:
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Disable logging."""
