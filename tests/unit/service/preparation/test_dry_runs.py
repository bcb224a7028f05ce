"""A dry run ends with a report, makes no version, and delays no other job."""

from typing import Any

from cmcl.contract.api.jobs import FailureReason, JobState
from tests.fakes.preparer import fail, is_asked, prepare, prepare_all
from tests.unit.service.preparation.conftest import Unattended


def dry_run(plane: Unattended, name: str = "tried", **changes: Any) -> str:
    return plane.post_dataset(name, dry_run=True, **changes)


def test_a_dry_run_ends_with_its_report(plane: Unattended) -> None:
    job = dry_run(plane)
    request = plane.request_of(job)
    assert request.report_version == 0
    prepare(plane.store, request)
    plane.tick_to(job, JobState.REPORTED)
    for path in (f"jobs/{job}", f"datasets/{request.dataset}"):
        view = plane.client.get(f"/v1/{path}").json()
        assert (view["dry_run"], view["report"]["rows"]) == (True, 16)
        assert view["report"]["advice"] == ["text: nothing is odd"]
    assert not is_asked(plane.store, request.dataset)
    plane.tick(5)
    assert plane.launcher.commands == {}
    assert plane.model().head == 0


def test_a_dry_run_is_compared_with_the_newest_version(plane: Unattended) -> None:
    plane.preparer = prepare_all
    plane.run_to_end(plane.post_dataset())
    plane.preparer = lambda _: None
    assert plane.request_of(dry_run(plane)).report_version == 1


def test_a_dry_run_waits_for_no_training_and_delays_none(plane: Unattended) -> None:
    tried, learned = dry_run(plane), plane.post_dataset("learned")
    prepare(plane.store, plane.request_of(learned))
    plane.tick_to(learned, JobState.RUNNING)
    later = dry_run(plane, "later")
    prepare(plane.store, plane.request_of(later))
    plane.tick_to(later, JobState.REPORTED)
    assert plane.job(tried).state == JobState.PREPARING
    assert plane.run_to_end(learned).state == JobState.PUBLISHED


def test_the_dataset_itself_and_the_same_dry_run_can_be_posted_afterwards(
    plane: Unattended,
) -> None:
    body = plane.dataset_body("one", dry_run=True)
    first = plane.client.post("/v1/datasets", json=body).json()["job"]["id"]
    again = plane.client.post("/v1/datasets", json=body)
    assert (again.status_code, again.json()["job"]["id"]) == (200, first)
    real = plane.client.post("/v1/datasets", json={**body, "dry_run": False})
    assert real.status_code == 202
    prepare(plane.store, plane.request_of(first))
    plane.tick_to(first, JobState.REPORTED)
    repeated = plane.client.post("/v1/datasets", json=body)
    assert repeated.status_code == 202
    assert repeated.json()["job"]["id"] != first


def test_a_dry_run_of_unusable_files_fails_with_the_reason(plane: Unattended) -> None:
    job = dry_run(plane)
    fail(plane.store, plane.request_of(job), "invalid_dataset", "no image")
    assert plane.tick_to(job, JobState.FAILED).reason == FailureReason.INVALID_DATASET


def test_a_manifest_is_no_result_of_a_dry_run(plane: Unattended) -> None:
    job = dry_run(plane)
    request = plane.request_of(job).model_copy(update={"report_version": None})
    prepare(plane.store, request)
    plane.tick(4)
    assert plane.job(job).state == JobState.PREPARING


def test_a_reported_job_can_be_neither_retried_nor_cancelled(plane: Unattended) -> None:
    job = dry_run(plane)
    prepare(plane.store, plane.request_of(job))
    plane.tick_to(job, JobState.REPORTED)
    for action in ("retry", "cancel"):
        assert plane.client.post(f"/v1/jobs/{job}/{action}").status_code == 409
    path = f"/v1/datasets/{plane.job(job).dataset}"
    assert plane.client.request("DELETE", path).status_code == 204
