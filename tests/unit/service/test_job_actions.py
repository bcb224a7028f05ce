"""Cancel and retry, in every state."""

import pytest

from cmcl.contract.api.jobs import JobState
from service.launchers.port import LaunchState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train


def _bring_to(plane: ControlPlane, job: str, state: JobState) -> None:
    if state in (JobState.GATING, JobState.PUBLISHED):
        plane.tick_to(job, JobState.RUNNING)
        train(plane.store, job, 1)
    if state == JobState.FAILED:
        _lose_all_attempts(plane, job)
    plane.tick_to(job, state)


def _lose_all_attempts(plane: ControlPlane, job: str) -> None:
    for _ in range(3):
        attempt = plane.tick_to(job, JobState.RUNNING).attempt
        plane.launcher.end(f"{job}-a{attempt}", LaunchState.FAILED)
        plane.tick()


@pytest.mark.parametrize(
    "state",
    [JobState.QUEUED, JobState.PREPARING, JobState.PREPARED, JobState.SUBMITTING, JobState.RUNNING],
)
def test_an_unfinished_job_can_be_cancelled(plane: ControlPlane, state: JobState) -> None:
    job = plane.post_dataset()
    _bring_to(plane, job, state)
    assert plane.client.post(f"/v1/jobs/{job}/cancel").status_code == 202
    plane.tick(2)
    assert plane.job(job).state == JobState.CANCELLED
    assert plane.launcher.running() == []
    assert plane.versions() == []


@pytest.mark.parametrize("state", [JobState.GATING, JobState.PUBLISHED, JobState.FAILED])
def test_it_can_be_too_late_to_cancel(plane: ControlPlane, state: JobState) -> None:
    job = plane.post_dataset()
    _bring_to(plane, job, state)
    response = plane.client.post(f"/v1/jobs/{job}/cancel")
    assert response.status_code == 409
    assert "too late" in response.json()["detail"]


def test_cancelling_twice_is_cancelling_once(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    _bring_to(plane, job, JobState.RUNNING)
    answers = [plane.client.post(f"/v1/jobs/{job}/cancel") for _ in range(2)]
    plane.tick(2)
    answers.append(plane.client.post(f"/v1/jobs/{job}/cancel"))
    assert [answer.status_code for answer in answers] == [202, 202, 202]
    assert answers[2].json()["state"] == "cancelled"


def test_a_cancelled_dataset_can_be_posted_again(plane: ControlPlane) -> None:
    body = plane.dataset_body("one")
    first = plane.client.post("/v1/datasets", json=body).json()["job"]["id"]
    plane.client.post(f"/v1/jobs/{first}/cancel")
    second = plane.client.post("/v1/datasets", json=body)
    assert second.status_code == 202
    assert second.json()["job"]["id"] != first


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING, JobState.PUBLISHED])
def test_only_a_failed_job_can_be_retried(plane: ControlPlane, state: JobState) -> None:
    job = plane.post_dataset()
    _bring_to(plane, job, state)
    response = plane.client.post(f"/v1/jobs/{job}/retry")
    assert response.status_code == 409
    assert state in response.json()["detail"]


def test_retry_gives_new_attempts_and_new_numbers(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    _bring_to(plane, job, JobState.FAILED)
    response = plane.client.post(f"/v1/jobs/{job}/retry")
    assert response.status_code == 202
    assert (response.json()["state"], response.json()["reason"]) == ("queued", None)
    plane.tick_to(job, JobState.RUNNING)
    plane.launcher.end(f"{job}-a4", LaunchState.FAILED)
    plane.tick()
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    assert plane.versions()[0].attempt == 5


def test_retry_yields_to_the_same_dataset_posted_again(plane: ControlPlane) -> None:
    body = plane.dataset_body("one")
    job = plane.client.post("/v1/datasets", json=body).json()["job"]["id"]
    _bring_to(plane, job, JobState.FAILED)
    again = plane.client.post("/v1/datasets", json=body).json()["dataset"]["id"]
    response = plane.client.post(f"/v1/jobs/{job}/retry")
    assert response.status_code == 409
    assert again in response.json()["detail"]
