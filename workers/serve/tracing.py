"""Traces of a replica as a port, so that OpenTelemetry is imported only if a collector is configured (`otel.py`).

Without tracing, a request pays for a comparison with None here and there. A traced request notes times while it is
answered, and its spans are made from them when it has ended.
"""

import logging
from collections.abc import Mapping
from time import time_ns
from typing import Protocol

from starlette.types import ASGIApp

from workers.serve.metrics import ServeMetrics, StageTimer
from workers.tracing import exporter_from

logger = logging.getLogger(__name__)

# Key of the ASGI scope under which a traced request has its RequestTrace.
TRACE = "cmcl.trace"

Attributes = Mapping[str, str | int]


class RequestTrace:
    """Times of one traced request, in nanoseconds since the epoch.

    `stages`: name, begin and end, in the order of their ends. `products`: begin, end, and rows of all requests that
    shared it. They are noted in the thread of the products, also after the request was given up.
    """

    def __init__(self) -> None:
        self.began = time_ns()
        self.received: int | None = None
        self.queued: int | None = None
        self.stages: list[tuple[str, int, int]] = []
        self.products: list[tuple[int, int, int]] = []
        self.attributes: dict[str, str | int] = {}

    def queue(self, model: str, version: int, rows: int) -> None:
        """Note that rows wait for a product of this version from now on."""
        self.queued = self.queued or time_ns()
        before = int(self.attributes.get("cmcl.rows", 0))
        self.attributes = {
            "cmcl.model": model,
            "cmcl.version": version,
            "cmcl.rows": before + rows,
        }


class TracedTimer(StageTimer):
    """Times the stages of a traced request, each of them."""

    def __init__(self, metrics: ServeMetrics, trace: RequestTrace) -> None:
        super().__init__(metrics)
        self._trace = trace
        self._stage_began = time_ns()

    def stage(self, stage: str) -> None:
        """End this stage."""
        super().stage(stage)
        now = time_ns()
        self._trace.stages.append((stage, self._stage_began, now))
        self._stage_began = now


class Tracing(Protocol):
    """Spans of one replica."""

    def layer(self, app: ASGIApp, known: frozenset[str], excluded: frozenset[str]) -> ASGIApp:
        """Wrap an application: a span for each request, but for those of `excluded` paths.

        `known`: paths that are answered without a router. The response has the header `traceresponse`.
        """
        ...

    def loaded(
        self,
        traceparent: str | None,
        seconds: float,
        attributes: Attributes,
        error: str | None = None,
    ) -> None:
        """Record that a version was loaded or refused, so many seconds after its pointer was read."""
        ...

    def close(self) -> None:
        """Export what is left, for two seconds at most."""
        ...


def open_tracing(environment: Mapping[str, str], replica: str) -> Tracing | None:
    """Tracing as OpenTelemetry's variables say; None without a destination. `replica`: its id.

    A replica that cannot trace answers nevertheless: the reason is logged.
    """
    try:
        exporter = exporter_from(environment)
        if exporter is None:
            return None
        from workers.serve.otel import OpenTelemetryTracing
    except (ImportError, ValueError) as error:
        logger.error("requests are not traced: %s", error)  # noqa: TRY400
        return None
    return OpenTelemetryTracing(exporter, replica)
