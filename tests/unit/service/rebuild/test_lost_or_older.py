"""A lost or older database never damages the bucket; the operator gets a message with what to do."""

import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from cmcl.contract.api.access import Scope
from cmcl.contract.api.jobs import JobState
from cmcl.contract.version import LivePointer
from cmcl.storage import layout
from cmcl.storage.versions import read_live, write_live
from service.auth.key_snapshot import SnapshotWriter
from service.auth.keys import sha256
from service.auth.signing import make_pair
from service.core.errors import StaleDatabase
from service.core.setting_values import read_signing_key
from service.database.migrations import upgrade
from service.database.queries import keys, models
from service.database.queries.keys import KeyRow
from service.database.stale import check_at_start, check_not_stale
from service.jobs.reconciler import Reconciler
from service.maintenance.gc import GarbageCollector
from tests.fakes.control_plane import SPEC, ControlPlane
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.lost_database import wreck
from tests.fakes.trainer import train


@pytest.fixture
def lost(plane: ControlPlane) -> ControlPlane:
    """A bucket with a version that answers, and a database without any row."""
    wreck(plane.context.database)
    upgrade(plane.context.database)
    return plane


def _remove_records(plane: ControlPlane) -> None:
    for key in list(plane.store.keys(layout.records())):
        plane.store.delete(key)


def _make_key(plane: ControlPlane) -> None:
    scopes = frozenset({Scope.ADMIN})
    key = KeyRow("k-1", "default", "first", scopes, sha256("secret"), plane.clock(), "local")
    with plane.context.database.write() as connection:
        keys.create(connection, key)


@pytest.mark.parametrize("have_records", [True, False])
@pytest.mark.parametrize("has_key", [True, False])
def test_no_service_starts_on_a_lost_database(
    lost: ControlPlane, *, have_records: bool, has_key: bool
) -> None:
    """Also without records, and after the first key was created."""
    if not have_records:
        _remove_records(lost)
    if has_key:
        _make_key(lost)
    command = rf"`cmcl admin rebuild --database-url sqlite:///\S+ --store {lost.store.uri}`"
    with pytest.raises(StaleDatabase, match=command):
        check_at_start(lost.context.store, lost.context.database)


def test_a_lost_database_takes_no_model(lost: ControlPlane) -> None:
    """Also by a service that started while its store was unavailable."""
    response = lost.client.post("/v1/models", json={"name": "scenes", **SPEC})
    assert response.status_code == 409
    assert "cmcl admin rebuild" in response.json()["detail"]


def test_a_lost_database_leaves_the_list_of_keys_as_it_is(
    lost: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    lost.store.put(layout.key_snapshot(), b"of the database that was lost")
    SnapshotWriter(
        read_signing_key(make_pair().private),
        lost.context.settings,
        lost.context.store,
        lost.context.database,
        lost.context.metrics,
        lost.context.clock,
    ).round()
    assert lost.store.read(layout.key_snapshot()) == b"of the database that was lost"
    assert "cmcl admin rebuild" in caplog.text


def test_a_lost_database_gives_no_folder_up(lost: ControlPlane) -> None:
    folders = lost.store.folders("datasets/")
    for _ in range(2):
        GarbageCollector(lost.context).sweep()
        lost.clock.advance(timedelta(days=2).total_seconds())
    assert lost.store.folders("datasets/") == folders != []


def _show_more(plane: ControlPlane, **later: int) -> LivePointer:
    """Write a newer live.json, as of a lost database."""
    shown = read_live(plane.store, "scenes")
    assert shown is not None
    pointer = shown.model_copy(update=later)
    write_live(plane.store, "scenes", pointer)
    return pointer


@pytest.mark.parametrize("later", [{"generation": 9}, {"revision": 40}])
def test_a_live_pointer_is_never_replaced_by_an_earlier_one(
    plane: ControlPlane, later: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    pointer = _show_more(plane, **later)
    with plane.context.database.write() as connection:
        models.revise(connection, "scenes", plane.clock())
    with caplog.at_level(logging.WARNING):
        plane.tick(3)
    assert read_live(plane.store, "scenes") == pointer
    assert "cmcl admin rebuild" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("more", [0, 1])
def test_no_change_makes_an_older_database_look_like_the_newer_one(
    plane: ControlPlane, more: int
) -> None:
    """One generation never has two versions: replicas that saw the first keep it."""
    plane.run_to_end(plane.post_dataset("two"))
    before = plane.model()
    pointer = _show_more(plane, version=9, generation=before.live_generation + more)
    live, scenes = {"version": 1}, "/v1/models/scenes"
    answers = [
        plane.client.put(f"{scenes}/live", json=live),
        plane.client.post(f"{scenes}/rollback", json={}),
        plane.client.request("DELETE", f"{scenes}/versions/1"),
        plane.client.request("DELETE", scenes),
    ]
    for answer in answers:
        assert answer.status_code == 409, answer.text
        assert "cmcl admin rebuild" in answer.json()["detail"]
    plane.tick(3)
    assert read_live(plane.store, "scenes") == pointer
    after = plane.model()
    assert (after.live_generation, after.live_revision) == (
        before.live_generation,
        before.live_revision,
    )


def test_no_version_becomes_live_on_a_stale_database(plane: ControlPlane) -> None:
    """Published before the older dump was taken, stored after it."""
    job = plane.post_dataset("two")
    train(plane.store, job, plane.tick_to(job, JobState.RUNNING).attempt)
    plane.tick_to(job, JobState.PUBLISHED)
    pointer = _show_more(plane, generation=9, version=9)
    plane.tick(3)
    assert plane.versions()[-1].stored_at is None
    assert read_live(plane.store, "scenes") == pointer


def test_nothing_is_published_on_a_stale_database(plane: ControlPlane) -> None:
    """Also by a service that has read live.json before, and continues."""
    head = plane.model().head
    job = plane.post_dataset("late")
    attempt = plane.tick_to(job, JobState.RUNNING).attempt
    _show_more(plane, generation=9)
    train(plane.store, job, attempt)
    plane.tick(5)
    found = plane.job(job)
    assert found.state == JobState.GATING
    assert "cmcl admin rebuild" in (found.message or "")
    assert plane.model().head == head


def test_after_a_restart_on_an_older_database_a_job_says_what_it_waits_for(
    plane: ControlPlane,
) -> None:
    """Waiting jobs are not started, running ones are still watched."""
    job, known = plane.post_dataset("late"), read_live(plane.store, "scenes")
    assert known is not None
    _show_more(plane, generation=9)
    plane.reconciler = Reconciler(plane.context)
    plane.tick_to(job, JobState.PREPARED)
    plane.tick(2)
    assert plane.job(job).state == JobState.PREPARED
    assert "cmcl admin rebuild" in (plane.job(job).message or "")
    write_live(plane.store, "scenes", known)
    plane.clock.advance(60)
    attempt = plane.tick_to(job, JobState.RUNNING).attempt
    _show_more(plane, generation=9)
    plane.reconciler = Reconciler(plane.context)
    train(plane.store, job, attempt)
    plane.tick()
    assert plane.job(job).state == JobState.GATING


def test_models_that_cannot_be_checked_do_not_block_others(plane: ControlPlane) -> None:
    """A missing live.json is still repaired."""
    plane.create_model("zoo")
    with plane.context.database.write() as connection:
        models.set_live(connection, "zoo", 1, 1, plane.clock())
        models.set_pointer_written(connection, "zoo", 1)
    _show_more(plane, generation=9)
    plane.reconciler = Reconciler(plane.context)
    plane.tick(4)
    assert plane.answering("zoo") == (1, 1)


def test_a_model_that_another_process_makes_at_the_same_time_is_no_lost_database(
    tmp_path: Path,
) -> None:
    plane = ControlPlane(tmp_path)

    class MadeWhileLookedAt(FlakyStore):
        def keys(self, prefix: str) -> Iterator[str]:
            if read_live(plane.store, "scenes") is None:
                plane.create_model()
                write_live(plane.store, "scenes", LivePointer(generation=1, version=1))
            return super().keys(prefix)

    check_not_stale(MadeWhileLookedAt(plane.store), plane.context.database)
    plane.close()


def test_a_new_place_is_no_lost_database(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    _make_key(plane)
    check_at_start(plane.context.store, plane.context.database)
    plane.create_model()
    plane.close()
