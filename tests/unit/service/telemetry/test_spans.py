"""Traces of requests and of jobs, also across processes."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cmcl.contract.api.jobs import JobState
from cmcl.contract.job import submission_id
from cmcl.contract.model import ModelSpec
from cmcl.tracing import close_provider, exporter_from, open_provider
from service.app import open_spans
from service.launchers.port import LaunchState
from service.telemetry.otel import OpenTelemetrySpans
from service.telemetry.spans import Spans
from tests.fakes.collector import Collector
from tests.fakes.control_plane import SPEC, ControlPlane
from tests.fakes.versions import random_heads, store_version
from tests.unit.serve.conftest import Replica
from workers.serve.api.context import open_tracing
from workers.serve.settings import ServeSettings

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}


class Traced:
    """A control plane whose spans are kept in memory."""

    def __init__(self, folder: Path) -> None:
        self.exporter = InMemorySpanExporter()
        self.spans = OpenTelemetrySpans(self.exporter)
        self.plane = ControlPlane(folder, spans=self.spans)
        self.plane.create_model()

    def finished(self, trace: str | None = None) -> list[ReadableSpan]:
        self.spans.provider.force_flush()
        spans = self.exporter.get_finished_spans()
        return [span for span in spans if trace in (None, trace_of(span))]

    def named(self, *names: str) -> list[ReadableSpan]:
        return [span for span in self.finished() if span.name in names]

    def post(self, headers: dict[str, str] = SAMPLED) -> str:
        body = self.plane.dataset_body("one")
        response = self.plane.client.post("/v1/datasets", json=body, headers=headers)
        assert response.status_code == 202, response.text
        job: str = response.json()["job"]["id"]
        return job


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return format(span.context.trace_id, "032x")


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def attributes_of(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[Traced]:
    traced = Traced(tmp_path)
    yield traced
    traced.plane.close()
    traced.spans.close()


@pytest.mark.parametrize(
    ("environment", "is_on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, False),
    ],
)
def test_traces_are_exported_if_configured(environment: dict[str, str], is_on: bool) -> None:
    assert (exporter_from(environment) is not None) is is_on


def test_an_exporter_that_we_do_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"zipkin.*permitted: otlp, console, none"):
        exporter_from({"OTEL_TRACES_EXPORTER": "zipkin"})
    assert type(open_spans({})) is Spans


def test_without_an_exporter_no_machinery_is_imported() -> None:
    code = (
        "import sys; from service.app import create_app; from service.core.settings import Settings;"
        "create_app(Settings(database_url='sqlite://'));"
        "print([name for name in ('sdk', 'exporter', 'proto') if f'opentelemetry.{name}' in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_without_tracing_nothing_is_stored_written_or_answered(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    plane.create_model()
    response = plane.client.post("/v1/datasets", json=plane.dataset_body("one"), headers=SAMPLED)
    assert "traceresponse" not in response.headers
    job = plane.run_to_end(response.json()["job"]["id"])
    assert (job.traceparent, plane.model().traceparent) == (None, None)
    assert not [key for key in plane.store.keys("") if key.endswith("stages.json")]
    plane.close()


def test_the_request_stores_the_dataset_and_answers_with_its_span(traced: Traced) -> None:
    body = traced.plane.dataset_body("one")
    response = traced.plane.client.post("/v1/datasets", json=body, headers=SAMPLED)
    (post,) = traced.named("POST /v1/datasets")
    assert response.headers["traceresponse"] == f"00-{TRACE}-{id_of(post):016x}-01"
    assert post.parent is not None
    assert f"{post.parent.span_id:016x}" == CALLER
    writes = traced.named("database write")
    assert id_of(post) in {span.parent.span_id for span in writes if span.parent}


def test_a_malformed_traceparent_begins_a_new_trace(traced: Traced) -> None:
    given = [
        "nonsense",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{CALLER}-01",
        f"00-{TRACE}-{CALLER}-01-more",
        f"00-{TRACE.upper()}-{CALLER}-01",
        f"00-{TRACE}-{CALLER}-01" * 50,
    ]
    traces = set()
    for number, header in enumerate(given):
        body = traced.plane.dataset_body(f"number-{number}")
        headers = {"traceparent": header}
        response = traced.plane.client.post("/v1/datasets", json=body, headers=headers)
        stored = traced.plane.job(response.json()["job"]["id"]).traceparent
        assert stored == response.headers["traceresponse"]
        traces.add(stored[3:35])
    assert len(traces) == len(given)
    assert TRACE not in traces


def test_a_trace_that_the_caller_does_not_sample_is_continued_and_not_recorded(
    traced: Traced,
) -> None:
    job = traced.post({"traceparent": f"00-{TRACE}-{CALLER}-00"})
    traced.plane.run_to_end(job)
    assert traced.finished(TRACE) == []
    stored = traced.plane.job(job).traceparent
    assert stored is not None
    assert (stored[3:35], stored[53:]) == (TRACE, "00")
    assert not [key for key in traced.plane.store.keys("") if key.endswith("stages.json")]


def test_calls_of_store_and_launcher_are_inside_their_step(traced: Traced) -> None:
    job = traced.post()
    traced.plane.run_to_end(job)
    by_id = {id_of(span): span for span in traced.finished(TRACE)}
    inside = {
        (by_id[span.parent.span_id].name, span.name)
        for span in by_id.values()
        if span.parent is not None and span.parent.span_id in by_id
    }
    assert ("step submitting", "launcher submit") in inside
    assert ("step submitting", "store put") in inside
    assert ("step store", "store put") in inside
    assert ("step pointer", "store put") in inside


def test_looking_after_a_running_attempt_makes_no_spans(traced: Traced) -> None:
    job = traced.post()
    traced.plane.tick_to(job, JobState.RUNNING)
    traced.plane.tick()
    before = len(traced.finished())
    traced.plane.tick(20)
    assert traced.plane.job(job).state == "running"
    assert len(traced.finished()) == before


def test_a_failure_is_marked_with_its_reason(traced: Traced) -> None:
    traced.plane.shards.mkdir(exist_ok=True)
    gone = traced.plane.shards / "gone.parquet"
    gone.write_bytes(b"no parquet")
    traced.plane.post_dataset(shards=[{"uri": gone.resolve().as_uri()}])
    traced.plane.tick(4)
    (failed,) = traced.named("preparing")
    assert not failed.status.is_ok
    assert failed.status.description == "invalid_dataset"


def test_a_lost_attempt_is_marked_and_the_next_one_linked_to_it(traced: Traced) -> None:
    job = traced.post()
    running = traced.plane.tick_to(job, JobState.RUNNING)
    traced.plane.launcher.end(submission_id(running.id, running.attempt), LaunchState.FAILED)
    traced.plane.tick(3)
    traced.plane.run_to_end(job)
    first, second = traced.named("running")
    assert [attributes_of(span)["cmcl.attempt"] for span in (first, second)] == [1, 2]
    assert first.status.description == "attempt_lost"
    assert [link.context.span_id for link in second.links] == [id_of(first)]
    assert trace_of(second) == TRACE
    stages = traced.named("train training")
    assert [span.parent.span_id for span in stages if span.parent] == [id_of(second)]


def test_a_retry_continues_the_trace_and_is_linked_to_its_request(traced: Traced) -> None:
    late = (traced.plane.shards / "late.parquet").resolve().as_uri()
    body = traced.plane.dataset_body("one", shards=[{"uri": late}])
    response = traced.plane.client.post("/v1/datasets", json=body, headers=SAMPLED)
    job = response.json()["job"]["id"]
    traced.plane.tick_to(job, JobState.FAILED)
    traced.plane.shard("late")
    retried = traced.plane.client.post(f"/v1/jobs/{job}/retry")
    assert retried.status_code == 202, retried.text
    traced.plane.tick(3)
    first, second = traced.named("preparing")
    assert [trace_of(span) for span in (first, second)] == [TRACE, TRACE]
    assert id_of(first) in {link.context.span_id for link in second.links}
    (failed,) = traced.named("failed")
    (request,) = traced.named("POST /v1/jobs/{job}/retry")
    assert [format(link.context.trace_id, "032x") for link in failed.links] == [trace_of(request)]


def test_a_promotion_by_a_user_is_live_in_the_trace_of_its_request(traced: Traced) -> None:
    traced.plane.run_to_end(traced.post())
    traced.plane.run_to_end(traced.plane.post_dataset("two"))
    assert len(traced.named("live")) == 2
    traced.exporter.clear()
    response = traced.plane.client.put(
        "/v1/models/scenes/live", json={"version": 1}, headers={"if-match": '"2"'}
    )
    assert response.status_code == 200, response.text
    traced.plane.tick()
    (live,) = traced.named("live")
    assert trace_of(live) == response.headers["traceresponse"][3:35]
    assert attributes_of(live)["cmcl.version"] == 1


def test_probes_are_not_traced(traced: Traced) -> None:
    assert traced.finished()
    traced.exporter.clear()
    for path in ("/healthz", "/readyz", "/metrics"):
        traced.plane.client.get(path)
    assert traced.finished() == []


def test_spans_have_no_query_no_message_and_no_key(traced: Traced) -> None:
    key = "cmcl_0123456789ab_secretsecretsecret"
    headers = {**SAMPLED, "authorization": f"Bearer {key}"}
    traced.plane.client.get("/v1/models?model=hidden-query", headers=headers)
    traced.plane.client.get("/v1/hidden-path", headers={**headers, "host": "hidden-host"})
    broken = traced.plane.shards / "hidden-file.parquet"
    traced.plane.shards.mkdir(exist_ok=True)
    broken.write_bytes(b"no parquet")
    body = traced.plane.dataset_body("one", shards=[{"uri": broken.resolve().as_uri()}])
    traced.plane.client.post("/v1/datasets", json=body, headers=headers)
    traced.plane.tick(4)
    job = traced.plane.post_dataset("two")
    traced.plane.store.broken = "runs/"
    traced.plane.tick_to(job, JobState.SUBMITTING)
    traced.plane.tick()
    assert "on purpose" in str(traced.plane.job(job).message)
    spans = traced.finished()
    assert "StorageUnavailable" in {attributes_of(span).get("error.type") for span in spans}
    written = "".join(span.to_json() for span in spans)
    for hidden in (
        "hidden-query",
        "hidden-path",
        "hidden-host",
        "hidden-file",
        "secretsecret",
        "on purpose",
    ):
        assert hidden not in written


MODEL = ModelSpec.model_validate(SPEC)


def to_live(folder: Path, collector: Collector) -> None:
    """Post a dataset, restart the control plane in the middle, and load the version in a replica that ran before."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address}
    first = ControlPlane(folder)
    first.create_model()
    store, args = first.store, ServeSettings(store=first.store.uri)
    tracing = open_tracing(environment, "replica-1")
    replica = Replica(store, args, tracing=tracing)
    replica.poll()
    body, headers = first.dataset_body("one"), {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    job = first.client.post("/v1/datasets", json=body, headers=headers).json()["job"]["id"]
    first.tick_to(job, JobState.RUNNING)
    first.context.metrics.spans.close()
    first.close()
    second = ControlPlane(folder, first.launcher, first.clock)
    second.clock.advance(60)
    second.run_to_end(job)
    # The fake of training writes no heads that a replica could load.
    for key in list(store.keys("models/scenes/versions/1/")):
        store.delete(key)
    store_version(store, "scenes", 1, MODEL, random_heads(MODEL, seed=1))
    replica.poll()
    assert replica.live_number() == 1
    second.context.metrics.spans.close()
    second.close()
    assert tracing is not None
    tracing.close()


def test_one_trace_leads_from_the_post_to_the_replica_across_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        to_live(tmp_path, collector)
    assert set(collector.paths) == {"/v1/traces"}
    ours = [span for span in collector.spans if span.trace == TRACE]
    (post,) = collector.named("POST /v1/datasets")
    assert (post.parent, post.trace) == (CALLER, TRACE)
    below_the_post = {
        *("queued", "preparing", "prepared", "submitting", "running", "gating", "storing"),
        *("live", "load version", "database write"),
    }
    tree = collector.tree()
    assert {(post.name, name) for name in below_the_post} <= tree
    assert ("preparing", "prepare planning") in tree
    assert {("running", "train training"), ("running", "train writing")} <= tree
    ids = {span.id for span in ours}
    assert {span.parent for span in ours if span.parent not in ids} == {CALLER}
    assert {span.service for span in ours} == {"cmcl-service", "cmcl-endpoint"}
    (training,), (writing,) = collector.named("train training"), collector.named("train writing")
    assert training.begin <= training.end <= writing.begin <= writing.end


def one_span(environment: dict[str, str]) -> None:
    exporter = exporter_from(environment)
    assert exporter is not None
    provider = open_provider(exporter, {"service.name": "test"})
    provider.get_tracer("test").start_span("one").end()
    close_provider(provider, seconds=0.1)


def test_a_process_ends_although_the_collector_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector(hangs=True) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        one_span({"OTEL_TRACES_EXPORTER": "otlp"})
        # The last export still waits, in a thread that ends with the process.
        waiting = [thread for thread in threading.enumerate() if thread.name == "close-traces"]
        assert waiting
        assert all(thread.daemon for thread in waiting)
        assert collector.asked.wait(60)
        assert collector.spans == []


def test_stages_that_cannot_be_read_cost_the_trace_and_not_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        plane = ControlPlane(tmp_path)
        plane.create_model()
        job = plane.post_dataset()
        running = plane.tick_to(job, JobState.RUNNING)
        plane.store.broken = "stages.json"
        assert running.attempt == 1
        assert plane.run_to_end(job).state == JobState.PUBLISHED
        plane.context.metrics.spans.close()
        plane.close()
    names = {span.name for span in collector.spans}
    assert "running" in names
    assert "train training" not in names
