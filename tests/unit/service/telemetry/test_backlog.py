"""Metrics from the database: cheap to query, and never an obstacle for the other metrics."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from prometheus_client import generate_latest

from cmcl.contract.prepare import PrepareProgress
from cmcl.contract.version import Drift, Quality, VersionReport
from service.database.queries import models
from service.errors import DatabaseUnavailable
from service.states import JobState
from service.telemetry.backlog import ScrapeCache
from tests.fakes.clock import ScriptedClock
from tests.fakes.control_plane import ControlPlane
from tests.fakes.database_outage import outage
from tests.fakes.trainer import train
from tests.unit.service.telemetry.samples import capacity, report_preparing, shown

SHOWN = {
    "rows": "rows_done",
    "rows_planned": "rows_total",
    "rejected_rows": "bad_rows",
    "rows_per_second": "rows_per_second",
    "eta_seconds": "eta_seconds",
}
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
    assert shown(plane, "owner_waiting_jobs", owner="default") == 1
    assert shown(plane, "owner_running_jobs", owner="default") == 1
    assert shown(plane, "backlog_up") == 1


def test_the_database_is_queried_once_in_some_seconds() -> None:
    clock, calls = ScriptedClock(), itertools.count(1)
    kept = ScrapeCache(lambda: next(calls), 5, clock)
    assert [kept.value() for _ in range(3)] == [1, 1, 1]
    clock.advance(4.9)
    assert kept.value() == 1
    clock.advance(0.1)
    assert kept.value() == 2


def test_a_database_that_does_not_respond_is_not_queried_more_often() -> None:
    clock, asked = ScriptedClock(), []

    def fail() -> int:
        asked.append(1)
        raise DatabaseUnavailable("on purpose")

    kept = ScrapeCache(fail, 5, clock)
    assert [kept.value() for _ in range(3)] == [None] * 3
    assert len(asked) == 1


def test_many_scrapes_at_once_ask_the_database_once() -> None:
    asked, is_reading = [], threading.Event()

    def read() -> int:
        asked.append(1)
        is_reading.wait(60)
        return 7

    kept = ScrapeCache(read, 5, ScriptedClock())
    with ThreadPoolExecutor(8) as threads:
        values = [threads.submit(kept.value) for _ in range(8)]
        is_reading.set()
        assert [value.result() for value in values] == [7] * 8
    assert len(asked) == 1


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
    assert shown(plane, "oldest_unmirrored_promotion_seconds") == 62
    plane.store.broken = None
    plane.clock.advance(60)
    plane.tick()
    assert shown(plane, "oldest_unmirrored_promotion_seconds") == 0


def test_the_newest_version_of_each_model_has_its_figures(plane: ControlPlane) -> None:
    plane.run_to_end(first := plane.post_dataset("one"))
    job = plane.post_dataset("two")
    plane.tick_to(job, JobState.RUNNING)
    report = VersionReport(
        final_loss=1,
        updates=3,
        ranks=1,
        drift={plane.dataset_of(first).id: Drift(since_learned=0.02, against_parent=0.02)},
        quality={plane.dataset_of(first).id: Quality(now=-0.9, best=-1.2, norm_change={})},
        capacity={"image": capacity(0.4)},
    )
    train(plane.store, job, 1, changes={"report": report})
    plane.run_to_end(job)
    plane.clock.advance(60)
    assert shown(plane, "model_version", model="scenes") == 2
    assert shown(plane, "model_live_version", model="scenes") == 2
    assert shown(plane, "model_drift", model="scenes") == 0.02
    assert shown(plane, "model_optimality", model="scenes") == pytest.approx(0.75)
    assert shown(plane, "model_free_share", model="scenes", modality="image") == 0.4
    assert shown(plane, "model_drift_permitted", model="scenes") is None
    headers = {"If-Match": '"1"'}
    plane.client.put("/v1/models/scenes/gate", json={"max_drift": 0.1}, headers=headers)
    plane.clock.advance(60)
    assert shown(plane, "model_drift_permitted", model="scenes") == 0.1


def test_a_model_without_a_version_has_no_figures(plane: ControlPlane) -> None:
    plane.create_model("empty")
    assert shown(plane, "model_version", model="empty") is None


def test_models_without_a_version_hide_no_others(plane: ControlPlane) -> None:
    spec, now = plane.model().spec, plane.clock()
    with plane.context.database.write() as connection:
        for number in range(201):
            models.create(connection, f"empty-{number:03}", "default", spec, now)
    plane.run_to_end(plane.post_dataset("one"))
    plane.clock.advance(60)
    assert shown(plane, "model_version", model="scenes") == 1


def test_a_manifest_is_read_once(plane: ControlPlane) -> None:
    plane.run_to_end(plane.post_dataset("one"))
    reads = []
    for _ in range(3):
        plane.clock.advance(61)
        before = shown(plane, "database_seconds_count", kind="read", outcome="ok") or 0
        generate_latest(plane.context.metrics.registry)
        after = shown(plane, "database_seconds_count", kind="read", outcome="ok") or 0
        reads.append(after - before)
    # Backlog, models, what is prepared or trained, and one manifest; then without the manifest.
    assert reads == [5, 4, 4]


def figures(plane: ControlPlane, model: str) -> dict[str, float | None]:
    return {name: shown(plane, f"preparation_{name}", model=model) for name in SHOWN}


def test_every_figure_of_a_preparation_is_shown(plane: ControlPlane) -> None:
    given = {
        "rows_done": 512,
        "rows_total": 2048,
        "bad_rows": 3,
        "rows_per_second": 64.0,
        "eta_seconds": 24.0,
    }
    report_preparing(plane, plane.post_dataset(), "encoding", **given)
    assert figures(plane, "scenes") == {name: given[field] for name, field in SHOWN.items()}
    assert shown(plane, "preparation_datasets", phase="encoding", **SCENES) == 1


def test_no_figure_of_progress_is_missing() -> None:
    others = {"request", "phase", "note", "at"}
    assert others | set(SHOWN.values()) == set(PrepareProgress.model_fields)


def test_datasets_of_a_model_are_added_up(plane: ControlPlane) -> None:
    for number, name in enumerate(("one", "two"), 1):
        report_preparing(
            plane,
            plane.post_dataset(name),
            "encoding",
            rows_done=10 * number,
            rows_total=100,
            eta_seconds=5.0 * number,
        )
    found = figures(plane, "scenes")
    assert (found["rows"], found["rows_planned"], found["rows_per_second"]) == (30, 200, 8)
    assert found["eta_seconds"] == 10
    assert shown(plane, "preparation_datasets", phase="encoding", **SCENES) == 2


def test_a_dataset_without_a_report_waits(plane: ControlPlane) -> None:
    plane.preparer = lambda _: None
    plane.post_dataset()
    plane.tick(3)
    plane.clock.advance(5)
    assert shown(plane, "preparation_datasets", phase="waiting", **SCENES) == 1
    assert set(figures(plane, "scenes").values()) == {None}


@pytest.mark.parametrize("end", ["prepared", "cancelled"])
def test_the_series_of_a_preparation_vanish_with_it(plane: ControlPlane, end: str) -> None:
    prepare = plane.preparer
    job = plane.post_dataset()
    report_preparing(plane, job, "reading", rows_done=1)
    assert shown(plane, "preparation_rows", **SCENES) == 1
    if end == "prepared":
        plane.preparer = prepare
        plane.run_to_end(job)
    else:
        plane.client.post(f"/v1/jobs/{job}/cancel")
        plane.tick(2)
    plane.clock.advance(5)
    assert "cmcl_service_preparation_rows{" not in plane.client.get("/metrics").text


def test_each_model_shows_its_own(plane: ControlPlane) -> None:
    plane.create_model("sounds")
    report_preparing(plane, plane.post_dataset(), "encoding", rows_done=5)
    report_preparing(plane, plane.post_dataset(model="sounds"), "reading", rows_done=7)
    assert shown(plane, "preparation_rows", model="scenes") == 5
    assert shown(plane, "preparation_rows", model="sounds") == 7
    assert shown(plane, "preparation_datasets", model="sounds", phase="reading") == 1
