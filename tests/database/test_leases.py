"""Several services share the models through leases, on both databases."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import event

from cmcl.contract.api.jobs import JobState
from cmcl.contract.model import ModelSpec
from service.database.engine import Database, open_database
from service.database.queries import instances, models
from service.jobs.leases import ModelLeases
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SPEC = ModelSpec(modalities={"image": 4, "text": 3})
LEASE = timedelta(seconds=10)


@pytest.fixture
def busy(database: Database) -> Database:
    """A database with twenty models whose pointers are not written."""
    with database.write() as connection:
        for number in range(20):
            models.create(connection, f"m{number:02}", "default", SPEC, NOW)
            models.set_live(connection, f"m{number:02}", 1, 1, NOW)
    return database


def _claim(database: Database, instance: str, now: datetime, most: int = 100) -> list[str]:
    with database.write() as connection:
        instances.register(connection, f"host-1-{instance}", now, now + LEASE)
        return instances.claim(connection, f"host-1-{instance}", now, most)


def test_of_many_that_claim_at_once_each_model_has_one(busy: Database) -> None:
    ready = Barrier(4)

    def claim(number: int) -> list[str]:
        ready.wait()
        return _claim(busy, f"{number}", NOW)

    with ThreadPoolExecutor(4) as threads:
        claimed = [name for names in threads.map(claim, range(4)) for name in names]
    assert sorted(claimed) == [f"m{number:02}" for number in range(20)]


def test_a_lease_holds_until_its_replica_does_not_renew(busy: Database) -> None:
    assert len(_claim(busy, "a", NOW)) == 20
    late = NOW + LEASE - timedelta(seconds=1)
    assert _claim(busy, "b", late) == []
    assert _claim(busy, "a", late) == []
    assert _claim(busy, "b", NOW + LEASE) == []
    assert len(_claim(busy, "b", late + LEASE)) == 20
    assert _claim(busy, "a", late + LEASE) == []


def test_a_replica_claims_no_more_than_it_asks_for(busy: Database) -> None:
    assert _claim(busy, "a", NOW, 3) == ["m00", "m01", "m02"]
    assert _claim(busy, "b", NOW, 2) == ["m03", "m04"]
    with busy.read() as connection:
        assert instances.shares(connection) == {"host-1-a": 3, "host-1-b": 2, None: 15}


def test_only_its_holder_releases_a_lease(busy: Database) -> None:
    _claim(busy, "a", NOW)
    with busy.write() as connection:
        instances.release(connection, "host-1-b", ["m00", "m01"])
    assert _claim(busy, "b", NOW) == []
    with busy.write() as connection:
        instances.release(connection, "host-1-a", ["m01"])
    assert _claim(busy, "b", NOW) == ["m01"]


def test_one_model_is_claimed_by_name_if_it_is_free(busy: Database) -> None:
    _claim(busy, "a", NOW, 1)
    _claim(busy, "b", NOW, 0)
    with busy.write() as connection:
        assert not instances.claim_one(connection, "host-1-b", NOW, "m00")
        assert instances.claim_one(connection, "host-1-b", NOW, "m01")
        assert instances.leased(connection, "host-1-b") == ["m01"]


def test_a_replica_that_leaves_keeps_nothing(busy: Database) -> None:
    _claim(busy, "a", NOW)
    with busy.write() as connection:
        instances.remove(connection, "host-1-a")
    assert len(_claim(busy, "b", NOW)) == 20


def test_models_without_work_are_not_leased(busy: Database) -> None:
    with busy.write() as connection:
        models.set_pointer_written(connection, "m00", 1)
    assert "m00" not in _claim(busy, "a", NOW)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_model_that_a_new_replica_claims_meanwhile_is_not_claimed(
    busy: Database, database_url: str
) -> None:
    """It registers and claims after the statement of the other one has begun, and before that locks the rows."""
    late, other = open_database(database_url), open_database(database_url)

    @event.listens_for(late.engine, "before_cursor_execute", retval=True)
    def wait(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> Any:
        if "FOR UPDATE" in statement:
            pause = "WHERE (SELECT pg_advisory_xact_lock(1)::text) IS NOT NULL AND "
            statement = statement.replace("WHERE ", pause, 1)
        return statement, values

    with ThreadPoolExecutor(1) as threads:
        with other.write() as holder:
            holder.exec_driver_sql("SELECT pg_advisory_xact_lock(1)")
            claimed = threads.submit(_claim, late, "late", NOW)
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            while not holder.exec_driver_sql(waiting).scalar():
                assert not claimed.done()
            assert len(_claim(busy, "new", NOW)) == 20
        assert claimed.result(60) == []
    for each in (late, other):
        each.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_two_threads_of_a_replica_may_register_it_at_once(
    tmp_path: Path, database_url: str
) -> None:
    plane = ControlPlane(tmp_path, database_url=database_url)
    database, first = plane.context.database, iter([True])

    @event.listens_for(database.engine, "before_cursor_execute")
    def register(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO leases") and next(first, False):
            _claim(database, "a", plane.clock())

    ModelLeases(plane.context, "host-1-a").renew()
    with database.read() as connection:
        assert list(instances.alive(connection, plane.clock())) == ["host-1-a"]
    plane.close()


def test_a_second_service_takes_over_from_one_that_died(tmp_path: Path, database_url: str) -> None:
    first = ControlPlane(tmp_path, database_url=database_url, lease_seconds=30)
    first.create_model()
    job = first.post_dataset()
    first.tick_to(job, JobState.RUNNING)
    train(first.store, job, 1)
    second = ControlPlane(
        tmp_path, first.launcher, first.clock, database_url=database_url, lease_seconds=30
    )
    second.tick(5)
    assert second.job(job).state == JobState.RUNNING, "the first one's lease still holds"
    second.clock.advance(30)
    second.tick(6)
    assert second.job(job).state == JobState.PUBLISHED
    first.close()
    second.close()
