"""Which models and jobs are next, and which instance works on them."""

import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import insert, update

from cmcl.contract.api.jobs import JobState
from cmcl.contract.model import ModelSpec
from service.context import Context
from service.database.engine import Database, open_database
from service.database.queries import job_queue, models
from service.database.queries.job_queue import MOST_OF_MODEL, TRAINING
from service.database.tables import jobs, versions
from service.database.tables import models as model_rows
from service.jobs.scheduler import Scheduler
from tests.fakes.control_plane import ControlPlane

NOW = datetime(2026, 11, 29, tzinfo=UTC)
SPEC = ModelSpec(modalities={"image": 4, "text": 3})


@dataclass(frozen=True)
class Job:
    """A job of the model. `waits`: for the scheduler."""

    state: JobState
    waits: bool = False
    kind: str = "merge"


QUEUED, PREPARED = Job(JobState.QUEUED), Job(JobState.PREPARED)
WAITS = Job(JobState.PREPARED, waits=True)


def add_model(
    database: Database, name: str, of_model: Sequence[Job] = (), instance: str = "a"
) -> None:
    row = {
        "model": name,
        "owner": "default",
        "dataset_name": "one",
        "dry_run": False,
        "revision": 0,
        "attempt": 0,
        "attempts_before_retry": 0,
        "preparation": 0,
        "cancel_requested": False,
        "created_at": NOW,
        "state_changed_at": NOW,
    }
    rows = [
        {
            **row,
            "id": f"job-{name}-{number}",
            "kind": job.kind,
            "state": job.state,
            "eligible_at": NOW if job.waits else None,
            "finished_at": NOW if job.state == JobState.PUBLISHED else None,
        }
        for number, job in enumerate(of_model)
    ]
    with database.write() as connection:
        models.create(connection, name, "default", SPEC, NOW)
        leased = update(model_rows).where(model_rows.c.name == name)
        connection.execute(leased.values(lease_owner=instance))
        if rows:
            connection.execute(insert(jobs), rows)


def with_steps(database: Database, *names: str) -> list[str]:
    with database.read() as connection:
        return job_queue.with_steps(connection, "a", names or None)


@pytest.mark.parametrize(
    ("of_model", "is_listed"),
    [
        ([], False),
        ([Job(JobState.PUBLISHED)], False),
        ([QUEUED], True),
        ([Job(JobState.QUEUED, waits=True)], False),
        ([Job(JobState.PREPARING)], True),
        ([PREPARED], True),
        ([WAITS], False),
        ([WAITS, PREPARED, PREPARED], False),
        # The earlier job was retried: it is next, and has not been passed to the scheduler yet.
        ([PREPARED, WAITS], True),
        ([WAITS, Job(JobState.PREPARED, kind="evaluate")], True),
        ([Job(JobState.RUNNING), PREPARED], True),
        ([Job(JobState.SUBMITTING)], True),
        ([Job(JobState.GATING)], True),
        ([Job(JobState.HELD)], True),
        # Datasets beyond the first ones are not prepared yet.
        ([WAITS, *[PREPARED] * (MOST_OF_MODEL - 1), QUEUED], False),
        ([WAITS, *[PREPARED] * (MOST_OF_MODEL - 2), QUEUED], True),
    ],
)
def test_a_model_is_listed_if_one_of_its_jobs_can_go_on(
    database: Database, of_model: Sequence[Job], is_listed: bool
) -> None:
    add_model(database, "scenes", of_model)
    add_model(database, "other", [QUEUED])
    assert with_steps(database, "scenes") == ["scenes"] * is_listed


def test_a_model_is_listed_while_its_pointer_or_a_version_needs_a_step(database: Database) -> None:
    for name in ("idle", "pointer", "version"):
        add_model(database, name)
    about = {"created_at": NOW, "model": "version", "number": 1, "attempt": 1, "kind": "learn"}
    about |= {"dataset_name": "one", "pair_first": "image", "pair_second": "text"}
    about["manifest_sha256"] = "0" * 64
    about |= {name: {} for name in ("manifest", "evaluation", "capacity", "figures")}
    behind = update(model_rows).where(model_rows.c.name == "pointer")
    with database.write() as connection:
        connection.execute(behind.values(live_generation=1, live_revision=1))
        connection.execute(insert(versions).values(about))
    assert with_steps(database, "idle", "pointer", "version") == ["pointer", "version"]


def test_only_models_that_the_replica_leases_are_listed(database: Database) -> None:
    add_model(database, "one", [QUEUED])
    add_model(database, "other", [QUEUED], instance="b")
    add_model(database, "two", [QUEUED])
    assert with_steps(database) == ["one", "two"]
    assert with_steps(database, "one", "other") == ["one"]


def test_more_names_than_fit_one_list_are_listed(database: Database) -> None:
    for number in (0, 700, 1400):
        add_model(database, f"m{number:04}", [QUEUED])
    names = [f"m{number:04}" for number in range(1500)]
    assert with_steps(database, *names) == ["m0000", "m0700", "m1400"]


@pytest.fixture
def plane(tmp_path: Path, database_url: str) -> Iterator[ControlPlane]:
    plane = ControlPlane(tmp_path, database_url=database_url, attempts_at_once=3)
    yield plane
    plane.close()


def _wait(context: Context, owner: str, number: int) -> None:
    """Jobs that wait for the scheduler, each of a model of its own."""
    now = context.clock()
    names = [f"{owner}-{each}" for each in range(number)]
    job = {
        "kind": "merge",
        "owner": owner,
        "dataset_name": "one",
        "dry_run": False,
        "state": JobState.PREPARED,
        "revision": 0,
        "attempt": 0,
        "attempts_before_retry": 0,
        "preparation": 0,
        "cancel_requested": False,
        "created_at": now,
        "state_changed_at": now,
        "eligible_at": now,
    }
    with context.database.write() as connection:
        for name in names:
            models.create(connection, name, owner, SPEC, now)
        rows = [{**job, "id": f"job-{name}", "model": name} for name in names]
        connection.execute(insert(jobs), rows)


def test_replicas_that_admit_at_once_start_no_more_than_there_is_room_for(
    plane: ControlPlane, database_url: str
) -> None:
    for owner in "abcd":
        _wait(plane.context, owner, 5)
    ready = Barrier(4)

    def admit(_: int) -> None:
        database = open_database(database_url)
        context = replace(plane.context, database=database)
        ready.wait()
        Scheduler(context).tick()
        database.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(admit, range(4)))
    with plane.context.database.read() as connection:
        running = job_queue.running(connection, TRAINING)
        assert running == {"a": 1, "b": 1, "c": 1}
        assert job_queue.waiting_owners(connection, TRAINING) == {"a": 1, "b": 2, "c": 3, "d": 0}


def test_an_admission_with_many_waiting_jobs_reads_no_more_than_with_few(tmp_path: Path) -> None:
    """Counted in instructions of SQLite: what it scans it pays for."""
    plane = ControlPlane(tmp_path, attempts_at_once=1)
    _wait(plane.context, "a", 10)
    few = _instructions(plane)
    _wait(plane.context, "b", 10)
    now = plane.context.clock()
    with plane.context.database.write() as connection:
        models.create(connection, "many", "a", SPEC, now)
    _queue_many(plane, 20_000)
    assert _instructions(plane) <= 3 * few
    plane.close()


def _instructions(plane: ControlPlane) -> int:
    """Instructions of one admission, which frees the place of the one before."""
    with plane.context.database.write() as connection:
        connection.execute(
            update(jobs).where(jobs.c.state == JobState.SUBMITTING).values(state=JobState.FAILED)
        )
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    with plane.context.database.engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert isinstance(raw, sqlite3.Connection)
        raw.set_progress_handler(count, 10)
    Scheduler(plane.context).tick()
    raw.set_progress_handler(None, 10)
    assert counted
    return counted


def _queue_many(plane: ControlPlane, number: int) -> None:
    """Further jobs that wait for the scheduler, and as many that do not yet."""
    copied = [column.name for column in jobs.columns if column.name not in ("sequence", "id")]
    names = ", ".join(copied)
    for prefix, eligible in (("w", "eligible_at"), ("x", "NULL")):
        values = ", ".join(eligible if name == "eligible_at" else name for name in copied)
        with plane.context.database.engine.begin() as connection:
            connection.exec_driver_sql(
                f"INSERT INTO jobs (id, {names}) "
                f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {number}) "
                f"SELECT '{prefix}-' || i, {values} FROM n, jobs WHERE jobs.id = 'job-a-5'"
            )
