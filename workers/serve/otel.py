"""Tracing of a replica with OpenTelemetry. Imported only if an exporter is configured.

Spans have names, numbers of rows and versions, and no path, header, query string or message: those may contain what
users sent.
"""

from collections.abc import Mapping
from time import time_ns

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cmcl.tracing import close_provider, open_provider
from workers.serve.telemetry import TRACE, Attributes, RequestTrace

_W3C = TraceContextTextMapPropagator()
_HEADERS = {b"traceparent": "traceparent", b"tracestate": "tracestate"}
# A client may send any method.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NANOSECONDS = 1_000_000_000


class OpenTelemetryTracing:
    """Spans of one replica. `replica`: its id, an attribute of all spans."""

    def __init__(self, exporter: SpanExporter, replica: str) -> None:
        resource = {"service.name": "cmcl-endpoint", "service.instance.id": replica}
        self.provider = open_provider(exporter, resource)
        self._tracer = self.provider.get_tracer("cmcl.endpoint")

    def layer(self, app: ASGIApp, known: frozenset[str], excluded: frozenset[str]) -> ASGIApp:
        """Wrap an application: a span for each request, but for those of `excluded` paths.

        `known`: paths that are answered without a router. The response has the header `traceresponse`.
        """
        return _Layer(app, self._tracer, known, excluded)

    def loaded(
        self,
        traceparent: str | None,
        seconds: float,
        attributes: Attributes,
        error: str | None = None,
    ) -> None:
        """Record that a version was loaded or rejected, `seconds` after its pointer was read."""
        parent = _extracted({} if traceparent is None else {"traceparent": traceparent})
        if not trace.get_current_span(parent).get_span_context().is_valid:
            return
        now = time_ns()
        begin = now - int(seconds * _NANOSECONDS)
        span = self._tracer.start_span(
            "load version", context=parent, start_time=begin, attributes=attributes
        )
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(now)

    def close(self) -> None:
        """Export what is left, for two seconds at most."""
        close_provider(self.provider)


class _Layer:
    """The ASGI layer: one span of kind SERVER for each request, and below it its stages."""

    def __init__(
        self,
        app: ASGIApp,
        tracer: trace.Tracer,
        known: frozenset[str],
        excluded: frozenset[str],
    ) -> None:
        self._app = app
        self._tracer = tracer
        self._known = known
        self._excluded = excluded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on what is no request."""
        if scope["type"] != "http" or scope["path"] in self._excluded:
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "HTTP"
        span = self._tracer.start_span(
            method,
            context=_parent_of(scope),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method if method in _METHODS else "_OTHER"},
        )
        exchange = _Exchange(span, receive, send)
        if span.is_recording():
            scope[TRACE] = exchange.trace
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except BaseException as error:
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(StatusCode.ERROR)
            raise
        finally:
            self._end(span, exchange, method, self._route(scope))

    def _route(self, scope: Scope) -> str | None:
        """The route's template and not the path, which may contain anything."""
        if scope["path"] in self._known:
            return str(scope["path"])
        return getattr(scope.get("route"), "path", None)

    def _end(self, span: Span, exchange: "_Exchange", method: str, route: str | None) -> None:
        if not span.is_recording():
            return
        if route is not None:
            span.update_name(f"{method} {route}")
            span.set_attribute("http.route", route)
        if exchange.status is not None:
            span.set_attribute("http.response.status_code", exchange.status)
            if exchange.status >= 500:
                span.set_status(StatusCode.ERROR)
        times = exchange.trace
        span.set_attributes(times.attributes)
        end = time_ns()
        inside = trace.set_span_in_context(span, Context())
        self._add_stages(inside, times)
        if exchange.answered is not None:
            self._add("send", inside, exchange.answered, end)
        span.end(end)

    def _add_stages(self, inside: Context, times: RequestTrace) -> None:
        """The body's arrival, the stages, and inside of `embed` (or of a request without stages) the products."""
        received, products = times.received or times.began, list(times.products)
        self._add("receive", inside, times.began, received)
        place = inside
        for name, begin, end in times.stages:
            stage = self._add(name, inside, max(begin, received), end)
            if name == "embed":
                place = trace.set_span_in_context(stage, Context())
        if times.queued is not None and products:
            self._add("batch wait", place, times.queued, products[0][0])
        for begin, end, rows in products:
            self._add("forward", place, begin, end, {"cmcl.batch.rows": rows})

    def _add(
        self,
        name: str,
        inside: Context,
        begin: int,
        end: int,
        attributes: Attributes | None = None,
    ) -> Span:
        span = self._tracer.start_span(
            name, context=inside, start_time=begin, attributes=attributes
        )
        span.end(max(begin, end))
        return span


class _Exchange:
    """`receive` and `send` of one request, whose times they note."""

    def __init__(self, span: Span, receive: Receive, send: Send) -> None:
        self.trace = RequestTrace()
        self.status: int | None = None
        self.answered: int | None = None
        self._receive = receive
        self._send = send
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(span, Context()))
        self._header = (b"traceresponse", carrier.get("traceparent", "").encode())

    async def receive(self) -> Message:
        """Receive a message; the last one of the body ends its arrival."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            self.trace.received = time_ns()
        return message

    async def send(self, message: Message) -> None:
        """Send a message; the first one has the header."""
        if message["type"] == "http.response.start":
            self.status, self.answered = message["status"], time_ns()
            message = {**message, "headers": [*message.get("headers", ()), self._header]}
        await self._send(message)


def _parent_of(scope: Scope) -> Context:
    """The context of the client. Without a span if there is no valid header, or more than one."""
    carrier: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name in _HEADERS:
            if name == b"traceparent" and "traceparent" in carrier:
                return Context()
            carrier[_HEADERS[name]] = value.decode("latin-1")
    return _extracted(carrier)


def _extracted(carrier: Mapping[str, str]) -> Context:
    return _W3C.extract(carrier, Context())
