"""Metrics from the database: cheap to query, and never an obstacle for the other metrics."""

from datetime import timedelta

import pytest
from prometheus_client import generate_latest

from cmcl.contract.api.jobs import JobState
from cmcl.contract.job import Phase
from cmcl.contract.prepare import PreparationPhase
from service.launchers.port import LaunchState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.database_outage import outage
from tests.fakes.trainer import FIGURES, report_progress, train
from tests.unit.service.telemetry.samples import report_preparing, report_running, shown

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


@pytest.mark.parametrize("end", ["prepared", "cancelled"])
def test_the_rows_of_a_preparation_vanish_with_it(plane: ControlPlane, end: str) -> None:
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
