"""Attempts of a job: outcomes, progress over time, and the end of their logs."""

from datetime import timedelta
from typing import Any

import pytest

from cmcl.contract.api.jobs import JobState
from cmcl.contract.job import Failure
from cmcl.storage import layout
from cmcl.storage.running import mark_ended
from service.launchers.port import LaunchState
from service.maintenance.gc import GC_TASKS, RARE_GC_TASKS
from tests.fakes.control_plane import ControlPlane
from tests.fakes.lost_database import rebuild, wreck
from tests.fakes.trainer import report_progress, train


def _get(plane: ControlPlane, path: str, status: int = 200) -> Any:
    response = plane.client.get(path)
    assert response.status_code == status, response.text
    return response.json()


def _attempts(plane: ControlPlane, job: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = _get(plane, f"/v1/jobs/{job}/attempts")["items"]
    return items


def _progress(plane: ControlPlane, job: str, query: str = "") -> Any:
    return _get(plane, f"/v1/jobs/{job}/progress{query}")


def _lose(plane: ControlPlane, job: str) -> None:
    """Let the cluster lose the first attempt."""
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "out of memory")
    plane.tick_to(job, JobState.PREPARED)


@pytest.fixture
def running(plane: ControlPlane) -> tuple[ControlPlane, str]:
    """A control plane with a job whose first attempt runs, and has printed a line."""
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.tick()
    plane.launcher.logs[f"{job}-a1"] = "reading\n"
    return plane, job


def test_before_the_first_attempt_there_is_nothing(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    assert _attempts(plane, job) == []
    found = _progress(plane, job)
    assert (found["attempt"], found["points"]) == (None, [])
    assert "has had no attempt yet" in _get(plane, f"/v1/jobs/{job}/log", 404)["detail"]


def test_an_attempt_has_its_times_and_its_outcome(running: tuple[ControlPlane, str]) -> None:
    plane, job = running
    (attempt,) = _attempts(plane, job)
    assert (attempt["attempt"], attempt["parent_version"], attempt["outcome"]) == (1, None, None)
    assert attempt["created_at"] < attempt["started_at"]
    assert attempt["ended_at"] is None
    train(plane.store, job, 1)
    plane.run_to_end(job)
    (attempt,) = _attempts(plane, job)
    assert (attempt["outcome"], attempt["reason"], attempt["message"]) == ("candidate", None, None)
    assert attempt["started_at"] < attempt["ended_at"]


def test_a_lost_attempt_is_followed_by_another(running: tuple[ControlPlane, str]) -> None:
    plane, job = running
    _lose(plane, job)
    plane.run_to_end(job)
    lost, second = _attempts(plane, job)
    assert (lost["outcome"], second["outcome"]) == ("lost", "candidate")
    assert "out of memory" in lost["message"]
    assert lost["ended_at"] < second["created_at"]
    page = _get(plane, f"/v1/jobs/{job}/attempts?order=desc&limit=1")
    assert page["items"] == [second]
    rest = _get(plane, f"/v1/jobs/{job}/attempts?order=desc&cursor={page['next_cursor']}")
    assert rest["items"] == [lost]


def test_a_failed_attempt_has_the_reason_of_the_job(running: tuple[ControlPlane, str]) -> None:
    plane, job = running
    failure = Failure(reason="training_failed", message="the loss is NaN")
    plane.store.put(layout.run_failure(job, 1), failure.model_dump_json().encode())
    mark_ended(plane.store, job, 1)
    plane.tick_to(job, JobState.FAILED)
    (attempt,) = _attempts(plane, job)
    assert attempt["outcome"] == "failed"
    assert (attempt["reason"], attempt["message"]) == ("training_failed", "the loss is NaN")


def test_a_cancelled_attempt_is_shown_as_such(running: tuple[ControlPlane, str]) -> None:
    plane, job = running
    plane.client.post(f"/v1/jobs/{job}/cancel")
    plane.tick_to(job, JobState.CANCELLED)
    (attempt,) = _attempts(plane, job)
    assert attempt["outcome"] == "cancelled"


def test_attempts_survive_the_loss_of_the_database(running: tuple[ControlPlane, str]) -> None:
    plane, job = running
    _lose(plane, job)
    plane.tick_to(job, JobState.RUNNING)
    plane.tick()
    before = _attempts(plane, job)
    log = _get(plane, f"/v1/jobs/{job}/log?attempt=1")
    plane.record()
    wreck(plane.context.database)
    rebuild(plane)
    assert _attempts(plane, job) == before
    assert _get(plane, f"/v1/jobs/{job}/log?attempt=1") == log
    plane.run_to_end(job)
    assert [attempt["outcome"] for attempt in _attempts(plane, job)] == ["lost", "candidate"]


def test_an_attempt_that_a_rebuild_finds_learned_has_ended(
    running: tuple[ControlPlane, str],
) -> None:
    plane, job = running
    plane.record()
    train(plane.store, job, 1)
    plane.run_to_end(job)
    wreck(plane.context.database)
    rebuild(plane)
    (attempt,) = _attempts(plane, job)
    assert attempt["outcome"] == "candidate"
    assert attempt["ended_at"] is not None


# --- Progress over time -------------------------------------------------------------------------


def test_progress_becomes_a_curve(running: tuple[ControlPlane, str]) -> None:
    plane, job = running
    report_progress(plane.store, job, 1, "reading", figures={"rows_done": 8, "rows_total": 16})
    plane.tick()
    for update in range(5):
        figures = {"loss": 1.0 / (update + 1), "rows_per_second": 9.0, "removed_share": 0.25}
        report_progress(plane.store, job, 1, "training", update, figures)
        plane.tick()
    found = _progress(plane, job)
    assert (found["job"], found["attempt"], found["interval_seconds"]) == (job, 1, 0.5)
    first, *points = found["points"]
    assert (first["phase"], first["rows_done"], first["loss"]) == ("reading", 8, None)
    assert [point["updates_done"] for point in points] == [0, 1, 2, 3, 4]
    assert [point["loss"] for point in points] == pytest.approx(
        [1.0 / (update + 1) for update in range(5)]
    )
    assert {point["removed_share"] for point in points} == {0.25}
    assert [point["at"] for point in points] == sorted(point["at"] for point in points)


def test_a_curve_survives_a_restart_and_the_end(running: tuple[ControlPlane, str]) -> None:
    plane, job = running
    report_progress(plane.store, job, 1, "training", 1, {"loss": 0.9})
    plane.tick()
    plane.close()
    restarted = ControlPlane(plane.folder, plane.launcher, plane.clock)
    report_progress(plane.store, job, 1, "training", 2, {"loss": 0.8})
    restarted.tick()
    train(plane.store, job, 1)
    restarted.run_to_end(job)
    losses = [point["loss"] for point in _progress(restarted, job)["points"]]
    restarted.close()
    assert losses == [0.9, 0.8]


def test_each_attempt_has_a_curve_of_its_own(running: tuple[ControlPlane, str]) -> None:
    plane, job = running
    report_progress(plane.store, job, 1, "training", 1, {"loss": 0.9})
    plane.tick()
    _lose(plane, job)
    plane.tick_to(job, JobState.RUNNING)
    assert _progress(plane, job)["points"] == []
    report_progress(plane.store, job, 2, "training", 1, {"loss": 0.7})
    plane.tick()
    assert [point["loss"] for point in _progress(plane, job)["points"]] == [0.7]
    assert [point["loss"] for point in _progress(plane, job, "?attempt=1")["points"]] == [0.9]


def test_a_note_of_an_attempt_that_waits_is_no_point(running: tuple[ControlPlane, str]) -> None:
    plane, job = running
    report_progress(plane.store, job, 1, "waiting", figures={"note": "the ranks are busy"})
    plane.tick()
    assert plane.job(job).message == "the ranks are busy"
    plane.clock.advance(3600)
    report_progress(plane.store, job, 1, "training", 1, {"loss": 0.9})
    plane.tick()
    found = _progress(plane, job)
    assert len(found["points"]) == 1
    assert found["interval_seconds"] == 0.5, "the time that it waited takes no resolution"


def test_a_loss_that_is_no_number_is_null(running: tuple[ControlPlane, str]) -> None:
    plane, job = running
    report_progress(plane.store, job, 1, "training", 1, {"loss": float("nan")})
    plane.tick()
    (point,) = _progress(plane, job)["points"]
    assert point["loss"] is None


def test_curves_go_with_the_files_of_the_job(running: tuple[ControlPlane, str]) -> None:
    plane, job = running
    report_progress(plane.store, job, 1, "training", 1, {"loss": 0.9})
    plane.tick()
    train(plane.store, job, 1)
    plane.run_to_end(job)
    plane.clock.advance(timedelta(days=400).total_seconds())
    for task in (*GC_TASKS, *RARE_GC_TASKS):
        task(plane.context)
    assert plane.job(job).swept_at is not None
    assert _progress(plane, job)["points"] == []
    assert [attempt["outcome"] for attempt in _attempts(plane, job)] == ["candidate"]
    assert "was kept" in _get(plane, f"/v1/jobs/{job}/log", 404)["detail"]


# --- Logs ---------------------------------------------------------------------------------------


def test_the_log_of_a_running_attempt_comes_from_the_cluster(
    running: tuple[ControlPlane, str],
) -> None:
    plane, job = running
    expected = {"job": job, "attempt": 1, "live": True, "text": "reading\n"}
    assert _get(plane, f"/v1/jobs/{job}/log") == expected
    plane.launcher.is_down = True
    problem = _get(plane, f"/v1/jobs/{job}/log", 503)
    assert problem["type"] == "urn:cmcl:problem:cluster-unavailable"


@pytest.mark.parametrize("end", ["candidate", "lost", "failed", "cancelled"])
def test_the_log_is_kept_at_every_end(running: tuple[ControlPlane, str], end: str) -> None:
    plane, job = running
    if end == "candidate":
        train(plane.store, job, 1)
    elif end == "lost":
        plane.launcher.end(f"{job}-a1", LaunchState.FAILED)
    elif end == "failed":
        failure = Failure(reason="training_failed", message="the loss is NaN")
        plane.store.put(layout.run_failure(job, 1), failure.model_dump_json().encode())
        mark_ended(plane.store, job, 1)
    else:
        plane.client.post(f"/v1/jobs/{job}/cancel")
    plane.tick(3)
    # The cluster forgets it.
    plane.launcher.logs.clear()
    found = _get(plane, f"/v1/jobs/{job}/log?attempt=1")
    assert (found["live"], found["text"]) == (False, "reading\n")
    assert _attempts(plane, job)[0]["outcome"] == end


def test_a_log_that_cannot_be_read_or_kept_delays_no_job(
    running: tuple[ControlPlane, str],
) -> None:
    plane, job = running
    train(plane.store, job, 1)
    plane.launcher.is_down = True
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    assert "no log of attempt 1" in _get(plane, f"/v1/jobs/{job}/log", 404)["detail"]


@pytest.mark.parametrize("path", ["log", "progress"])
def test_an_attempt_that_is_not_there_is_named(
    running: tuple[ControlPlane, str], path: str
) -> None:
    plane, job = running
    problem = _get(plane, f"/v1/jobs/{job}/{path}?attempt=2", 404)
    assert "has no attempt 2; permitted: 1 to 1" in problem["detail"]
    for attempt in ("0", "x", "99999999999999999999"):
        problem = _get(plane, f"/v1/jobs/{job}/{path}?attempt={attempt}", 422)
        assert problem["errors"][0]["field"] == "attempt"
