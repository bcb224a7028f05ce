"""Garbage collection removes what can no longer be requested, and nothing earlier."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Table, delete, func, select, update

from cmcl.contract.api.jobs import JobState
from cmcl.storage import layout
from cmcl.storage.versions import read_version, read_version_file
from service.database.queries import instances
from service.database.tables import events, orphans, responses, uploads
from service.database.tables import leases as lease_rows
from service.database.tables import versions as version_rows
from service.launchers.port import LaunchState
from service.maintenance.gc import GarbageCollector
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import leave_checkpoint, train
from tests.fakes.uploads import announce, send, stored_keys, upload_whole
from tests.unit.service.uploads.test_sending import parquet

DAY = 24 * 3600.0
SHARE: dict[str, Any] = {"evaluation_share": 0.3}


def keys(plane: ControlPlane, prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in plane.store.keys(prefix)]


def sweep(plane: ControlPlane) -> None:
    """Run a round after the previous lease has expired."""
    with plane.context.database.write() as connection:
        connection.execute(delete(lease_rows))
    GarbageCollector(plane.context).sweep()


def fail(plane: ControlPlane, name: str = "one", **changes: Any) -> str:
    """Create a failed job with a valid dataset."""
    job = plane.post_dataset(name, **changes)
    for attempt in range(1, 4):
        plane.tick_to(job, JobState.RUNNING)
        plane.launcher.end(f"{job}-a{attempt}", LaunchState.FAILED, "killed")
        plane.tick(8)
    assert plane.job(job).state == JobState.FAILED
    return job


def reject(plane: ControlPlane) -> str:
    """Create a job whose candidate was rejected, after another dataset."""
    plane.run_to_end(plane.post_dataset("first"))
    gate = {"max_drift": 0.05}
    assert plane.client.put("/v1/models/scenes/gate", json=gate).status_code == 200
    job = plane.post_dataset("second")
    assert plane.run_to_end(job, drift=0.5).state == JobState.REJECTED
    return job


def learn_with_share(plane: ControlPlane) -> str:
    job = plane.post_dataset("one", **SHARE)
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    return job


def test_training_rows_go_once_they_were_learned(plane: ControlPlane) -> None:
    job = plane.post_dataset("one", **SHARE)
    plane.tick_to(job, JobState.RUNNING)
    folder = f"datasets/{plane.job(job).dataset}/"
    sweep(plane)
    assert keys(plane, f"{folder}training-")
    plane.run_to_end(job)
    sweep(plane)
    kept = [name.partition("-")[0] for name in keys(plane, folder)]
    assert kept == ["evaluation", "manifest.json"]


def test_a_version_is_stored_however_long_that_took(plane: ControlPlane) -> None:
    job = plane.post_dataset("one", **SHARE)
    plane.tick_to(job, JobState.RUNNING)
    train(plane.store, job, 1)
    plane.tick_to(job, JobState.PUBLISHED)
    plane.store.broken = "versions/1/"
    plane.tick(5)
    assert plane.versions()[0].stored_at is None
    plane.clock.advance(30 * DAY)
    sweep(plane)
    plane.store.broken = None
    plane.clock.advance(60)
    plane.tick(5)
    assert read_version(plane.store, "scenes", 1).job == job


def test_checkpoints_stay_while_a_job_may_resume_from_them(plane: ControlPlane) -> None:
    job = plane.post_dataset("one")
    saved = []
    for attempt in range(1, 4):
        plane.tick_to(job, JobState.RUNNING)
        saved.append(leave_checkpoint(plane.store, job, attempt, 10))
        plane.clock.advance(1)
        sweep(plane)
        assert keys(plane, saved[-1])
        plane.launcher.end(f"{job}-a{attempt}", LaunchState.FAILED, "killed")
        plane.tick(8)
    assert plane.job(job).state == JobState.FAILED
    plane.clock.advance(6 * DAY)
    sweep(plane)
    assert all(keys(plane, key) for key in saved)


def test_checkpoints_go_once_the_dataset_is_learned(plane: ControlPlane) -> None:
    """Checkpoints of every attempt, and nothing else: the rest is kept for a week for diagnosis."""
    job = plane.post_dataset("one")
    plane.tick_to(job, JobState.RUNNING)
    leave_checkpoint(plane.store, job, 1, 10)
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "killed")
    plane.tick(3)
    plane.tick_to(job, JobState.RUNNING)
    leave_checkpoint(plane.store, job, 2, 20)
    plane.run_to_end(job)
    folder = f"runs/{job}/"
    kept = [key for key in keys(plane, folder) if "checkpoints" not in key]
    plane.store.broken = f"{folder}a1/checkpoints"
    sweep(plane)
    assert [key.partition("/")[0] for key in keys(plane, folder) if "checkpoints" in key] == ["a1"]
    plane.store.broken = None
    sweep(plane)
    assert keys(plane, folder) == kept


def test_attempts_of_a_published_job_go_after_a_week(plane: ControlPlane) -> None:
    job = learn_with_share(plane)
    plane.clock.advance(6 * DAY)
    sweep(plane)
    assert keys(plane, f"runs/{job}/")
    plane.clock.advance(1 * DAY)
    sweep(plane)
    assert keys(plane, f"runs/{job}/") == []
    assert read_version(plane.store, "scenes", 1).job == job


def test_a_swept_dataset_can_be_posted_again(plane: ControlPlane) -> None:
    body: dict[str, Any] = plane.dataset_body("one", **SHARE)
    job = fail(plane, **body)
    plane.clock.advance(7 * DAY + 60)
    sweep(plane)
    assert plane.job(job).swept_at is not None
    again = plane.client.post("/v1/datasets", json=body)
    assert again.status_code == 202
    assert plane.run_to_end(again.json()["job"]["id"]).state == JobState.PUBLISHED


@pytest.mark.parametrize("end", [fail, reject])
def test_a_job_without_a_version_can_be_retried_for_a_week(
    plane: ControlPlane, end: Callable[[ControlPlane], str]
) -> None:
    job = end(plane)
    plane.clock.advance(6 * DAY)
    sweep(plane)
    assert keys(plane, f"runs/{job}/")
    assert keys(plane, f"datasets/{plane.job(job).dataset}/")
    assert plane.client.put("/v1/models/scenes/gate", json={}).status_code == 200
    assert plane.client.post(f"/v1/jobs/{job}/retry").status_code == 202
    assert plane.run_to_end(job).state == JobState.PUBLISHED


@pytest.mark.parametrize("end", [fail, reject])
def test_a_job_cannot_be_retried_without_its_files(
    plane: ControlPlane, end: Callable[[ControlPlane], str]
) -> None:
    job = end(plane)
    plane.clock.advance(7 * DAY + 60)
    sweep(plane)
    assert keys(plane, f"runs/{job}/") == keys(plane, f"datasets/{plane.job(job).dataset}/") == []
    refusal = plane.client.post(f"/v1/jobs/{job}/retry")
    assert refusal.status_code == 409
    assert "post the dataset again" in refusal.json()["detail"]


def test_a_deleted_dataset_goes_at_once(plane: ControlPlane) -> None:
    job = fail(plane)
    dataset = plane.job(job).dataset
    assert plane.client.request("DELETE", f"/v1/datasets/{dataset}").status_code == 204
    sweep(plane)
    assert keys(plane, f"datasets/{dataset}/") == []


def test_uploads_go_once_they_were_learned(plane: ControlPlane) -> None:
    unused, used = (upload_whole(plane, parquet(name)) for name in ("unused", "used"))
    job = plane.post_dataset("one", shards=[{"uri": used}])
    open_one = announce(plane, 3)
    # Of a request that ended before the upload was complete.
    plane.store.put(f"uploads/{open_one}/0123456789ab", b"abc")
    plane.clock.advance(DAY + 60)
    sweep(plane)
    gone = [uri.removeprefix("upload:") for uri in (unused, used)] + [open_one]
    assert [bool(stored_keys(plane, upload)) for upload in gone] == [False, True, False]
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    sweep(plane)
    assert stored_keys(plane, gone[1]) == []
    with plane.context.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(uploads)) == 0
    # The row that named it is history, and still shows what was posted.
    assert plane.client.get(f"/v1/datasets/{plane.job(job).dataset}").json()["shards"]


def test_an_upload_that_a_failed_job_needs_stays(plane: ControlPlane) -> None:
    uri = upload_whole(plane, parquet())
    job = fail(plane, shards=[{"uri": uri}])
    plane.clock.advance(6 * DAY)
    sweep(plane)
    assert stored_keys(plane, uri.removeprefix("upload:"))
    assert plane.client.post(f"/v1/jobs/{job}/retry").status_code == 202
    assert plane.run_to_end(job).state == JobState.PUBLISHED


def test_one_that_was_given_up_goes_at_once(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    send(plane, upload, b"abc")
    plane.client.request("DELETE", f"/v1/uploads/{upload}")
    sweep(plane)
    assert stored_keys(plane, upload) == []


def test_a_deleted_model_goes_with_its_datasets(plane: ControlPlane) -> None:
    learn_with_share(plane)
    fail(plane, "two")
    assert plane.client.request("DELETE", "/v1/models/scenes").status_code == 204
    sweep(plane)
    assert keys(plane, "models/scenes/")
    plane.clock.advance(3700)
    sweep(plane)
    assert keys(plane, "models/") == keys(plane, "datasets/") == []


def test_what_a_branch_has_learned_outlives_its_source(plane: ControlPlane) -> None:
    job = learn_with_share(plane)
    dataset = plane.job(job).dataset
    branch = {"name": "branch", "version": 1}
    assert plane.client.post("/v1/models/scenes/branch", json=branch).status_code == 201
    plane.client.request("DELETE", "/v1/models/scenes")
    plane.clock.advance(2 * 3600)
    sweep(plane)
    plane.tick(4)
    sweep(plane)
    # The branch names the files of its source.
    manifest = read_version(plane.store, "branch", 1)
    assert manifest.dataset == dataset
    assert read_version_file(plane.store, manifest, layout.HEADS)
    assert len(keys(plane, f"datasets/{dataset}/")) == 2
    plane.client.request("DELETE", "/v1/models/branch")
    plane.clock.advance(2 * 3600)
    sweep(plane)
    assert keys(plane, "models/") == keys(plane, "datasets/") == []


def test_old_responses_and_events_are_removed(plane: ControlPlane) -> None:
    headers = {"Idempotency-Key": "key-1"}
    body = plane.dataset_body("one")
    plane.client.post("/v1/datasets", json=body, headers=headers)
    plane.clock.advance(DAY + 60)
    sweep(plane)
    assert _count(plane, responses) == 0
    assert _count(plane, events) > 0
    plane.clock.advance(90 * DAY)
    sweep(plane)
    assert _count(plane, events) == 0


def test_orphaned_folders_have_a_grace_period_of_a_day(plane: ControlPlane) -> None:
    job = learn_with_share(plane)
    strays = ["datasets/ds-000000000000/", "runs/job-000000000000/", "uploads/up-000000000000/"]
    foreign = ["datasets/notes/", "runs/pf-x/", "models/unknown/", "elsewhere/ds-000000000000/"]
    for folder in (*strays, *foreign):
        plane.store.put(f"{folder}a1/x", b"x")
    sweep(plane)
    plane.clock.advance(DAY - 60)
    sweep(plane)
    assert all(keys(plane, folder) for folder in strays)
    plane.clock.advance(60)
    sweep(plane)
    assert [keys(plane, folder) for folder in strays] == [[], [], []]
    assert all(keys(plane, folder) for folder in foreign)
    assert keys(plane, f"runs/{job}/")
    sweep(plane)
    assert _count(plane, orphans) == 0


def test_what_was_written_after_it_was_given_up_goes(plane: ControlPlane) -> None:
    job = learn_with_share(plane)
    plane.clock.advance(8 * DAY)
    sweep(plane)
    plane.store.put(f"runs/{job}/a1/progress.json", b"a zombie")
    sweep(plane)
    assert keys(plane, f"runs/{job}/") == []


def test_a_store_that_fails_delays_nothing_else(plane: ControlPlane) -> None:
    one, two = (plane.post_dataset(name) for name in ("one", "two"))
    for job in (one, two):
        plane.run_to_end(job)
    plane.clock.advance(8 * DAY)
    plane.store.broken = f"runs/{one}"
    sweep(plane)
    assert keys(plane, f"runs/{two}/") == []
    plane.store.broken = None
    assert keys(plane, f"runs/{one}/")
    sweep(plane)
    assert keys(plane, f"runs/{one}/") == []


def test_one_service_at_a_time_sweeps(plane: ControlPlane) -> None:
    job = learn_with_share(plane)
    plane.clock.advance(8 * DAY)
    now = plane.clock()
    with plane.context.database.write() as connection:
        instances.claim_lease(connection, "gc", "another one", now, now + timedelta(minutes=5))
    plane.clock.advance(299)
    GarbageCollector(plane.context).sweep()
    assert keys(plane, f"runs/{job}/")
    plane.clock.advance(1)
    GarbageCollector(plane.context).sweep()
    assert keys(plane, f"runs/{job}/") == []


def test_a_task_that_fails_delays_no_other(plane: ControlPlane) -> None:
    uri = upload_whole(plane, parquet())
    job = learn_with_share(plane)
    plane.clock.advance(8 * DAY)
    with plane.context.database.write() as connection:
        # It is found when lineages are searched for datasets.
        connection.execute(update(version_rows).values(manifest={}))
    sweep(plane)
    assert keys(plane, f"datasets/{plane.job(job).dataset}/")
    assert keys(plane, f"runs/{job}/") == []
    assert stored_keys(plane, uri.removeprefix("upload:")) == []


def _count(plane: ControlPlane, table: Table) -> int:
    with plane.context.database.read() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()
