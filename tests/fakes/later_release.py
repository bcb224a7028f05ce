"""What the migration of a later release leaves in a database, for older services."""

from service.database.engine import Database
from service.database.tables import compatibility

REVISION = "r9001"


def migrate_as_later_release(database: Database, compatible_with: str) -> None:
    """One more column, which present rows need not fill; and the releases that are compatible with it."""
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE models ADD COLUMN mood VARCHAR(16) DEFAULT 'good'")
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{REVISION}'")
        connection.execute(compatibility.update().values(oldest=compatible_with))
