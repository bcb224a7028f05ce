"""Another attempt resumes from the newest checkpoint of the same job spec."""

import pytest

from cmcl.contract.api.jobs import JobState
from cmcl.contract.job import Failure, JobSpec
from cmcl.storage import layout
from cmcl.storage.running import mark_ended
from service.jobs import attempts
from service.launchers.port import LaunchState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import leave_checkpoint, train


def current_spec(plane: ControlPlane, job: str) -> JobSpec:
    """The spec of the present attempt."""
    key = layout.run_spec(job, plane.job(job).attempt)
    return JobSpec.model_validate_json(plane.store.read(key))


def start(plane: ControlPlane) -> str:
    """A job whose first attempt runs."""
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    return job


def lose(plane: ControlPlane, job: str) -> None:
    """Lose the current attempt; the next one runs, if any is permitted."""
    plane.launcher.end(f"{job}-a{plane.job(job).attempt}", LaunchState.FAILED, "killed")
    plane.tick(5)


def retry(plane: ControlPlane, job: str) -> None:
    """Retry as a user; the next attempt runs."""
    assert plane.client.post(f"/v1/jobs/{job}/retry").status_code == 202
    plane.tick_to(job, JobState.RUNNING)


def test_the_first_attempt_begins_at_the_beginning(plane: ControlPlane) -> None:
    assert current_spec(plane, start(plane)).resume_from is None


def test_the_next_attempt_resumes_from_the_newest_checkpoint(plane: ControlPlane) -> None:
    job = start(plane)
    # In the order of numbers, not of their digits.
    _, newest = (leave_checkpoint(plane.store, job, 1, updates) for updates in (900, 1000))
    lose(plane, job)
    again = current_spec(plane, job)
    assert (again.attempt, again.resume_from) == (2, newest)
    assert plane.run_to_end(job).state == JobState.PUBLISHED


def test_without_a_checkpoint_it_starts_over(plane: ControlPlane) -> None:
    job = start(plane)
    lose(plane, job)
    assert (current_spec(plane, job).attempt, current_spec(plane, job).resume_from) == (2, None)


def test_an_attempt_that_saved_nothing_does_not_hide_the_one_before(plane: ControlPlane) -> None:
    job = start(plane)
    saved = leave_checkpoint(plane.store, job, 1, 500)
    lose(plane, job)
    lose(plane, job)
    assert (current_spec(plane, job).attempt, current_spec(plane, job).resume_from) == (3, saved)


def test_the_latest_attempt_goes_before_more_updates(plane: ControlPlane) -> None:
    """An attempt that could not use a checkpoint has started over, and what it saved is sound."""
    job = start(plane)
    leave_checkpoint(plane.store, job, 1, 500)
    lose(plane, job)
    saved = leave_checkpoint(plane.store, job, 2, 100)
    lose(plane, job)
    assert current_spec(plane, job).resume_from == saved


def test_a_retry_resumes_where_the_lost_attempts_were(plane: ControlPlane) -> None:
    job = start(plane)
    saved = leave_checkpoint(plane.store, job, 1, 500)
    for _ in range(3):
        lose(plane, job)
    assert plane.job(job).state == JobState.FAILED
    retry(plane, job)
    assert (current_spec(plane, job).attempt, current_spec(plane, job).resume_from) == (4, saved)


def test_what_led_to_a_failure_is_not_resumed_from(plane: ControlPlane) -> None:
    """The checkpoint from which that attempt resumed is not used either: it would fail again."""
    job = start(plane)
    leave_checkpoint(plane.store, job, 1, 500)
    lose(plane, job)
    leave_checkpoint(plane.store, job, 2, 900)
    failure = Failure(reason="training_failed", message="diverged")
    plane.store.put(layout.run_failure(job, 2), failure.model_dump_json().encode())
    mark_ended(plane.store, job, 2)
    plane.tick_to(job, JobState.FAILED)
    retry(plane, job)
    assert (current_spec(plane, job).attempt, current_spec(plane, job).resume_from) == (3, None)


def test_what_led_to_a_damaged_candidate_is_not_resumed_from(plane: ControlPlane) -> None:
    job = start(plane)
    leave_checkpoint(plane.store, job, 1, 500)
    heads = train(plane.store, job, 1).files[layout.HEADS]
    plane.store.put(layout.blob(heads.sha256), b"other bytes")
    plane.tick_to(job, JobState.FAILED)
    retry(plane, job)
    assert current_spec(plane, job).resume_from is None


def test_an_attempt_on_another_parent_starts_over(plane: ControlPlane) -> None:
    """Its version would be a child of one that it has never seen."""
    job = start(plane)
    leave_checkpoint(plane.store, job, 1, 500)
    with plane.context.database.write() as connection:
        connection.exec_driver_sql("UPDATE models SET head = 5")
    lose(plane, job)
    assert (current_spec(plane, job).parent, current_spec(plane, job).resume_from) == (5, None)


@pytest.mark.parametrize("written", [None, b"{"], ids=["missing", "not to be read"])
def test_checkpoints_whose_question_is_unknown_are_not_used(
    plane: ControlPlane, written: bytes | None
) -> None:
    job = start(plane)
    leave_checkpoint(plane.store, job, 1, 500)
    plane.store.delete(layout.run_spec(job, 1))
    if written is not None:
        plane.store.put(layout.run_spec(job, 1), written)
    lose(plane, job)
    assert current_spec(plane, job).resume_from is None


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
