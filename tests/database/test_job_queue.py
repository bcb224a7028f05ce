"""Which models a resync has to look at, on both databases."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from sqlalchemy import insert, update

from cmcl.contract.api.jobs import JobState
from cmcl.contract.model import ModelSpec
from service.database.engine import Database
from service.database.queries import job_queue, models
from service.database.queries.job_queue import MOST_OF_MODEL
from service.database.tables import jobs, versions
from service.database.tables import models as model_rows

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


def test_a_model_is_listed_while_its_pointer_or_a_version_needs_a_step(
    database: Database,
) -> None:
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
