"""The first tables.

No release has them yet, so they are created as `service.database.tables` declares them, and change with it. So the
comparison of the migrated tables with the declared ones finds nothing (tests/database/test_migrations.py). tests/database/frozen.py keeps a copy. Before a
second migration is written, this one must be written out, as `alembic revision --autogenerate` does on an empty
database: otherwise a fresh database already has what the second one adds. A test fails until it is.
"""

from alembic import op

from service.database.tables import event_positions, metadata

revision = "r0001"
down_revision = None
# The oldest revision whose services read and write these tables without harm.
compatible_with = "r0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table, and the one row of the table of positions."""
    metadata.create_all(op.get_bind(), checkfirst=False)
    op.bulk_insert(event_positions, [{"id": 1, "newest": 0}])
