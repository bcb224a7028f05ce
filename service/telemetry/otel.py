"""Tracing with OpenTelemetry. Imported only if an exporter is configured.

Spans have names and ids of what they are about. They have no message of an error, no query string and no header: those
may contain what users sent, or a secret.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cmcl.tracing import close_provider, open_provider
from service.telemetry.spans import Attributes, PastSpan, Spans

_NOT_TRACED = frozenset({"/healthz", "/readyz", "/metrics"})
_SERVICE = {"service.name": "cmcl-service"}
_NANOSECONDS = 1_000_000_000
_W3C = TraceContextTextMapPropagator()


class OpenTelemetrySpans(Spans):
    """See Spans."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._ids = _Ids()
        self.provider = open_provider(exporter, _SERVICE, self._ids)
        self.provider.add_span_processor(_WithoutClientText())
        self._tracer = self.provider.get_tracer("cmcl.service")

    def of_requests(self) -> TelemetryConfig:
        return {
            "tracer_provider": self.provider,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "exclude": lambda scope: scope.get("path") in _NOT_TRACED,
        }

    def traceparent(self) -> str | None:
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier.get("traceparent")

    @contextmanager
    def inside(self, name: str, attributes: Attributes) -> Iterator[None]:
        if not trace.get_current_span().is_recording():
            # Otherwise polling an attempt would create thousands of single-call traces.
            yield
            return
        with self._span(name, None, attributes, SpanKind.CLIENT):
            yield

    @contextmanager
    def step(self, parent: str | None, name: str, attributes: Attributes) -> Iterator[None]:
        if parent is None:
            yield
            return
        with self._span(name, _context(parent), attributes, SpanKind.INTERNAL):
            yield

    @contextmanager
    def _span(
        self, name: str, context: Context | None, attributes: Attributes, kind: SpanKind
    ) -> Iterator[None]:
        with self._tracer.start_as_current_span(
            name,
            context=context,
            kind=kind,
            attributes=dict(attributes),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as error:
                span.set_attribute("error.type", type(error).__qualname__)
                span.set_status(StatusCode.ERROR)
                raise

    def add(self, span: PastSpan) -> None:
        parent = None if span.parent is None else _context(span.parent)
        if parent is None or not _of(parent).is_valid:
            return
        duration = int(span.seconds * _NANOSECONDS)
        began_at = span.began_at or datetime.now(UTC)
        begin = int(began_at.timestamp() * _NANOSECONDS) - (0 if span.began_at else duration)
        own = None if span.own is None else _of(_context(span.own)).span_id
        with self._ids.fixed(own):
            made = self._tracer.start_span(
                span.name,
                context=parent,
                start_time=begin,
                attributes=dict(span.attributes),
                links=[Link(_of(_context(each))) for each in span.links],
            )
        if span.error is not None:
            made.set_status(Status(StatusCode.ERROR, span.error))
        made.end(begin + duration)

    def close(self) -> None:
        close_provider(self.provider)


def _context(traceparent: str) -> Context:
    """Return the context of a traceparent; without a span if it is malformed."""
    carrier: Mapping[str, str] = {"traceparent": traceparent}
    return _W3C.extract(carrier, Context())


def _of(context: Context) -> SpanContext:
    return trace.get_current_span(context).get_span_context()


# What FastAPI copies from a request. A sign-in has its code in the query; anything can stand in the others.
_FROM_CLIENT = ("url.path", "url.query", "server.address", "http.request.method_original")


class _WithoutClientText(SpanProcessor):
    """Redacts what clients wrote: path, query, host and unknown methods. Routes and ports stay."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        for name in _FROM_CLIENT:
            if span.attributes and name in span.attributes:
                span.set_attribute(name, "REDACTED")


class _Ids(RandomIdGenerator):
    """Generator of random ids, except for spans whose id others derive."""

    def __init__(self) -> None:
        self._fixed: ContextVar[int | None] = ContextVar("fixed", default=None)

    @contextmanager
    def fixed(self, span_id: int | None) -> Iterator[None]:
        """Set the id of the span that is started inside; None: random."""
        token = self._fixed.set(span_id)
        try:
            yield
        finally:
            self._fixed.reset(token)

    def generate_span_id(self) -> int:
        fixed = self._fixed.get()
        return super().generate_span_id() if fixed is None else fixed
