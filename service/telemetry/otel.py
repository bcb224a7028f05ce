"""Tracing with OpenTelemetry. Imported only if an exporter is configured."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
    SpanExporter,
)
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from service.telemetry.spans import Attributes

_JOB = "cmcl.job"
_NOT_TRACED = frozenset({"/healthz", "/readyz", "/metrics"})
_NANOSECONDS = 1_000_000_000
_SERVICE = Resource({SERVICE_NAME: "cmcl-service"})


def exporter_named(name: str) -> SpanExporter:
    """One of OTEL_TRACES_EXPORTER's values. Raises ValueError for an unsupported one."""
    if name == "console":
        return ConsoleSpanExporter()
    if name != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER is {name!r}; permitted: otlp, console, none")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


class OpenTelemetrySpans:
    """See Spans. Has its own provider, so that two apps in one process stay separate."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._ids = _Ids()
        self.provider = TracerProvider(
            resource=_SERVICE.merge(OTELResourceDetector().detect()), id_generator=self._ids
        )
        batched = not isinstance(exporter, ConsoleSpanExporter)
        processor = BatchSpanProcessor(exporter) if batched else SimpleSpanProcessor(exporter)
        self.provider.add_span_processor(processor)
        self._tracer = self.provider.get_tracer("cmcl.service")

    def of_requests(self) -> TelemetryConfig:
        """See Spans."""
        return {
            "tracer_provider": self.provider,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "exclude": lambda scope: scope.get("path") in _NOT_TRACED,
        }

    def trace_id(self) -> str | None:
        """See Spans."""
        current = trace.get_current_span().get_span_context()
        return trace.format_trace_id(current.trace_id) if current.is_valid else None

    @contextmanager
    def inside(self, name: str, attributes: Attributes) -> Iterator[None]:
        """See Spans."""
        if not trace.get_current_span().is_recording():
            # Otherwise polling an attempt would create thousands of single-call traces.
            yield
            return
        with self._tracer.start_as_current_span(
            name, kind=SpanKind.CLIENT, attributes=dict(attributes)
        ):
            yield

    @contextmanager
    def step(self, job: str, name: str) -> Iterator[None]:
        """See Spans."""
        with self._tracer.start_as_current_span(
            f"step {name}", context=self._trace_of(job), attributes={_JOB: job}
        ):
            yield

    def posted(self, job: str) -> None:
        """See Spans."""
        request = trace.get_current_span()
        came_from = request.get_span_context()
        if request.is_recording():
            request.set_attribute(_JOB, job)
        with self._ids.fixed(_ids_of(job)):
            span = self._tracer.start_span(
                "job",
                context=Context(),
                kind=SpanKind.PRODUCER,
                attributes={_JOB: job},
                links=[Link(came_from)] if came_from.is_valid else [],
            )
        span.end()

    def stage(self, job: str, name: str, seconds: float, attributes: Attributes) -> None:
        """See Spans."""
        now = time.time_ns()
        span = self._tracer.start_span(
            name,
            context=self._trace_of(job),
            start_time=now - int(seconds * _NANOSECONDS),
            attributes={_JOB: job, **attributes},
        )
        if attributes.get("cmcl.to") == "failed":
            span.set_status(Status(StatusCode.ERROR, str(attributes.get("cmcl.reason", ""))))
        span.end(now)

    def _trace_of(self, job: str) -> Context:
        """The context of the job's first span, in whichever replica it was created."""
        trace_id, span_id = _ids_of(job)
        decision = self.provider.sampler.should_sample(None, trace_id, "job").decision
        is_sampled = decision == Decision.RECORD_AND_SAMPLE
        flags = TraceFlags(TraceFlags.SAMPLED if is_sampled else TraceFlags.DEFAULT)
        parent = SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)
        return trace.set_span_in_context(NonRecordingSpan(parent), Context())


def _ids_of(job: str) -> tuple[int, int]:
    """Trace and first span of a job: `echo -n job-... | sha256sum` begins with the trace's id."""
    digest = hashlib.sha256(job.encode()).digest()
    return int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")


class _Ids(RandomIdGenerator):
    """Random, except for the first span of a job."""

    def __init__(self) -> None:
        self._fixed: ContextVar[tuple[int, int] | None] = ContextVar("fixed", default=None)

    @contextmanager
    def fixed(self, ids: tuple[int, int]) -> Iterator[None]:
        """Set the ids of the span that is started inside."""
        token = self._fixed.set(ids)
        try:
            yield
        finally:
            self._fixed.reset(token)

    def generate_trace_id(self) -> int:
        """See IdGenerator."""
        ids = self._fixed.get()
        return super().generate_trace_id() if ids is None else ids[0]

    def generate_span_id(self) -> int:
        """See IdGenerator."""
        ids = self._fixed.get()
        return super().generate_span_id() if ids is None else ids[1]
