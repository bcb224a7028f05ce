"""One trace from the POST to the replica that answers, through a collector on loopback; and a collector that does not answer."""

import threading
from pathlib import Path

import pytest

from cmcl.contract.api.jobs import JobState
from cmcl.contract.model import ModelSpec
from cmcl.tracing import close_provider, exporter_from, open_provider
from tests.fakes.collector import Collector
from tests.fakes.control_plane import SPEC, ControlPlane
from tests.fakes.versions import random_heads, store_version
from tests.unit.serve.conftest import Replica
from workers.serve.api.context import open_tracing
from workers.serve.settings import ServeSettings

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
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


def test_spans_beyond_the_queue_are_dropped_while_the_collector_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    with Collector(hangs=True) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        exporter = exporter_from({"OTEL_TRACES_EXPORTER": "otlp"})
        assert exporter is not None
        provider = open_provider(exporter, {"service.name": "test"})
        tracer = provider.get_tracer("test")
        for _ in range(4):
            tracer.start_span("first").end()
        assert collector.asked.wait(60)
        for _ in range(1000):
            tracer.start_span("later").end()
        collector.release.set()
        close_provider(provider, seconds=60)
        assert len(collector.named("first")) == 4
        assert len(collector.named("later")) == 8


def test_jobs_go_on_while_the_collector_hangs_or_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def published(folder: str) -> str:
        plane = ControlPlane(tmp_path / folder)
        plane.create_model()
        job = plane.run_to_end(plane.post_dataset())
        plane.close()
        close_provider(plane.context.metrics.spans.provider, seconds=0.1)  # type: ignore[attr-defined]
        return job.state

    with Collector(hangs=True) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        assert published("hangs") == JobState.PUBLISHED
        assert collector.spans == []
    assert published("down") == JobState.PUBLISHED


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
