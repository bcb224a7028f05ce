"""Backlog figures: the same on both databases, regardless of what has ended."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, insert, update

from cmcl.contract.api.jobs import FINAL_STATES, JobState
from cmcl.contract.model import ModelSpec
from service.database.engine import Database
from service.database.queries import models, overviews
from service.database.queries.overviews import Backlog, Standing
from service.database.rows import ModelRow
from service.database.tables import datasets, jobs, versions

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SPEC = ModelSpec(modalities={"image": 4, "text": 3})


def minutes_ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


def add_job(
    database: Database, name: str, state: JobState, since: datetime, owner: str = "default"
) -> None:
    dataset = {
        "id": f"ds-{name}",
        "owner": owner,
        "model": "scenes",
        "name": name,
        "pair_first": "image",
        "pair_second": "text",
        "request": {},
        "created_at": since,
    }
    job = {
        "id": f"job-{name}",
        "owner": owner,
        "model": "scenes",
        "dataset": f"ds-{name}",
        "dataset_name": name,
        "state": state,
        "revision": 0,
        "attempt": 1,
        "attempts_before_retry": 0,
        "kind": "learn",
        "dry_run": False,
        "preparation": 0,
        "cancel_requested": False,
        "created_at": since,
        "state_changed_at": since,
        "finished_at": since if state in FINAL_STATES else None,
    }
    with database.write() as connection:
        connection.execute(insert(datasets).values(**dataset))
        connection.execute(insert(jobs).values(**job))


def add_model(database: Database, name: str = "scenes") -> None:
    with database.write() as connection:
        models.create(connection, name, "default", SPEC, NOW)


def add_version(database: Database, model: str, number: int, created_at: datetime) -> None:
    row = {
        "model": model,
        "number": number,
        "attempt": 1,
        "kind": "learn",
        "dataset": "ds-000000000001",
        "dataset_name": "one",
        "manifest_sha256": "0" * 64,
        "pair_first": "image",
        "pair_second": "text",
        **{name: {} for name in ("manifest", "evaluation", "capacity", "figures")},
        "created_at": created_at,
    }
    with database.write() as connection:
        connection.execute(insert(versions).values(**row))


def _found(connection: Connection, name: str) -> ModelRow:
    found = models.find(connection, name)
    assert found is not None
    return found


def add_promotion(database: Database, model: str, generation: int, created_at: datetime) -> None:
    with database.write() as connection:
        models.set_live(connection, model, 1, generation, created_at)


def read(database: Database) -> Backlog:
    with database.read() as connection:
        return overviews.read_backlog(connection)


def test_jobs_are_counted_by_state_with_the_oldest(database: Database) -> None:
    add_model(database)
    for name, state, age in (
        ("a", JobState.QUEUED, 5),
        ("b", JobState.QUEUED, 9),
        ("c", JobState.GATING, 1),
        ("d", JobState.PUBLISHED, 90),
        ("e", JobState.FAILED, 91),
    ):
        add_job(database, name, state, minutes_ago(age))
    found = read(database).jobs
    assert found[JobState.QUEUED] == Standing(2, minutes_ago(9))
    assert found[JobState.GATING] == Standing(1, minutes_ago(1))
    assert found[JobState.RUNNING] == Standing()


def test_the_oldest_version_that_is_not_in_place_counts(database: Database) -> None:
    add_model(database)
    for number, age in ((1, 30), (2, 20), (3, 10)):
        add_version(database, "scenes", number, minutes_ago(age))
    with database.write() as connection:
        first = update(versions).where(versions.c.number == 1)
        connection.execute(first.values(stored_at=NOW))
    assert read(database).unstored_since == minutes_ago(20)


def test_the_newest_promotion_of_a_model_counts(database: Database) -> None:
    add_model(database)
    add_promotion(database, "scenes", 1, minutes_ago(60))
    add_promotion(database, "scenes", 2, minutes_ago(3))
    assert read(database).unwritten_since == minutes_ago(3)
    with database.write() as connection:
        models.set_pointer_written(connection, "scenes", 2)
    assert read(database).unwritten_since is None


def test_a_deleted_model_waits_for_its_pointer_to_go_alone(database: Database) -> None:
    add_model(database)
    add_version(database, "scenes", 1, minutes_ago(30))
    add_promotion(database, "scenes", 1, minutes_ago(30))
    with database.write() as connection:
        models.set_deleted(connection, _found(connection, "scenes"), "ours", minutes_ago(1))
    found = read(database)
    assert (found.unstored_since, found.unwritten_since) == (None, minutes_ago(1))
