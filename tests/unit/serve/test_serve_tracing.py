"""Traces of a replica: loads of versions; and nothing without a collector."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cmcl.storage import layout
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.versions import stored_key
from tests.unit.serve.conftest import MODEL, Replica
from workers.serve.api.context import open_tracing
from workers.serve.otel import OpenTelemetryTracing
from workers.serve.settings import ServeSettings

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = f"00-{TRACE}-{CALLER}-01"


@dataclass
class Traced:
    """A replica with version 1 live, whose spans are kept in memory."""

    replica: Replica
    tracing: OpenTelemetryTracing
    exporter: InMemorySpanExporter

    def finished(self) -> list[ReadableSpan]:
        self.tracing.provider.force_flush()
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.finished() if span.name == name]


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return format(span.context.trace_id, "032x")


@pytest.fixture
def traced(store: FlakyStore) -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    tracing = OpenTelemetryTracing(exporter, "replica-1")
    replica = Replica(store, ServeSettings(store=store.uri), tracing=tracing)
    replica.publish(version=1)
    replica.poll()
    yield Traced(replica, tracing, exporter)
    tracing.close()


def test_a_new_version_is_loaded_in_the_trace_that_made_it_live(traced: Traced) -> None:
    for version, context in ((2, None), (3, CONTEXT)):
        traced.replica.publish(version=version)
        traced.replica.point(version, version, traceparent=context)
        traced.replica.poll()
    (span,) = traced.named("load version")
    assert trace_of(span) == TRACE
    assert dict(span.attributes or {}) == {"cmcl.model": MODEL, "cmcl.version": 3}
    assert span.resource.attributes["service.instance.id"] == "replica-1"


def test_a_version_that_cannot_be_loaded_fails_its_spans_a_few_times(traced: Traced) -> None:
    traced.replica.publish(version=2)
    traced.replica.store.delete(stored_key(traced.replica.store, MODEL, 2, layout.HEADS))
    traced.replica.point(2, 2, traceparent=CONTEXT)
    for _ in range(10):
        traced.replica.poll()
        traced.replica.clock.now += 60
    spans = traced.named("load version")
    assert len(spans) == 5
    assert {span.status.description for span in spans} == {"damaged"}


def test_a_replica_that_starts_adds_nothing_to_the_trace_of_a_version(traced: Traced) -> None:
    traced.replica.point(2, 1, traceparent=CONTEXT)
    replica = Replica(traced.replica.store, traced.replica.args, tracing=traced.tracing)
    replica.poll()
    assert replica.live_number() == 1
    assert traced.finished() == []


def test_a_replica_that_cannot_trace_answers(caplog: pytest.LogCaptureFixture) -> None:
    assert open_tracing({"OTEL_TRACES_EXPORTER": "zipkin"}, "replica-1") is None
    assert "loads of versions are not traced" in caplog.text
