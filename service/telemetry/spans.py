"""Traces, where somebody collects them; otherwise OpenTelemetry's machinery is not even imported.

A job has a trace of its own. Its id is made from the job's id, so that every service that carries
the job on adds to the same trace, and nothing has to be remembered.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from fastapi.telemetry import TelemetryConfig

Attributes = Mapping[str, str | int | float]


class Spans(Protocol):
    """What is traced."""

    def of_requests(self) -> TelemetryConfig:
        """What FastAPI is told: a span for each request, but not for what machines ask all day."""
        ...

    def trace_id(self) -> str | None:
        """The trace that this thread works in: 32 hexadecimal digits."""
        ...

    def inside(self, name: str, attributes: Attributes) -> AbstractContextManager[None]:
        """A span of a call, if it is part of something that is traced."""
        ...

    def step(self, job: str, name: str) -> AbstractContextManager[None]:
        """A span of one step of the reconciler, in the job's trace."""
        ...

    def posted(self, job: str) -> None:
        """The job exists from now on: its trace begins, and leads back to the request."""
        ...

    def stage(self, job: str, name: str, seconds: float, attributes: Attributes) -> None:
        """The job leaves a state in which it was for so many seconds."""
        ...


class NoSpans:
    """Nobody collects traces."""

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


def is_asked_for(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's own variables name somewhere to send traces to."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER")
    if exporter is not None:
        return exporter not in ("", "none")
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(environment.get(name) for name in endpoints)
