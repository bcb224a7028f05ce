"""Attempts: their outcomes, curves and logs; checkpoints that they resume from; and their deadlines."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from cmcl.contract.api.jobs import FailureReason, JobState
from cmcl.contract.job import Failure, JobSpec
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.running import mark_ended
from service.jobs import attempts
from service.jobs.attempts import STARTING
from service.launchers.port import LaunchState
from service.maintenance.gc import GC_TASKS, RARE_GC_TASKS
from tests.fakes.control_plane import ControlPlane
from tests.fakes.lost_database import rebuild, wreck
from tests.fakes.trainer import leave_checkpoint, report_progress, train


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


def test_a_log_that_cannot_be_read_or_kept_delays_no_job(running: tuple[ControlPlane, str]) -> None:
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


def current_spec(plane: ControlPlane, job: str) -> JobSpec:
    """The spec of the present attempt."""
    key = layout.run_spec(job, plane.job(job).attempt)
    return read_document(plane.store, key, JobSpec)


def start(plane: ControlPlane) -> str:
    """A job whose first attempt runs."""
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    return job


def lose(plane: ControlPlane, job: str) -> None:
    """Lose the current attempt; the next one runs, if any is permitted."""
    plane.launcher.end(f"{job}-a{plane.job(job).attempt}", LaunchState.FAILED, "killed")
    plane.tick(5)


def _fail(plane: ControlPlane, job: str) -> None:
    attempt = plane.job(job).attempt
    failure = Failure(reason="training_failed", message="diverged")
    plane.store.put(layout.run_failure(job, attempt), failure.model_dump_json().encode())
    mark_ended(plane.store, job, attempt)
    plane.tick_to(job, JobState.FAILED)


def _damage(plane: ControlPlane, job: str) -> None:
    heads = train(plane.store, job, 1).files[layout.HEADS]
    plane.store.put(layout.blob(heads.sha256), b"other bytes")
    plane.tick_to(job, JobState.FAILED)


def _retry(plane: ControlPlane, job: str) -> None:
    assert plane.client.post(f"/v1/jobs/{job}/retry").status_code == 202
    plane.tick_to(job, JobState.RUNNING)


def _change_parent(plane: ControlPlane, _: str) -> None:
    with plane.context.database.write() as connection:
        connection.exec_driver_sql("UPDATE models SET head = 5")


STEPS: dict[str, Callable[[ControlPlane, str], None]] = {
    "lose": lose,
    "fail": _fail,
    "damage": _damage,
    "retry": _retry,
    "parent": _change_parent,
    "spec missing": lambda plane, job: plane.store.delete(layout.run_spec(job, 1)),
    "spec garbled": lambda plane, job: plane.store.put(layout.run_spec(job, 1), b"{"),
}


@pytest.mark.parametrize(
    ("steps", "attempt", "resumes"),
    [
        # A number is a checkpoint after so many updates; `resumes`: the one to resume from, counted from 0.
        ((), 1, None),
        (("lose",), 2, None),
        # The newest in the order of numbers, not of their digits.
        ((900, 1000, "lose"), 2, 1),
        # An attempt that saved nothing does not hide the one before.
        ((500, "lose", "lose"), 3, 0),
        # One that could not use a checkpoint has started over, and what it saved is sound.
        ((500, "lose", 100, "lose"), 3, 1),
        ((500, "lose", "lose", "lose", "retry"), 4, 0),
        # The checkpoint from which a failed attempt resumed is not used either: it would fail again.
        ((500, "lose", 900, "fail", "retry"), 3, None),
        ((500, "damage", "retry"), 2, None),
        # Its version would be a child of one that it has never seen.
        ((500, "parent", "lose"), 2, None),
        ((500, "spec missing", "lose"), 2, None),
        ((500, "spec garbled", "lose"), 2, None),
    ],
    ids=str,
)
def test_an_attempt_resumes_from_the_last_sound_checkpoint(
    plane: ControlPlane, steps: tuple[int | str, ...], attempt: int, resumes: int | None
) -> None:
    job, saved = start(plane), []
    for step in steps:
        if isinstance(step, int):
            saved.append(leave_checkpoint(plane.store, job, plane.job(job).attempt, step))
        else:
            STEPS[step](plane, job)
    spec = current_spec(plane, job)
    assert (spec.attempt, spec.resume_from) == (
        attempt,
        None if resumes is None else saved[resumes],
    )


def test_a_repeated_submission_has_the_same_spec(plane: ControlPlane) -> None:
    """The first submission may have arrived, and a zombie keeps saving."""
    job = start(plane)
    saved = leave_checkpoint(plane.store, job, 1, 500)
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "killed")
    submitting = plane.tick_to(job, JobState.SUBMITTING)
    for _ in range(2):
        attempts.submit(plane.context, submitting, plane.model())
        assert current_spec(plane, job).resume_from == saved
        leave_checkpoint(plane.store, job, 1, 600)


def test_an_unavailable_store_is_waited_for(plane: ControlPlane) -> None:
    """Waiting is better than training from the start."""
    job = start(plane)
    saved = leave_checkpoint(plane.store, job, 1, 500)
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "killed")
    plane.tick_to(job, JobState.SUBMITTING)
    plane.store.broken = "checkpoints/"
    plane.tick(3)
    assert plane.job(job).state == JobState.SUBMITTING
    plane.store.broken = None
    plane.tick_to(job, JobState.RUNNING)
    assert current_spec(plane, job).resume_from == saved


def test_a_cluster_that_never_starts_it_fails_the_job(plane: ControlPlane) -> None:
    plane.launcher.starts_at_once = False
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.clock.advance(3601)
    plane.tick(2)
    assert plane.job(job).reason == FailureReason.QUEUE_DEADLINE
    assert plane.launcher.stopped == [f"{job}-a1"]


def test_waiting_in_the_cluster_counts_against_no_other_time(plane: ControlPlane) -> None:
    plane.launcher.starts_at_once = False
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.clock.advance(3500)
    plane.tick()
    plane.launcher.end(f"{job}-a1", LaunchState.RUNNING)
    plane.tick()
    plane.clock.advance(500)
    plane.tick(2)
    assert plane.job(job).state == JobState.RUNNING


def test_a_queue_of_the_cluster_may_take_days_and_says_so(plane: ControlPlane) -> None:
    plane.launcher.starts_at_once = False
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    attempt = f"{job}-a1"
    plane.launcher.end(attempt, LaunchState.QUEUED, "waiting in queue training")
    for _ in range(3):
        plane.tick(2)
        plane.clock.advance(86_400)
    shown = plane.client.get(f"/v1/jobs/{job}").json()
    assert (shown["state"], shown["message"]) == ("running", "waiting in queue training")
    # From its admission on, its pods have the usual time to start.
    plane.launcher.end(attempt, LaunchState.PENDING)
    plane.tick(2)
    plane.clock.advance(3500)
    plane.tick(2)
    assert (plane.job(job).state, plane.job(job).message) == (JobState.RUNNING, STARTING)
    plane.clock.advance(200)
    plane.tick(2)
    assert plane.job(job).reason == FailureReason.QUEUE_DEADLINE


def test_evictions_lose_no_attempt(plane: ControlPlane) -> None:
    job = start(plane)
    for updates in range(2):
        report_progress(plane.store, job, 1, "training", updates)
        plane.tick(2)
        plane.launcher.end(f"{job}-a1", LaunchState.QUEUED, "waiting in queue training")
        plane.tick()
        plane.clock.advance(7200)
        for state in (LaunchState.PENDING, LaunchState.RUNNING):
            plane.launcher.end(f"{job}-a1", state)
            plane.tick(2)
    assert plane.launcher.stopped == []
    assert plane.run_to_end(job).attempt == 1


def test_an_evicted_attempt_that_is_silent_once_it_runs_again_is_lost(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    attempt = f"{job}-a1"
    for state in (LaunchState.QUEUED, LaunchState.RUNNING):
        plane.launcher.end(attempt, state)
        plane.tick(2)
    report_progress(plane.store, job, 1, "training", 7)
    plane.tick(2)
    plane.clock.advance(301)
    plane.tick(2)
    assert plane.launcher.stopped[0] == attempt
    assert plane.job(job).state == JobState.PREPARED


def test_a_silent_attempt_is_stopped_and_repeated(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    report_progress(plane.store, job, 1, "training")
    plane.tick()
    plane.clock.advance(301)
    plane.tick(2)
    found = plane.job(job)
    assert plane.launcher.stopped[0] == f"{job}-a1"
    assert found.state == JobState.PREPARED
    assert "no heartbeat for 300 s" in (found.message or "")
    plane.run_to_end(job)
    assert plane.job(job).attempt == 2


def test_each_sign_of_life_restarts_the_silence_timeout(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    for beat in range(5):
        report_progress(plane.store, job, 1, "training", beat)
        plane.tick()
        plane.clock.advance(290)
        plane.tick()
    assert plane.job(job).state == JobState.RUNNING


def test_a_lost_attempt_is_stopped_and_given_time_to_end(slow_plane: ControlPlane) -> None:
    plane = slow_plane
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "node lost")
    plane.tick()
    assert plane.launcher.stopped == [f"{job}-a1"]
    plane.tick(3)
    assert plane.job(job).state == JobState.RUNNING
    plane.tick(3)
    assert plane.job(job).state != JobState.RUNNING


def test_a_candidate_that_comes_after_a_false_failure_is_adopted(slow_plane: ControlPlane) -> None:
    plane = slow_plane
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "the head was restarted")
    plane.tick()
    train(plane.store, job, 1)
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    assert plane.job(job).attempt == 1


def test_an_attempt_that_was_not_over_continues(slow_plane: ControlPlane) -> None:
    plane = slow_plane
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.launcher.stops_at_once = False
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "the head was restarted")
    plane.tick(2)
    plane.launcher.end(f"{job}-a1", LaunchState.RUNNING)
    plane.tick(2)
    assert plane.job(job).ended_at is None
    plane.tick(10)
    assert plane.job(job).state == JobState.RUNNING


def test_an_attempt_that_a_cluster_never_releases_is_lost(plane: ControlPlane) -> None:
    """The cluster always reports it as running; it shows no progress, and no stop ends it."""
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    report_progress(plane.store, job, 1, "training")
    plane.tick()
    plane.launcher.stops_at_once = False
    plane.clock.advance(301)
    plane.tick(2)
    assert plane.job(job).state == JobState.RUNNING
    plane.clock.advance(300)
    plane.tick()
    assert plane.job(job).state == JobState.PREPARED
    assert plane.run_to_end(job).attempt == 2


def test_one_that_it_never_releases_can_be_cancelled(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    report_progress(plane.store, job, 1, "training")
    plane.tick()
    plane.launcher.stops_at_once = False
    assert plane.client.post(f"/v1/jobs/{job}/cancel").status_code == 202
    plane.tick(3)
    assert plane.job(job).state == JobState.RUNNING
    plane.clock.advance(601)
    plane.tick()
    assert plane.job(job).state == JobState.CANCELLED


def test_attempts_that_ran_during_an_outage_are_not_stopped(plane: ControlPlane) -> None:
    """The service was away for longer than any attempt may wait for its start."""
    plane.launcher.starts_at_once = False
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.clock.advance(10_000)
    plane.launcher.end(f"{job}-a1", LaunchState.RUNNING)
    plane.tick(3)
    assert plane.job(job).state == JobState.RUNNING
    assert plane.launcher.stopped == []
