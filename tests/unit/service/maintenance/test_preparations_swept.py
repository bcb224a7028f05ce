"""Objects of preparations are removed from object storage when nothing needs them any longer."""

from typing import Any

import pytest

from cmcl.contract.dataset import Shard
from service.maintenance.gc import sweep_jobs, sweep_learned_datasets, sweep_preparations
from service.maintenance.gc_store import sweep_encoded
from service.states import JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.preparer import (
    is_asked,
    manifest_of,
    prepare_all,
    report_progress,
    requests_in,
    write_manifest,
)
from workers.storage import layout

DAY = 86_400
OWNER, ENCODERS, UNIT = "default", "e" * 64, "u" * 64
KEY = layout.encoded_shard(OWNER, ENCODERS, UNIT, "training", "0" * 64)
RECORD = layout.encoded_unit(OWNER, ENCODERS, UNIT)


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
    sweep_learned_datasets(plane.context)
    left = {key.rpartition("/")[2] for key in plane.store.keys(f"datasets/{request.dataset}/")}
    assert left == {layout.MANIFEST, layout.MOMENTS, "rejected.jsonl"}


def test_a_dry_run_leaves_its_report_in_the_database_alone(plane: ControlPlane) -> None:
    job = begin(plane, dry_run=True)
    prepare_all(plane.store)
    plane.tick_to(job, JobState.REPORTED)
    dataset = plane.job(job).dataset
    plane.clock.advance(8 * DAY)
    sweep_jobs(plane.context)
    assert list(plane.store.keys(f"datasets/{dataset}/")) == []
    assert plane.client.get(f"/v1/jobs/{job}").json()["report"]["rows"] == 16


@pytest.fixture
def encoded(plane: ControlPlane) -> tuple[ControlPlane, str]:
    """A dataset of encoded rows that is prepared and not learned."""
    job = begin(plane)
    (request,) = requests_in(plane.store)
    plane.store.put(KEY, b"rows")
    plane.store.put(RECORD, b"{}")
    manifest = manifest_of(plane.store, request)
    shard = Shard(uri=f"{plane.store.uri}/{KEY}", sha256="0" * 64, bytes=4, rows=16)
    write_manifest(plane.store, manifest.model_copy(update={"shards": (shard,)}))
    plane.tick_to(job, JobState.RUNNING)
    return plane, job


def test_encoded_rows_are_kept_while_a_job_may_read_them(
    encoded: tuple[ControlPlane, str],
) -> None:
    plane, job = encoded
    for _ in range(3):
        sweep_encoded(plane.context)
        plane.clock.advance(8 * DAY)
    assert is_there(plane, KEY)
    assert is_there(plane, RECORD)
    assert plane.job(job).state == JobState.RUNNING


def test_encoded_rows_are_kept_for_a_while_after_their_last_use(
    encoded: tuple[ControlPlane, str],
) -> None:
    plane, job = encoded
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    sweep_encoded(plane.context)
    sweep_learned_datasets(plane.context)
    sweep_encoded(plane.context)
    plane.clock.advance(6 * DAY)
    sweep_encoded(plane.context)
    assert is_there(plane, KEY)
    plane.clock.advance(1 * DAY)
    plane.store.calls.clear()
    sweep_encoded(plane.context)
    assert list(plane.store.keys(layout.encoded())) == []
    # While there is a record, its shards are believed to be there.
    assert plane.store.calls.index(RECORD) < plane.store.calls.index(KEY)


def test_rows_that_no_dataset_has_named_go_after_the_same_time(plane: ControlPlane) -> None:
    plane.store.put(KEY, b"of a preparation that was cancelled")
    sweep_encoded(plane.context)
    plane.clock.advance(6 * DAY)
    sweep_encoded(plane.context)
    assert is_there(plane, KEY)
    plane.clock.advance(1 * DAY)
    begin(plane)
    sweep_encoded(plane.context)
    # A dataset of this owner is prepared, and may just have found them.
    assert is_there(plane, KEY)
    prepare_all(plane.store)
    plane.tick(3)
    sweep_encoded(plane.context)
    assert not is_there(plane, KEY)
