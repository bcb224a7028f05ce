"""A collector of traces on loopback: OTLP over HTTP, as a real one receives it."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


@dataclass(frozen=True)
class ReceivedSpan:
    """A span; ids are hexadecimal, times in nanoseconds since the epoch. `parent` is empty for the root of a trace."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    begin: int
    end: int
    attributes: dict[str, object]
    links: tuple[str, ...]
    error: str | None


class Collector:
    """Keeps the spans that it receives. With `hangs`, it answers no request before it is released."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.spans: list[ReceivedSpan] = []
        self.paths: list[str] = []
        self.asked = threading.Event()
        self.release = threading.Event()
        if not hangs:
            self.release.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.asked.set()
                collector.release.wait()
                collector.paths.append(self.path)
                collector.spans += _spans_in(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def named(self, name: str) -> list[ReceivedSpan]:
        """Spans of this name, in the order of their begin."""
        found = [span for span in self.spans if span.name == name]
        return sorted(found, key=lambda span: span.begin)

    def tree(self) -> set[tuple[str, str]]:
        """The name of each span with that of its parent; empty for a parent that is not here."""
        names = {span.id: span.name for span in self.spans}
        return {(names.get(span.parent, ""), span.name) for span in self.spans}


def _spans_in(request: ExportTraceServiceRequest) -> list[ReceivedSpan]:
    return [
        _received(str(_attributes(group.resource.attributes)["service.name"]), span)
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _received(service: str, span: Span) -> ReceivedSpan:
    is_error = span.status.code == Status.STATUS_CODE_ERROR
    return ReceivedSpan(
        service=service,
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        begin=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        links=tuple(link.span_id.hex() for link in span.links),
        error=span.status.message if is_error else None,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, object]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}
