"""Several services share the models: on both databases."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest

from cmcl.contract.model import ModelSpec
from service.database.engine import Database
from service.database.queries import models
from service.states import JobState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SPEC = ModelSpec(modalities={"image": 4, "text": 3})
LEASE = timedelta(seconds=10)


@pytest.fixture
def busy(database: Database) -> Database:
    """With twenty models that have a pointer to mirror."""
    with database.write() as connection:
        for number in range(20):
            models.create(connection, f"m{number:02}", "default", SPEC, NOW)
            models.set_live(connection, f"m{number:02}", 1, 1, NOW)
    return database


def _claim(database: Database, service: str, now: datetime) -> list[str]:
    with database.write() as connection:
        models.claim(connection, service, now, now + LEASE / 2, now + LEASE)
    with database.read() as connection:
        return models.leased(connection, service, now)


def test_of_many_that_claim_at_once_each_model_has_one(busy: Database) -> None:
    ready = Barrier(4)

    def claim(number: int) -> list[str]:
        ready.wait()
        return _claim(busy, f"s{number}", NOW)

    with ThreadPoolExecutor(4) as threads:
        claimed = [name for names in threads.map(claim, range(4)) for name in names]
    assert sorted(claimed) == [f"m{number:02}" for number in range(20)]


def test_a_lease_holds_until_it_runs_out(busy: Database) -> None:
    assert len(_claim(busy, "a", NOW)) == 20
    assert _claim(busy, "b", NOW + LEASE - timedelta(seconds=1)) == []
    assert len(_claim(busy, "b", NOW + LEASE)) == 20
    assert _claim(busy, "a", NOW + LEASE) == []


def test_a_lease_is_renewed_at_half_time(busy: Database) -> None:
    _claim(busy, "a", NOW)
    with busy.read() as connection:
        for seconds, expected in ((4, False), (5, True)):
            now = NOW + timedelta(seconds=seconds)
            found = models.claimable(connection, "a", now, now + LEASE / 2)
            assert found is expected


def test_a_service_that_leaves_keeps_nothing(busy: Database) -> None:
    _claim(busy, "a", NOW)
    with busy.write() as connection:
        models.release(connection, "a")
    assert len(_claim(busy, "b", NOW)) == 20


def test_models_without_work_are_not_leased(busy: Database) -> None:
    with busy.write() as connection:
        models.set_mirrored(connection, "m00", 1)
    assert "m00" not in _claim(busy, "a", NOW)


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
