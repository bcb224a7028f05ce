"""Times that an attempt may take, by the control plane's own clock."""

from cmcl.contract.api.jobs import FailureReason, JobState
from service.jobs.attempts import STARTING
from service.launchers.port import LaunchState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import report_progress, train


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
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    attempt = f"{job}-a1"
    for _ in range(5):
        report_progress(plane.store, job, 1, "training")
        plane.tick(2)
        plane.launcher.end(attempt, LaunchState.QUEUED, "waiting in queue training")
        plane.tick()
        plane.clock.advance(7200)
        plane.tick(2)
        assert plane.job(job).message == "waiting in queue training"
        plane.launcher.end(attempt, LaunchState.PENDING)
        plane.tick()
        plane.launcher.end(attempt, LaunchState.RUNNING)
        plane.tick()
        assert (plane.job(job).message, plane.job(job).attempt) == (None, 1)
        plane.clock.advance(500)
        plane.tick(2)
    assert plane.launcher.stopped == []
    assert plane.run_to_end(job).version == 1
    assert plane.job(job).attempt == 1


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


def test_a_candidate_that_comes_after_a_false_failure_is_adopted(
    slow_plane: ControlPlane,
) -> None:
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
