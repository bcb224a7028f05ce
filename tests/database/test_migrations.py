"""The migrations, on both databases."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from cmcl.contract.policy import GatePolicy
from cmcl.contract.rollout import Observed, TrialPlan
from service.database.engine import Database, open_database
from service.database.migrations import upgrade
from service.database.queries import answers, backlog, datasets, jobs, models, trials, versions
from service.database.rows import AnswerRecord, TrialRecord
from service.database.tables import metadata
from service.errors import WriteConflict
from service.states import JobState
from tests.database.rows_of_r0001 import NOW, write_first_release
from tests.database.rows_of_r0003 import write_third_release


def test_migrations_lead_to_the_tables(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []


def test_upgrading_twice_is_upgrading_once(database: Database) -> None:
    upgrade(database)
    with database.read() as connection:
        versions = connection.exec_driver_sql("SELECT version_num FROM alembic_version").all()
    assert len(versions) == 1


def test_two_may_start_at_once(database_url: str) -> None:
    both = [open_database(database_url) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(upgrade, both))
    with both[0].read() as connection:
        assert set(metadata.tables) < set(inspect(connection).get_table_names())
    for database in both:
        database.close()


@pytest.fixture
def third_release(database_url: str) -> Iterator[Database]:
    """A database of the release before there were trials, brought to the newest tables."""
    database = open_database(database_url)
    upgrade(database, "r0003")
    with database.write() as connection:
        write_third_release(connection)
    upgrade(database)
    yield database
    database.close()


@pytest.fixture
def first_release(database_url: str) -> Iterator[Database]:
    """A database that the first release has worked with, brought to the newest tables."""
    database = open_database(database_url)
    upgrade(database, "r0001")
    with database.write() as connection:
        write_first_release(connection)
    upgrade(database)
    yield database
    database.close()


def test_rows_of_the_first_release_are_all_there(first_release: Database) -> None:
    with first_release.read() as connection:
        model = models.find(connection, "scenes")
        assert model is not None
        assert (model.owner, model.head, model.policy) == ("default", 1, GatePolicy())
        found = datasets.page(connection, "default", "scenes", None, 10)
        assert [dataset.sealed_at for dataset in found] == [NOW, NOW]
        known = answers.find(connection, ("default", "k", "POST /v1/models"))
    assert isinstance(known, AnswerRecord)
    assert known.body == {"name": "scenes"}


def test_evaluations_are_read_out_of_old_manifests(first_release: Database) -> None:
    with first_release.read() as connection:
        ((number, dataset, recalls),) = versions.evaluations(connection, "scenes", 9)
    assert (number, dataset) == (1, f"ds-{1:012}")
    assert recalls[dataset].at_1 == 0.5


def test_outlines_are_read_out_of_old_manifests(first_release: Database) -> None:
    """At once by the migration, and later where a service of the release before wrote the row."""
    with first_release.write() as connection:
        (by_migration,) = versions.outlines(connection, "scenes", None, 10)
        connection.exec_driver_sql("UPDATE versions SET dataset = NULL, dataset_name = NULL")
        (by_list,) = versions.outlines(connection, "scenes", None, 10)
    told = {(each.dataset, each.dataset_name) for each in (by_migration, by_list)}
    assert told == {(f"ds-{1:012}", "one")}


def test_old_promotions_can_be_rolled_back(first_release: Database) -> None:
    with first_release.read() as connection:
        found = [versions.promotion(connection, "scenes", number) for number in (1, 2)]
    told = [(each.kind, each.returns_to) for each in found if each is not None]
    assert told == [("published", None), ("promoted", 1)]


def test_a_job_under_way_goes_on_after_the_migration(first_release: Database) -> None:
    with first_release.write() as connection:
        job = jobs.current(connection, "scenes")
        assert job is not None
        assert jobs.move(connection, job, JobState.GATING, NOW)
        moved = jobs.find(connection, job.id)
    assert moved is not None
    assert (moved.state, moved.revision) == (JobState.GATING, 1)


def test_every_pointer_is_written_anew_after_the_migration(third_release: Database) -> None:
    with third_release.read() as connection:
        found = {name: models.find(connection, name) for name in ("live", "deleted", "new", "gone")}
        unmirrored_since = backlog.read(connection).unmirrored_since
    told = {
        name: (model.live_generation, model.live_revision, model.is_mirrored)
        for name, model in found.items()
        if model is not None
    }
    # One that was deleted has a pointer to remove, unless its files are gone already.
    assert told == {
        "live": (3, 3, False),
        "deleted": (3, 3, False),
        "new": (0, 0, True),
        "gone": (3, 3, True),
    }
    assert unmirrored_since == NOW


def test_a_version_is_tried_after_the_migration(third_release: Database) -> None:
    trial = TrialRecord(
        model="live",
        revision=4,
        version=1,
        plan=TrialPlan(share=0.5),
        reason="",
        actor="somebody",
        began_at=NOW,
        observed=Observed(),
    )
    with third_release.write() as connection:
        trials.add(connection, trial)
        assert trials.running(connection, "live") == trial
    with pytest.raises(WriteConflict), third_release.write() as connection:
        trials.add(connection, replace(trial, revision=5))
