"""Blobs are removed when nothing names them, and never before."""

from collections.abc import Iterable
from datetime import timedelta

import pytest
from sqlalchemy import update

from cmcl.contract.api.jobs import JobState
from cmcl.contract.modality import FileEntry
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from cmcl.storage.versions import (
    entry_for,
    publish_manifest,
    read_version,
    read_version_file,
    write_blob,
)
from service.database.queries import maintenance
from service.database.tables import models
from service.launchers.port import LaunchState
from service.maintenance.gc import ORPHAN_GRACE, sweep_blobs
from tests.fakes.control_plane import ControlPlane
from tests.fakes.crashes import Crash, CrashingStore, FaultAtMoment
from tests.fakes.trainer import train
from tests.unit.service.maintenance.test_sweeping import DAY, keys


def learned(plane: ControlPlane, name: str = "one") -> VersionManifest:
    assert plane.run_to_end(plane.post_dataset(name)).state == JobState.PUBLISHED
    return plane.versions()[-1].manifest


def digests(entries: Iterable[FileEntry]) -> set[str]:
    return {entry.sha256 for entry in entries}


def stored(plane: ControlPlane) -> set[str]:
    return set(keys(plane, layout.blobs()))


def sweep_for_days(plane: ControlPlane) -> None:
    for _ in range(3):
        sweep_blobs(plane.context)
        plane.clock.advance(DAY)


def test_a_sweep_deletes_nothing_that_a_kept_version_names(plane: ControlPlane) -> None:
    versions = [learned(plane, name) for name in ("one", "two", "three")]
    assert plane.client.request("DELETE", "/v1/models/scenes/versions/1").status_code == 204
    plane.tick(3)
    sweep_for_days(plane)
    assert stored(plane) == {sha256 for each in versions for sha256 in each.blobs}


def test_what_nothing_names_has_a_grace_period_of_a_day(plane: ControlPlane) -> None:
    version = learned(plane)
    garbage = write_blob(plane.store, b"of an attempt that died")
    sweep_blobs(plane.context)
    plane.clock.advance(DAY - 60)
    sweep_blobs(plane.context)
    assert garbage.sha256 in stored(plane)
    plane.clock.advance(60)
    sweep_blobs(plane.context)
    assert stored(plane) == version.blobs


def test_a_candidate_keeps_its_blobs_while_it_is_held(plane: ControlPlane) -> None:
    gate = {"manual_approval": True}
    assert plane.client.put("/v1/models/scenes/gate", json=gate).status_code == 200
    job = plane.post_dataset()
    attempt = plane.tick_to(job, JobState.RUNNING).attempt
    candidate = train(plane.store, job, attempt)
    plane.tick_to(job, JobState.HELD)
    sweep_for_days(plane)
    assert stored(plane) == candidate.blobs
    assert plane.client.post(f"/v1/jobs/{job}/reject", json={"reason": "no"}).status_code == 202
    sweep_for_days(plane)
    assert stored(plane) == set()


def test_a_version_that_only_the_bucket_knows_keeps_its_blobs(plane: ControlPlane) -> None:
    """The database was restored from a dump that is older than the bucket."""
    version = learned(plane)
    later = version.model_copy(
        update={"version": 2, "files": {"heads.safetensors": write_blob(plane.store, b"later")}}
    )
    publish_manifest(plane.store, later)
    sweep_for_days(plane)
    assert stored(plane) == version.blobs | later.blobs


def test_a_deleted_model_leaves_what_a_branch_names(plane: ControlPlane) -> None:
    first = learned(plane)
    second = learned(plane, "two")
    body = {"name": "branch", "version": 1}
    assert plane.client.post("/v1/models/scenes/branch", json=body).status_code == 201
    plane.tick(3)
    with plane.context.database.write() as connection:
        connection.execute(
            update(models).values(deleted_at=plane.clock()).where(models.c.name == "scenes")
        )
        later = plane.clock() + timedelta(seconds=1)
        maintenance.mark_models_swept(connection, later, later)
    sweep_for_days(plane)
    assert stored(plane) == first.blobs
    assert digests(second.files.values()).isdisjoint(stored(plane))
    branch = read_version(plane.store, "branch", 1)
    assert all(read_version_file(plane.store, branch, name) for name in branch.files)


@pytest.mark.parametrize("is_doomed", [False, True])
def test_a_blob_that_is_written_again_when_it_is_garbage_is_kept_or_missed(
    plane: ControlPlane, is_doomed: bool
) -> None:
    """Between the mark of a sweep and its removal an attempt may write the same bytes, and be judged."""
    job = plane.post_dataset()
    attempt = plane.tick_to(job, JobState.RUNNING).attempt
    heads = layout.blob(entry_for(f"{job} {attempt} {layout.HEADS}".encode()).sha256)
    now = plane.clock()

    def mark(age: float) -> list[str]:
        """What a sweep does before it removes anything."""
        with plane.context.database.write() as connection:
            before = now - ORPHAN_GRACE
            return maintenance.update_orphans(
                connection, layout.blobs(), {heads}, before, now - age * ORPHAN_GRACE
            )

    assert mark(age=2 if is_doomed else 0.5) == []
    assert mark(age=0) == ([heads] if is_doomed else [])
    train(plane.store, job, attempt)
    plane.tick(5)
    assert plane.job(job).state == (JobState.GATING if is_doomed else JobState.PUBLISHED)
    if not is_doomed:
        assert mark(age=0) == []
        return
    # The sweep goes on, and the candidate is found incomplete; nothing was published that lacks a file.
    plane.store.delete(heads)
    with plane.context.database.write() as connection:
        maintenance.forget_removed(connection, [heads])
    plane.clock.advance(60)
    plane.tick(5)
    assert (plane.job(job).state, plane.versions()) == (JobState.FAILED, [])


# Before and after each of five blobs, before the manifest, and after it was written.
@pytest.mark.parametrize("moment", [*range(1, 12), 12])
def test_a_crash_between_any_two_writes_loses_nothing_and_leaves_garbage_only(
    plane: ControlPlane, moment: int
) -> None:
    job = plane.post_dataset()
    attempt = plane.tick_to(job, JobState.RUNNING).attempt
    with pytest.raises(Crash):
        train(CrashingStore(plane.store, FaultAtMoment(moment)), job, attempt)
    plane.launcher.end(f"{job}-a{attempt}", LaunchState.FAILED, "killed")
    plane.tick(5)
    assert plane.run_to_end(job).state == JobState.PUBLISHED
    (version,) = plane.versions()
    assert version.attempt == (1 if moment == 12 else 2)
    for name in version.manifest.files:
        read_version_file(plane.store, version.manifest, name)
    sweep_for_days(plane)
    assert stored(plane) == version.manifest.blobs


def test_an_interrupted_removal_is_finished(plane: ControlPlane) -> None:
    learned(plane)
    garbage = write_blob(plane.store, b"of an attempt that died")
    sweep_blobs(plane.context)
    plane.clock.advance(DAY)
    with plane.context.database.write() as connection:
        now = plane.clock()
        found = {layout.blob(garbage.sha256)}
        maintenance.update_orphans(connection, layout.blobs(), found, now - ORPHAN_GRACE, now)
    sweep_blobs(plane.context)
    assert garbage.sha256 not in stored(plane)
