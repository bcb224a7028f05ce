"""Metrics: of the backlog, of jobs, of requests, of calls."""

import asyncio
import inspect
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from sqlalchemy import Connection
from starlette.types import Receive, Scope, Send

from cmcl.contract.api.jobs import FailureReason, JobState
from cmcl.contract.errors import ObjectExists, ObjectNotFound, StorageUnavailable
from cmcl.contract.job import Phase
from cmcl.contract.prepare import PreparationPhase
from cmcl.storage.local import LocalStore
from cmcl.storage.object_store import ObjectStore
from service.api.request_log import RequestLog
from service.core.principal import LOCAL
from service.jobs import transitions
from service.jobs.transitions import ActorNote
from service.launchers.port import (
    Launcher,
    LauncherRejected,
    LauncherUnavailable,
    LaunchState,
    Submission,
    WatchedLauncher,
    status_of,
)
from service.telemetry.metrics import InstrumentedStore, Metrics
from tests.fakes.control_plane import ControlPlane
from tests.fakes.database_outage import outage
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.launcher import FakeLauncher
from tests.fakes.trainer import FIGURES, report_progress, train
from tests.unit.service.telemetry.samples import report_preparing, report_running, shown, value

SCENES = {"model": "scenes"}


def test_jobs_and_their_ages_are_shown_by_state(plane: ControlPlane) -> None:
    job = plane.post_dataset("one")
    plane.tick_to(job, JobState.RUNNING)
    plane.post_dataset("two")
    plane.clock.advance(100)
    assert shown(plane, "jobs", state="queued") == 1
    assert shown(plane, "jobs", state="running") == 1
    assert shown(plane, "jobs", state="gating") == 0
    assert shown(plane, "oldest_job_seconds", state="queued") == 100
    assert shown(plane, "oldest_job_seconds", state="gating") == 0
    assert shown(plane, "backlog_up") == 1


def test_a_clock_that_goes_back_does_not_freeze_the_figures(plane: ControlPlane) -> None:
    assert shown(plane, "jobs", state="queued") == 0
    plane.post_dataset()
    plane.clock.now -= timedelta(hours=1)
    assert shown(plane, "jobs", state="queued") == 1
    assert shown(plane, "oldest_job_seconds", state="queued") == 0


def test_without_a_database_the_rest_is_still_shown(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    with outage(plane.context.database):
        text = plane.client.get("/metrics").text
    assert "cmcl_service_backlog_up 0.0" in text
    assert "cmcl_service_jobs{" not in text
    assert "cmcl_service_reconcile_round_age_seconds" in text
    assert "metrics could not be read" in caplog.text


def test_a_version_that_is_not_in_place_is_seen(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    train(plane.store, job, 1)
    plane.tick_to(job, JobState.GATING)
    plane.store.broken = "versions/1/heads"
    plane.tick_to(job, JobState.PUBLISHED)
    plane.clock.advance(299)
    assert shown(plane, "oldest_unstored_version_seconds") == 300
    plane.store.broken = None
    plane.clock.advance(30)
    plane.tick()
    plane.store.broken = "live.json"
    plane.tick()
    plane.clock.advance(60)
    assert shown(plane, "oldest_unstored_version_seconds") == 0
    assert shown(plane, "oldest_unwritten_pointer_seconds") == 62
    plane.store.broken = None
    plane.clock.advance(60)
    plane.tick()
    assert shown(plane, "oldest_unwritten_pointer_seconds") == 0


def test_a_scrape_reads_the_database_in_one_transaction(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset("one"))
    before = shown(plane, "database_seconds_count", kind="read", outcome="ok") or 0
    generate_latest(plane.context.metrics.registry)
    assert shown(plane, "database_seconds_count", kind="read", outcome="ok") == before + 1


def test_prepared_rows_of_all_datasets_of_a_model_are_added_up(plane: ControlPlane) -> None:
    plane.create_model("sounds")
    for number, name in enumerate(("one", "two"), 1):
        report_preparing(plane, plane.post_dataset(name), "encoding", rows_done=10 * number)
    report_preparing(plane, plane.post_dataset(model="sounds"), "reading", rows_done=7)
    assert shown(plane, "preparation_rows", model="scenes") == 30
    assert shown(plane, "preparation_rows", model="sounds") == 7


@pytest.mark.parametrize("phase", [None, "waiting"])
def test_a_preparation_that_waits_is_not_one_that_stands_still(
    plane: ControlPlane, phase: PreparationPhase | None
) -> None:
    plane.preparer = lambda _: None
    job = plane.post_dataset()
    if phase is not None:
        report_preparing(plane, job, phase)
    plane.tick(3)
    plane.clock.advance(5)
    assert plane.job(job).state == JobState.PREPARING
    assert shown(plane, "preparation_rows", **SCENES) is None


@pytest.mark.parametrize(
    ("phase", "progress"),
    [("training", 3 + FIGURES["rows_done"]), ("certifying", 0), ("waiting", None)],
)
def test_progress_of_training_is_shown_unless_the_attempt_waits_for_ranks(
    plane: ControlPlane, phase: Phase, progress: float | None
) -> None:
    job = plane.post_dataset()
    attempt = plane.tick_to(job, JobState.RUNNING).attempt
    figures = FIGURES if phase == "training" else {}
    report_progress(plane.store, job, attempt, phase, 3 if figures else 0, figures)
    plane.tick()
    plane.clock.advance(5)
    assert shown(plane, "training_progress", **SCENES) == progress


@pytest.mark.parametrize("end", ["published", "lost"])
def test_the_progress_of_an_attempt_vanishes_with_it(plane: ControlPlane, end: str) -> None:
    job = plane.post_dataset()
    report_running(plane, job)
    assert shown(plane, "training_progress", **SCENES) is not None
    if end == "published":
        plane.run_to_end(job)
    else:
        plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "killed")
        plane.tick(5)
        assert (plane.job(job).state, plane.job(job).attempt) == (JobState.RUNNING, 2)
    plane.clock.advance(5)
    assert shown(plane, "training_progress", **SCENES) is None


FINISHED = "jobs_finished_total"


def hold(plane: ControlPlane) -> str:
    """A job whose candidate waits for approval."""
    gate = {"manual_approval": True}
    headers = {"If-Match": plane.client.get("/v1/models/scenes/gate").headers["etag"]}
    answer = plane.client.put("/v1/models/scenes/gate", json=gate, headers=headers)
    assert answer.status_code == 200, answer.text
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    train(plane.store, job, 1)
    plane.tick_to(job, JobState.HELD)
    return job


def test_a_candidate_rejected_by_hand_is_counted(plane: ControlPlane) -> None:
    job = hold(plane)
    plane.client.post(f"/v1/jobs/{job}/reject", json={"reason": "blurred"})
    assert plane.job(job).state == JobState.REJECTED
    assert shown(plane, FINISHED, state="rejected", reason="rejected_by_hand") == 1


def test_a_lost_attempt_is_counted_also_the_last_one(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, max_attempts=2, lost_attempt_grace_seconds=0)
    plane.create_model()
    job = plane.post_dataset()
    for attempt in (1, 2):
        plane.tick_to(job, JobState.RUNNING)
        plane.launcher.end(f"{job}-a{attempt}", LaunchState.FAILED)
        plane.tick()
    assert plane.job(job).reason == FailureReason.ATTEMPTS_EXHAUSTED
    assert shown(plane, "attempts_lost_total") == 2
    assert shown(plane, FINISHED, state="failed", reason="attempts_exhausted") == 1
    plane.close()


def test_what_was_rolled_back_is_not_counted(plane: ControlPlane) -> None:
    job = plane.post_dataset()

    def cancel_and_fail(connection: Connection) -> None:
        transitions.cancel(connection, job, ActorNote(LOCAL, plane.clock()))
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError):
        plane.context.database.settle(cancel_and_fail)
    assert plane.job(job).state == JobState.QUEUED
    assert shown(plane, FINISHED, state="cancelled", reason="") == 0


def test_the_stages_add_up_to_the_time_from_post_to_live(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.clock.advance(40)
    plane.tick_to(job, JobState.RUNNING)
    plane.clock.advance(100)
    plane.run_to_end(job)
    stages = ("queued", "preparing", "prepared", "submitting", "running", "gating", "storing")
    seconds = {name: shown(plane, "stage_seconds_sum", stage=name) or 0 for name in stages}
    assert seconds["queued"] == 40
    assert seconds["running"] >= 100
    assert sum(seconds.values()) == shown(plane, "post_to_live_seconds_sum")


COUNT = "http_request_seconds_count"


def test_odd_methods_and_paths_make_no_new_series(plane: ControlPlane) -> None:
    for number in range(20):
        plane.client.request(f"ODD{number}", f"/nowhere/{number}")
    registry = plane.context.metrics.registry
    samples = [
        sample
        for family in registry.collect()
        if family.name == "cmcl_service_http_request_seconds"
        for sample in family.samples
        if sample.name.endswith("_count") and sample.labels["method"] == "other"
    ]
    assert len(samples) == 1
    assert samples[0].value == 20
    assert samples[0].labels["route"] == "unknown"


def test_ids_in_paths_make_no_new_series(plane: ControlPlane) -> None:
    for number in range(5):
        plane.client.get(f"/v1/jobs/job-00000000000{number}")
    labels = {"method": "GET", "route": "/v1/jobs/{job}", "status": "404"}
    assert shown(plane, COUNT, **labels) == 5


def test_a_long_stream_counts_as_what_its_first_byte_took() -> None:
    begun: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        begun.append(time.perf_counter())
        await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, object]:
        return {"type": "http.request"}

    async def send(message: object) -> None:
        """Without a collector."""

    metrics = Metrics()
    scope = {"type": "http", "method": "GET", "path": "/stream", "headers": []}
    asked = time.perf_counter()
    asyncio.run(RequestLog(app, metrics)(scope, receive, send))
    labels = {"method": "GET", "route": "unknown", "status": "200"}
    seconds = value(metrics.registry, "http_request_seconds_sum", **labels)
    assert seconds is not None
    assert seconds <= begun[0] - asked
    assert value(metrics.registry, "http_requests_in_progress") == 0


class MeteredParts:
    """Both ports, over fakes that can fail."""

    def __init__(self, folder: Path) -> None:
        self.metrics = Metrics()
        self.flaky = FlakyStore(LocalStore(folder))
        self.store = InstrumentedStore(self.flaky, self.metrics)
        self.fake = FakeLauncher()
        self.launcher = WatchedLauncher(self.fake, 0.0, measure=self.metrics.launcher_call)

    def store_calls(self, operation: str, outcome: str = "ok") -> float:
        labels = {"operation": operation, "outcome": outcome}
        return value(self.metrics.registry, "store_seconds_count", **labels) or 0

    def launcher_calls(self, call: str, outcome: str = "ok") -> float:
        labels = {"call": call, "outcome": outcome}
        return value(self.metrics.registry, "launcher_seconds_count", **labels) or 0


@pytest.fixture
def parts(tmp_path: Path) -> MeteredParts:
    return MeteredParts(tmp_path / "store")


def methods(port: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(port, inspect.isfunction) if name[0] != "_"}


def use_everything(store: ObjectStore, folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"abc")
    store.put("a", b"1")
    store.create("b", b"2")
    store.upload(path, "c")
    with store.writer("d/e", 2) as writer:
        writer.write(b"1")
        writer.write(b"2")
    assert store.read("d/e") == b"12"
    assert store.read_range("c", 1, 3) == b"bc"
    assert b"".join(store.stream("c")) == b"abc"
    store.download("c", folder / "other")
    assert store.size("c") == 3
    assert list(store.keys("d/")) == ["d/e"]
    assert store.folders("") == ["d"]
    store.delete("a")


def test_every_method_of_the_store_is_measured(parts: MeteredParts, tmp_path: Path) -> None:
    use_everything(parts.store, tmp_path)
    unmeasured = {name for name in methods(ObjectStore) if parts.store_calls(name) == 0}
    assert unmeasured == set()
    assert parts.store.uri == parts.flaky.uri


def test_every_method_of_the_launcher_is_measured(parts: MeteredParts) -> None:
    parts.launcher.submit(Submission("job-1-a1", ["true"]))
    assert status_of(parts.launcher, "job-1-a1").state == LaunchState.RUNNING
    parts.launcher.log("job-1-a1")
    parts.launcher.stop("job-1-a1")
    parts.launcher.forget("job-1-a1")
    parts.launcher.resources()
    assert {name for name in methods(Launcher) if parts.launcher_calls(name) == 0} == set()
    assert parts.fake.commands == {"job-1-a1": ["true"]}


def test_errors_of_the_store_pass_through_by_their_kind(parts: MeteredParts) -> None:
    with pytest.raises(ObjectNotFound):
        parts.store.read("a")
    with pytest.raises(ObjectNotFound):
        parts.store.stream("a")
    parts.store.create("a", b"")
    with pytest.raises(ObjectExists):
        parts.store.create("a", b"")
    parts.flaky.broken = "a"
    with pytest.raises(StorageUnavailable):
        parts.store.size("a")
    assert parts.store_calls("read", "not_found") == 1
    assert parts.store_calls("open", "not_found") == 1
    assert parts.store_calls("create", "exists") == 1
    assert parts.store_calls("size", "unavailable") == 1


def test_errors_of_the_launcher_pass_through_by_their_kind(parts: MeteredParts) -> None:
    parts.fake.refuses = True
    with pytest.raises(LauncherRejected):
        parts.launcher.submit(Submission("job-1-a1", ["true"]))
    parts.fake.is_down = True
    with pytest.raises(LauncherUnavailable):
        status_of(parts.launcher, "job-1-a1")
    assert parts.launcher_calls("submit", "rejected") == 1
    assert parts.launcher_calls("statuses", "unavailable") == 1


class BreakingStore(LocalStore):
    """Breaks off in the middle of a body."""

    def stream(self, key: str) -> Iterator[bytes]:
        yield b"first"
        raise StorageUnavailable("on purpose")


def test_a_body_that_breaks_off_is_counted_as_such(tmp_path: Path) -> None:
    metrics = Metrics()
    chunks = InstrumentedStore(BreakingStore(tmp_path), metrics).stream("a")
    assert next(chunks) == b"first"
    with pytest.raises(StorageUnavailable):
        next(chunks)
    labels = {"operation": "stream", "outcome": "unavailable"}
    assert value(metrics.registry, "store_seconds_count", **labels) == 1
