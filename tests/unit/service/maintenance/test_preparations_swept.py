"""Objects of preparations are removed from object storage when nothing needs them any longer."""

from typing import Any

from cmcl.contract.api.jobs import JobState
from cmcl.storage import layout
from service.maintenance.gc import sweep_datasets, sweep_encoded, sweep_jobs, sweep_preparations
from tests.fakes.control_plane import ControlPlane
from tests.fakes.preparer import (
    is_asked,
    prepare_all,
    report_progress,
    requests_in,
)

DAY = 86_400


def begin(plane: ControlPlane, **changes: Any) -> str:
    """A job whose dataset is being prepared, and asked for."""
    plane.preparer = lambda _: None
    job = plane.post_dataset(**changes)
    plane.tick(3)
    assert is_asked(plane.store, str(plane.job(job).dataset))
    return job


def is_there(plane: ControlPlane, key: str) -> bool:
    return any(found == key for found in plane.store.keys(key))


def test_a_request_is_removed_once_its_job_is_no_longer_prepared(plane: ControlPlane) -> None:
    job = begin(plane)
    (request,) = requests_in(plane.store)
    sweep_preparations(plane.context)
    assert is_asked(plane.store, request.dataset)
    prepare_all(plane.store)
    plane.tick_to(job, JobState.PREPARED)
    # Left by a process that died before it removed the request, or wrote it late.
    key = layout.preparation_request(request.dataset)
    plane.store.put(key, request.model_dump_json().encode())
    plane.store.put(layout.preparation_request("ds-000000000000"), b"{}")
    sweep_preparations(plane.context)
    assert requests_in(plane.store) == []


def test_files_of_the_preparation_are_removed_once_the_dataset_is_learned(
    plane: ControlPlane,
) -> None:
    job = begin(plane)
    (request,) = requests_in(plane.store)
    report_progress(plane.store, request, "reading")
    plane.store.put(layout.rejected_rows(request.dataset), b"")
    prepare_all(plane.store)
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    sweep_datasets(plane.context)
    left = {key.rpartition("/")[2] for key in plane.store.keys(f"datasets/{request.dataset}/")}
    assert left == {layout.MANIFEST, "rejected.jsonl"}


def test_a_dry_run_leaves_its_report_in_the_database_alone(plane: ControlPlane) -> None:
    job = begin(plane, dry_run=True)
    prepare_all(plane.store)
    plane.tick_to(job, JobState.REPORTED)
    dataset = plane.job(job).dataset
    plane.clock.advance(8 * DAY)
    sweep_jobs(plane.context)
    sweep_datasets(plane.context)
    assert list(plane.store.keys(f"datasets/{dataset}/")) == []
    assert plane.client.get(f"/v1/jobs/{job}").json()["report"]["rows"] == 16


def test_encoded_items_are_removed_some_time_after_they_were_encoded(plane: ControlPlane) -> None:
    folder = layout.encoded_items("default", "e" * 64)
    now = int(plane.clock().timestamp())
    old, new = (layout.encoded_object(folder, now + seconds, "d" * 64, 5) for seconds in (-DAY, 0))
    for key in (old, new, f"{folder}of-another-form.json"):
        plane.store.put(key, b"items")
    plane.clock.advance(6 * DAY)
    sweep_encoded(plane.context)
    assert list(plane.store.keys(layout.encoded())) == [new]
    plane.clock.advance(1 * DAY)
    sweep_encoded(plane.context)
    assert list(plane.store.keys(layout.encoded())) == []
