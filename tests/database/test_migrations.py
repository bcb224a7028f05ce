"""Migrations, and services on tables of another release."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, Table, inspect, select
from sqlalchemy.exc import DBAPIError

from service.__main__ import main
from service.core.errors import Conflict
from service.database import migrations
from service.database.engine import Database, open_database
from service.database.migrations import declared_sha256, revisions, upgrade
from service.database.tables import compatibility, metadata
from tests.database import frozen
from tests.fakes.control_plane import ControlPlane


def test_migrations_lead_to_the_tables(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []


def test_the_first_migration_is_written_out_before_a_second_one() -> None:
    """While it creates the declared tables, a fresh database already has what a second one adds."""
    folder = str(Path(migrations.__file__).parent)
    *later, first = ScriptDirectory(folder).walk_revisions()
    declared = [each for each in vars(first.module).values() if isinstance(each, MetaData | Table)]
    assert not later or not declared


def test_upgrading_twice_is_upgrading_once(database: Database) -> None:
    upgrade(database)
    with database.read() as connection:
        versions = connection.exec_driver_sql("SELECT version_num FROM alembic_version").all()
    assert len(versions) == 1


def test_two_may_start_at_once(empty_url: str) -> None:
    both = [open_database(empty_url) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(upgrade, both))
    with both[0].read() as connection:
        assert set(metadata.tables) < set(inspect(connection).get_table_names())
    for database in both:
        database.close()


def test_the_tables_of_the_newest_release_are_upgraded(empty_url: str) -> None:
    database = open_database(empty_url)
    with database.write() as connection:
        frozen.create(connection)
    try:
        upgrade(database)
    except Conflict as error:
        pytest.fail(
            f"{error}\n\nThe declared tables are not those of tests/database/frozen_*.sql. Before the first release: run "
            "`python -m tests.database.frozen` and commit what it writes. After it: write a migration."
        )
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


_ANOTHER_BUILD = {
    "a column is missing": (
        "ALTER TABLE models DROP COLUMN deleted_at",
        "models.deleted_at is missing",
    ),
    "a table is missing": ("DROP TABLE sessions", "table sessions is missing"),
    "an index is missing": (
        "DROP INDEX ix_events_job_position",
        "ix_events_job_position is missing",
    ),
    "a column is unknown": (
        "ALTER TABLE models ADD COLUMN mood INTEGER NOT NULL DEFAULT 1",
        "models.mood is unknown",
    ),
    "no digest is stored": (
        "ALTER TABLE compatibility DROP COLUMN sha256",
        "compatibility.sha256 is missing",
    ),
}


@pytest.mark.parametrize(("change", "named"), _ANOTHER_BUILD.values(), ids=_ANOTHER_BUILD)
def test_tables_of_another_build_are_refused_and_what_differs_is_named(
    database: Database, change: str, named: str
) -> None:
    with database.write() as connection:
        connection.execute(compatibility.update().values(sha256="0" * 64))
        connection.exec_driver_sql(change)
    with pytest.raises(Conflict, match=named):
        upgrade(database)


def test_the_command_to_migrate_fails_on_tables_of_another_build(
    database_url: str,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with database.write() as connection:
        connection.execute(compatibility.update().values(sha256="0" * 64))
        for table in ("sessions", "orphans", "leases", "admissions", "api_keys", "event_positions"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
    monkeypatch.setenv("CMCL_DATABASE_URL", database_url)
    monkeypatch.setenv("CMCL_AUTH", "off")
    assert main(["migrate"]) == 1
    complaint = capsys.readouterr().err
    assert complaint.count(" is missing") == 5
    assert ", and 1 more. " in complaint


def test_the_same_tables_under_another_digest_are_accepted(database: Database) -> None:
    """Another release of SQLAlchemy may write them in another way; a database may have tables of others."""
    with database.write() as connection:
        connection.execute(compatibility.update().values(sha256="0" * 64))
        connection.exec_driver_sql("CREATE TABLE invoices (number INTEGER PRIMARY KEY)")
    upgrade(database)
    with database.read() as connection:
        assert connection.execute(select(compatibility.c.sha256)).scalar_one() == declared_sha256()


def test_a_missing_column_is_no_outage(database: Database) -> None:
    with pytest.raises(DBAPIError, match="mood"), database.read() as connection:
        connection.exec_driver_sql("SELECT mood FROM models")


REVISION = "r9001"

NEWEST = next(iter(revisions()))


def migrate_as_later_release(database: Database, compatible_with: str) -> None:
    """Add a nullable column, and record the releases that are compatible with it."""
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE models ADD COLUMN mood VARCHAR(16) DEFAULT 'good'")
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{REVISION}'")
        connection.execute(compatibility.update().values(oldest=compatible_with))


def _oldest(database: Database) -> str:
    with database.read() as connection:
        found: str = connection.execute(select(compatibility.c.oldest)).scalar_one()
    return found


def _revision(database: Database) -> str:
    with database.read() as connection:
        found: str = connection.exec_driver_sql(
            "SELECT version_num FROM alembic_version"
        ).scalar_one()
    return found


def test_a_migration_says_whose_services_may_stay(database: Database) -> None:
    assert _oldest(database) == revisions()[NEWEST]


def test_a_service_starts_and_works_on_newer_tables_that_permit_it(
    tmp_path: Path, database_url: str, database: Database
) -> None:
    migrate_as_later_release(database, compatible_with=NEWEST)
    plane = ControlPlane(tmp_path, database_url=database_url)
    plane.create_model()
    job = plane.post_dataset()
    assert plane.run_to_end(job).version == 1
    assert plane.client.get("/readyz").status_code == 200
    plane.close()
    assert (_revision(database), _oldest(database)) == (REVISION, NEWEST)


def test_a_service_does_not_start_on_newer_tables_that_do_not(
    tmp_path: Path, database_url: str, database: Database
) -> None:
    migrate_as_later_release(database, compatible_with=REVISION)
    with pytest.raises(Conflict, match=f"the revision {REVISION}, and it knows .*{NEWEST}"):
        ControlPlane(tmp_path, database_url=database_url)
    assert (_revision(database), _oldest(database)) == (REVISION, REVISION)


def test_tables_that_say_nothing_are_not_worked_with(database: Database) -> None:
    migrate_as_later_release(database, compatible_with=NEWEST)
    with database.write() as connection:
        compatibility.drop(connection)
    with pytest.raises(Conflict, match=f"the revision {REVISION}, and it knows"):
        upgrade(database)


@pytest.mark.parametrize(("oldest", "status"), [(NEWEST, 0), (REVISION, 1)])
def test_the_command_says_in_one_line_what_to_do(
    database_url: str,
    database: Database,
    oldest: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    migrate_as_later_release(database, compatible_with=oldest)
    monkeypatch.setenv("CMCL_DATABASE_URL", database_url)
    monkeypatch.setenv("CMCL_AUTH", "off")
    assert main(["migrate"]) == status
    complaints = capsys.readouterr().err
    assert complaints.count("\n") == status
    assert ("Start the one that made them" in complaints) is bool(status)


def test_every_revision_says_with_whom_it_is_compatible() -> None:
    """Compatible with itself or earlier ones, and never with one that an earlier revision dropped."""
    oldest_first = [*reversed(revisions().items())]
    for place, (revision, oldest) in enumerate(oldest_first):
        assert oldest in [name for name, _ in oldest_first[: place + 1]], revision
    for (_, before), (revision, after) in itertools.pairwise(oldest_first):
        assert before <= after, revision
