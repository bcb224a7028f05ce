"""Actions based on an outdated revision: 412, and nothing is changed."""

import httpx

from cmcl.contract.api.jobs import JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train


def _act(plane: ControlPlane, path: str, seen: int, method: str = "POST") -> httpx.Response:
    return plane.client.request(method, path, headers={"If-Match": f'"{seen}"'})


def _held(plane: ControlPlane) -> str:
    plane.client.put("/v1/models/scenes/gate", json={"manual_approval": True})
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    train(plane.store, job, 1)
    plane.tick_to(job, JobState.HELD)
    return job


def _revision(plane: ControlPlane, job: str) -> int:
    revision: int = plane.client.get(f"/v1/jobs/{job}").json()["revision"]
    return revision


def test_a_decision_is_about_the_job_that_was_seen(plane: ControlPlane) -> None:
    job = _held(plane)
    seen = _revision(plane, job)
    assert _act(plane, f"/v1/jobs/{job}/reject", seen).status_code == 202
    answer = _act(plane, f"/v1/jobs/{job}/approve", seen)
    assert answer.status_code == 412
    assert f"job {job} is rejected and has revision {seen + 1}, not {seen}" in answer.text
    assert plane.job(job).state == JobState.REJECTED
    assert _act(plane, f"/v1/jobs/{job}/retry", seen).status_code == 412
    assert _act(plane, f"/v1/jobs/{job}/retry", seen + 1).status_code == 202


def test_progress_does_not_change_what_was_seen(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    seen = _revision(plane, job)
    train(plane.store, job, 1, write=False)
    plane.tick(2)
    assert _act(plane, f"/v1/jobs/{job}/cancel", seen).status_code == 202
    assert _revision(plane, job) == seen + 1


def test_cancelling_and_retrying_name_the_revision(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    for action in ("cancel", "retry"):
        assert _act(plane, f"/v1/jobs/{job}/{action}", 99).status_code == 412
    assert plane.job(job).state == JobState.QUEUED


def test_a_dataset_is_sealed_with_the_files_that_were_seen(plane: ControlPlane) -> None:
    body = plane.dataset_body("one", sealed=False)
    made = plane.client.post("/v1/datasets", json=body).json()["dataset"]
    assert made["files"] == 1
    added = {"evaluation_shards": [plane.shard("late")]}
    plane.client.post(f"/v1/datasets/{made['id']}/shards", json=added)
    assert _act(plane, f"/v1/datasets/{made['id']}/seal", 1).status_code == 412
    assert plane.client.get(f"/v1/datasets/{made['id']}").json()["sealed_at"] is None
    assert _act(plane, f"/v1/datasets/{made['id']}/seal", 2).status_code == 202


def test_a_version_is_retired_beside_the_live_one_that_was_seen(plane: ControlPlane) -> None:
    for name in ("one", "two", "three"):
        plane.run_to_end(plane.post_dataset(name))
    path = "/v1/models/scenes/versions/1"
    assert _act(plane, path, 2, "DELETE").status_code == 412
    assert plane.versions()[0].retired_at is None
    assert _act(plane, path, 3, "DELETE").status_code == 204
