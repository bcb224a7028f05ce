"""Traces: nothing without an exporter; with one, a trace per job that every service adds to."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Self

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.app import open_spans
from service.telemetry.otel import OpenTelemetrySpans, exporter_named
from service.telemetry.spans import NoSpans, is_configured
from tests.fakes.control_plane import ControlPlane
from tests.unit.service.telemetry.written import written_lines


class Traced:
    """A control plane whose spans are kept in memory."""

    def __init__(self, folder: Path) -> None:
        self.exporter = InMemorySpanExporter()
        self.spans = OpenTelemetrySpans(self.exporter)
        self.plane = ControlPlane(folder, spans=self.spans)
        self.plane.create_model()

    def finished(self) -> list[ReadableSpan]:
        self.spans.provider.force_flush()
        return list(self.exporter.get_finished_spans())

    def of_job(self, job: str) -> list[ReadableSpan]:
        return [span for span in self.finished() if trace_of(span) == trace_id(job)]


def trace_id(job: str) -> str:
    return hashlib.sha256(job.encode()).hexdigest()[:32]


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return format(span.context.trace_id, "032x")


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[Traced]:
    traced = Traced(tmp_path)
    yield traced
    traced.plane.close()
    traced.spans.provider.shutdown()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, False),
    ],
)
def test_traces_are_exported_if_configured(environment: dict[str, str], expected: bool) -> None:
    assert is_configured(environment) is expected


def test_an_exporter_that_we_do_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"zipkin.*permitted: otlp, console, none"):
        exporter_named("zipkin")
    assert isinstance(open_spans({}), NoSpans)


def test_without_an_exporter_no_machinery_is_imported() -> None:
    code = (
        "import sys; from service.app import create_app; from service.settings import Settings;"
        "create_app(Settings(database_url='sqlite://'));"
        "print([name for name in ('sdk', 'exporter', 'proto') if f'opentelemetry.{name}' in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_a_job_has_one_trace_with_its_stages(traced: Traced) -> None:
    job = traced.plane.post_dataset()
    traced.plane.clock.advance(30)
    traced.plane.run_to_end(job)
    spans = traced.of_job(job)
    names = [span.name for span in spans if span.attributes and "cmcl.to" in span.attributes]
    assert names == ["queued", "validating", "submitting", "running", "gating"]
    queued = next(span for span in spans if span.name == "queued")
    assert queued.end_time is not None
    assert queued.start_time is not None
    assert queued.end_time - queued.start_time == 30_000_000_000
    (root,) = [span for span in spans if span.name == "job"]
    assert root.parent is None
    assert root.context is not None
    for span in spans:
        assert span is root or span.parent is not None
    assert queued.parent is not None
    assert queued.parent.span_id == root.context.span_id


def test_the_trace_of_a_job_leads_back_to_its_post(traced: Traced) -> None:
    job = traced.plane.post_dataset()
    (root,) = [span for span in traced.of_job(job) if span.name == "job"]
    (post,) = [span for span in traced.finished() if span.name == "POST /v1/datasets"]
    assert post.context is not None
    assert root.links[0].context.span_id == post.context.span_id
    assert post.attributes is not None
    assert post.attributes["cmcl.job"] == job


def test_two_services_add_to_the_same_trace(traced: Traced) -> None:
    job = traced.plane.post_dataset()
    traced.plane.tick(3)
    exporter = InMemorySpanExporter()
    spans = OpenTelemetrySpans(exporter)
    plane = traced.plane
    plane.clock.advance(60)
    other = ControlPlane(plane.folder, plane.launcher, plane.clock, spans=spans)
    other.run_to_end(job)
    spans.provider.force_flush()
    elsewhere = [span for span in exporter.get_finished_spans() if trace_of(span) == trace_id(job)]
    assert "gating" in {span.name for span in elsewhere}
    other.close()
    spans.provider.shutdown()


def test_calls_of_store_and_launcher_are_inside_their_step(traced: Traced) -> None:
    job = traced.plane.post_dataset()
    traced.plane.run_to_end(job)
    by_id = {span.context.span_id: span for span in traced.of_job(job) if span.context}
    inside = {
        (by_id[span.parent.span_id].name, span.name)
        for span in by_id.values()
        if span.parent is not None and span.parent.span_id in by_id
    }
    assert ("step submitting", "launcher submit") in inside
    assert ("step submitting", "store put") in inside
    assert ("step store", "store copy") in inside


def test_looking_after_a_running_attempt_makes_no_spans(traced: Traced) -> None:
    job = traced.plane.post_dataset()
    traced.plane.tick(4)
    before = len(traced.finished())
    traced.plane.tick(20)
    assert traced.plane.job(job).state == "running"
    assert len(traced.finished()) == before


def test_a_failure_is_marked_with_its_reason(traced: Traced) -> None:
    body = {"shards": [{"uri": (traced.plane.shards / "gone.parquet").resolve().as_uri()}]}
    (traced.plane.shards).mkdir(exist_ok=True)
    (traced.plane.shards / "gone.parquet").write_bytes(b"no parquet")
    job = traced.plane.post_dataset(**body)
    traced.plane.tick(3)
    (failed,) = [span for span in traced.of_job(job) if span.name == "validating"]
    assert not failed.status.is_ok
    assert failed.status.description == "invalid_dataset"


def test_probes_are_not_traced(traced: Traced) -> None:
    assert traced.finished()
    traced.exporter.clear()
    for path in ("/healthz", "/readyz", "/metrics"):
        traced.plane.client.get(path)
    assert traced.finished() == []


def test_lines_of_a_request_name_its_trace(traced: Traced) -> None:
    with written_lines() as written:
        traced.plane.client.get("/v1/models/scenes")
    (line,) = written
    (span,) = [found for found in traced.finished() if found.name == "GET /v1/models/{model}"]
    assert line["trace_id"] == trace_of(span)


def test_a_trace_of_a_client_is_continued(traced: Traced) -> None:
    given = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{given}-b7ad6b7169203331-01"}
    traced.plane.client.get("/v1/models/scenes", headers=headers)
    assert given in {trace_of(span) for span in traced.finished()}


def test_spans_are_sent_where_the_variable_points(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        spans = open_spans(os.environ)
        assert isinstance(spans, OpenTelemetrySpans)
        spans.posted("job-0123456789ab")
        spans.provider.shutdown()
    assert collector.paths == ["/v1/traces"]


class Collector:
    """An OTLP collector that accepts everything and records its path."""

    def __init__(self) -> None:
        paths: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                paths.append(self.path)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.paths = paths
        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
