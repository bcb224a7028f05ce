"""A service beside tables that a newer release has migrated, on both databases."""

import itertools
from pathlib import Path

import pytest
from sqlalchemy import select

from service.__main__ import main
from service.core.errors import Conflict
from service.database.engine import Database
from service.database.migrations import revisions, upgrade
from service.database.tables import compatibility
from tests.fakes.control_plane import ControlPlane

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
