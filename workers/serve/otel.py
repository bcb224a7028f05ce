"""Loads of versions in the traces of what made them live, with OpenTelemetry. Imported only if an exporter is configured."""

from collections.abc import Mapping
from time import time_ns

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.trace import Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cmcl.tracing import close_provider, open_provider

_W3C = TraceContextTextMapPropagator()
_NANOSECONDS = 1_000_000_000


class OpenTelemetryTracing:
    """Spans of one replica. `replica`: its id, an attribute of all spans."""

    def __init__(self, exporter: SpanExporter, replica: str) -> None:
        resource = {"service.name": "cmcl-endpoint", "service.instance.id": replica}
        self.provider = open_provider(exporter, resource)
        self._tracer = self.provider.get_tracer("cmcl.endpoint")

    def loaded(
        self,
        traceparent: str | None,
        seconds: float,
        attributes: Mapping[str, str | int],
        error: str | None = None,
    ) -> None:
        """Record that a version was loaded or rejected, `seconds` after its pointer was read."""
        carrier = {} if traceparent is None else {"traceparent": traceparent}
        parent = _W3C.extract(carrier, Context())
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
