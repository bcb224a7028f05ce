"""The tracing interface, and the one that traces nothing, so that OpenTelemetry is imported only if needed.

Each job has its own trace. The trace id is derived from the job id, so every replica that advances the
job adds to the same trace without stored state.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from fastapi.telemetry import TelemetryConfig

Attributes = Mapping[str, str | int | float]


class Spans(Protocol):
    """The tracing interface."""

    def of_requests(self) -> TelemetryConfig:
        """FastAPI's configuration: a span for each request except probes and scrapes."""
        ...

    def trace_id(self) -> str | None:
        """The current trace id: 32 hexadecimal digits."""
        ...

    def inside(self, name: str, attributes: Attributes) -> AbstractContextManager[None]:
        """A span of a call, if it is part of a trace."""
        ...

    def step(self, job: str, name: str) -> AbstractContextManager[None]:
        """A span of one step of the reconciler, in the job's trace."""
        ...

    def posted(self, job: str) -> None:
        """A job was created: start its trace, with a link to the request."""
        ...

    def stage(self, job: str, name: str, seconds: float, attributes: Attributes) -> None:
        """A job left a state in which it was for `seconds`."""
        ...


class NoSpans:
    """Traces nothing."""

    def of_requests(self) -> TelemetryConfig:
        """See Spans."""
        return {"tracing": False, "metrics": False, "logs": False}

    def trace_id(self) -> str | None:
        """See Spans."""
        return None

    def inside(self, name: str, attributes: Attributes) -> AbstractContextManager[None]:
        """See Spans."""
        return nullcontext()

    def step(self, job: str, name: str) -> AbstractContextManager[None]:
        """See Spans."""
        return nullcontext()

    def posted(self, job: str) -> None:
        """See Spans."""

    def stage(self, job: str, name: str, seconds: float, attributes: Attributes) -> None:
        """See Spans."""


def is_configured(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's own variables name a destination for traces."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER")
    if exporter is not None:
        return exporter not in ("", "none")
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(environment.get(name) for name in endpoints)
