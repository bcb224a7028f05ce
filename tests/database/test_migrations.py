"""The migrations, on both databases."""

from concurrent.futures import ThreadPoolExecutor

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from service.database.engine import Database, open_database
from service.database.migrations import upgrade
from service.database.tables import metadata


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
