"""Traces: export of spans to a collector, as OpenTelemetry's own environment variables say, and a log of stages.

Importing this module imports nothing of OpenTelemetry: only a process whose variables name a collector does. Finished
spans wait in a queue of bounded size for a thread that sends them; when it is full, spans are dropped. So a collector
that is down, slow or hangs delays nothing but that thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cmcl.contract.errors import StorageUnavailable
from cmcl.contract.job import MOST_STAGES, Stage, StageReport
from cmcl.storage.documents import write_document
from cmcl.storage.object_store import ObjectStore

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.trace.id_generator import IdGenerator

logger = logging.getLogger(__name__)

_CLOSING_SECONDS = 2.0


def exporter_from(environment: Mapping[str, str]) -> SpanExporter | None:
    """The exporter that the variables name; None if they name no destination, and tracing is off.

    The exporter reads its address and headers from os.environ itself. Raises ValueError for an unsupported value of
    OTEL_TRACES_EXPORTER.
    """
    name = environment.get("OTEL_TRACES_EXPORTER")
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if name is None and any(environment.get(each) for each in endpoints):
        name = "otlp"
    is_disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_disabled or name in (None, "", "none"):
        return None
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if name != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER is {name!r}; permitted: otlp, console, none")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def open_provider(
    exporter: SpanExporter, resource: Mapping[str, str], ids: IdGenerator | None = None
) -> TracerProvider:
    """A provider of its own, so that two applications in one process stay separate. It takes the sampler, the size of
    the queue and the exporter's timeout from the environment.

    `resource`: attributes of this process, as `service.name`; those of the environment take precedence.
    """
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(
        resource=Resource(resource).merge(OTELResourceDetector().detect()),
        id_generator=ids,
        # It would wait for half a minute; see `close_provider`.
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def close_provider(provider: TracerProvider, seconds: float = _CLOSING_SECONDS) -> None:
    """Export what is in the queue, for at most `seconds`: then the process ends without it."""
    thread = threading.Thread(target=provider.shutdown, name="close-traces", daemon=True)
    thread.start()
    thread.join(seconds)


class StageLog:
    """Measures the stages of a preparation or an attempt, one after the other; without a traceparent, nothing.

    They are reported to the control plane, which exports spans. So these processes need no connection to a collector,
    and cannot be delayed by one. For one thread. Of more than MOST_STAGES, the last ones are kept.
    """

    def __init__(self, traceparent: str | None) -> None:
        self._traceparent = traceparent
        self._ended: deque[Stage] = deque(maxlen=MOST_STAGES)
        self._current: tuple[str, datetime, float] | None = None

    def enter(self, name: str | None) -> None:
        """End the current stage, and begin one of this name; None: begin none."""
        if self._traceparent is None:
            return
        if self._current is not None:
            before, at, began = self._current
            stage = Stage(name=before, began_at=at, seconds=time.monotonic() - began)
            self._ended.append(stage)
        self._current = None if name is None else (name, datetime.now(UTC), time.monotonic())

    def write(self, store: ObjectStore, key: str) -> None:
        """End the current stage, and write the report. Without a store the trace has no stages."""
        if self._traceparent is None:
            return
        self.enter(None)
        report = StageReport(traceparent=self._traceparent, stages=tuple(self._ended))
        try:
            write_document(store, key, report)
        except StorageUnavailable as error:
            logger.warning("%s was not written: %s", key, error)
