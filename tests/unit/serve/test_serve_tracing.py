"""Traces of a replica: the stages of a request, the caller's trace, loads of versions; and nothing without a collector."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
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
ROUTE = "POST /v1/embeddings"


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

    def tree(self) -> set[tuple[str, str]]:
        """Each span's name after that of its parent; empty for a parent elsewhere."""
        names = {id_of(span): span.name for span in self.finished()}
        parents = {span: span.parent.span_id if span.parent else 0 for span in self.finished()}
        return {(names.get(parent, ""), span.name) for span, parent in parents.items()}


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


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


def test_a_request_has_a_span_with_its_stages(traced: Traced) -> None:
    response = traced.replica.embed(headers={"traceparent": CONTEXT})
    assert response.status_code == 200
    (span,) = traced.named(ROUTE)
    assert trace_of(span) == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == CALLER
    assert response.headers["traceresponse"] == f"00-{TRACE}-{id_of(span):016x}-01"
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "http.response.status_code": 200,
        "cmcl.model": MODEL,
        "cmcl.version": 1,
        "cmcl.rows": 1,
    }
    stages = ("receive", "read", "look_up", "encode", "embed", "write", "send")
    inside = {("embed", "batch wait"), ("embed", "forward")}
    assert traced.tree() == {("", ROUTE)} | {(ROUTE, name) for name in stages} | inside


def test_requests_that_share_a_product_each_have_its_span(traced: Traced) -> None:
    body = json.dumps({"model": MODEL, "modality": "image", "input": [1, 2, 3, 4, 5]}).encode()

    async def both(client: httpx.AsyncClient) -> httpx.Response:
        answers = [client.post("/v1/embeddings", content=body) for _ in range(2)]
        return (await asyncio.gather(*answers))[0]

    traced.replica.run(both)
    forwards = traced.named("forward")
    assert len(forwards) == 2
    assert len({trace_of(span) for span in forwards}) == 2


@pytest.mark.parametrize(
    "given",
    [
        {"traceparent": "nonsense"},
        {"traceparent": f"00-{'0' * 32}-{CALLER}-01"},
        {"traceparent": f"ff-{TRACE}-{CALLER}-01"},
        {"traceparent": CONTEXT * 100},
        {b"traceparent": b"\xff\xfe"},
    ],
)
def test_a_malformed_traceparent_begins_a_new_trace(
    traced: Traced, given: dict[str, str] | dict[bytes, bytes]
) -> None:
    assert traced.replica.embed(headers=given).status_code == 200
    (span,) = traced.named(ROUTE)
    assert span.parent is None


def test_two_headers_begin_a_new_trace(traced: Traced) -> None:
    async def twice(client: httpx.AsyncClient) -> httpx.Response:
        headers = [("traceparent", CONTEXT), ("traceparent", CONTEXT)]
        return await client.get("/v1/models", headers=headers)

    assert traced.replica.run(twice).status_code == 200
    (span,) = traced.named("GET /v1/models")
    assert span.parent is None


def test_a_request_that_the_caller_does_not_sample_is_not_recorded(traced: Traced) -> None:
    response = traced.replica.embed(headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
    assert response.headers["traceresponse"].startswith(f"00-{TRACE}-")
    assert response.headers["traceresponse"].endswith("-00")
    assert traced.finished() == []


def test_a_refused_request_has_its_status_and_nothing_of_the_body(traced: Traced) -> None:
    headers = {"authorization": "Bearer hidden-key"}
    assert traced.replica.embed(headers=headers, input=["hidden-text"]).status_code == 400
    assert traced.replica.get("/v1/hidden-path?hidden-query=1").status_code == 404
    (span,) = traced.named(ROUTE)
    assert (span.attributes or {})["http.response.status_code"] == 400
    assert "hidden" not in "".join(each.to_json() for each in traced.finished())


def test_probes_are_not_traced(traced: Traced) -> None:
    assert traced.replica.get("/healthz").status_code == 200
    assert traced.finished() == []


def test_a_new_version_is_loaded_in_the_trace_that_made_it_live(traced: Traced) -> None:
    traced.replica.publish(version=2)
    traced.replica.point(2, 2, traceparent=CONTEXT)
    traced.replica.poll()
    (span,) = traced.named("load version")
    assert trace_of(span) == TRACE
    assert dict(span.attributes or {}) == {"cmcl.model": MODEL, "cmcl.version": 2}
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
    assert "requests are not traced" in caplog.text
