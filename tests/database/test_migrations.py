"""The migrations, on both databases."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, Table, inspect

from service.database import migrations
from service.database.engine import Database, open_database
from service.database.migrations import upgrade
from service.database.tables import metadata


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
